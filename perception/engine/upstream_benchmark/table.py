"""The comparison as a Markdown table."""

from typing import Any

from perception.engine.upstream_benchmark.benchmark import MODES, OURS, PARTS

_WORDS = {
    "eval_forward": "forward, eval",
    "train_forward": "forward, train",
    "train_forward_backward": "forward + backward",
}


def upstream_table(result: dict[str, Any]) -> str:
    """Rows of part and mode; milliseconds of each side at each batch, and how much faster ours is.

    Args:
        result: of `run_upstream_benchmark`.

    Returns:
        Markdown, without a newline at its end.
    """
    peers = [name for name in result["versions"] if name != OURS]
    head = ["batch", "part", "what", *(f"{name}, ms" for name in peers), "ours, ms"]
    head += [f"times faster than {name} (min–max)" for name in peers]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in result["rows"]:
        cells = [str(row["batch"]), row["part"], _WORDS[row["mode"]]]
        cells += [f"{row['ms'][name]:.0f}" if name in row["ms"] else "–" for name in (*peers, OURS)]
        cells += [_spread(row["ratio"].get(name)) for name in peers]
        lines.append(_line(cells))
    scaling = {(row["batch"], row["part"], row["mode"]): row["share_of_linear"] for row in result["scaling"]}
    batches = sorted({batch for batch, _, _ in scaling})
    if batches:
        head = ["ours: time of a batch / of as many single samples", *(_WORDS[mode] for mode in MODES)]
        lines += ["", _line(head), _line(["---"] * len(head))]
        lines += [
            _line([f"{part}, batch {batch}", *(_spread(scaling[batch, part, mode]) for mode in MODES)])
            for batch in batches
            for part in PARTS
        ]
    return "\n".join(lines)


def _spread(ratio: dict[str, float] | None) -> str:
    return "–" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
