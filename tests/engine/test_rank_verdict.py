"""Who hangs, from the ranks' notes alone; and the notes."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

import perception.engine
from perception.engine import rank_notes
from perception.engine.rank_notes import RankNote, at, exchange, read_note, reset_note, slow_part
from perception.engine.rank_verdict import RollCall, Verdict

WAITS = RankNote(
    num_changes=40, num_entered=9, exchange="sum of gradients", is_inside=True, place="step 7", is_slow=False
)
LATE = replace(WAITS, num_changes=38, num_entered=8, exchange="losses", is_inside=False)
PASSED = replace(WAITS, num_changes=41, is_inside=False)


def judge(notes: dict[int, RankNote], seconds: float, *, silent: tuple[int, ...] = ()) -> Verdict | None:
    """The verdict after some seconds in which nothing changed; silent ranks were heard at the beginning only."""
    roll = RollCall(num_ranks=len(notes), timeout_s=100.0, slow_timeout_s=1000.0, now=0.0)
    for now in range(0, int(seconds) + 1, 5):
        for rank, note in notes.items():
            if now == 0 or rank not in silent:
                roll.hear(rank, note, float(now))
    return roll.judge(seconds)


def test_the_rank_that_did_not_arrive_is_named_within_the_timeout() -> None:
    assert judge({0: WAITS, 1: LATE, 2: WAITS}, 75.0) is None
    verdict = judge({0: WAITS, 1: LATE, 2: WAITS}, 90.0)
    assert verdict == Verdict(
        "hung",
        (1,),
        "rank 1 hangs: not arrived at exchange 9 ('sum of gradients') for 90 s; last seen in step 7, after exchange 8 "
        "('losses'). ranks 0, 2 were last seen in step 7, in exchange 9 ('sum of gradients')",
    )


def test_a_silent_rank_is_named_wherever_it_is() -> None:
    for note in (WAITS, LATE, PASSED, replace(LATE, is_slow=True)):
        verdict = judge({0: WAITS, 1: note}, 90.0, silent=(1,))
        assert verdict is not None
        assert verdict.ranks == (1,)
        assert "no sign of life for 90 s" in verdict.message


def test_a_slow_part_has_its_own_limit() -> None:
    slow = replace(LATE, place="saving a checkpoint", is_slow=True)
    assert judge({0: slow, 1: WAITS}, 700.0) is None
    verdict = judge({0: slow, 1: WAITS}, 900.0)
    assert verdict is not None
    assert verdict.ranks == (0,)
    assert "last seen in saving a checkpoint" in verdict.message
    assert judge({0: LATE, 1: replace(WAITS, is_slow=True)}, 90.0) is not None, "who waits is not who is slow"


def test_an_exchange_that_does_not_end_is_told_as_such() -> None:
    verdict = judge({0: WAITS, 1: WAITS}, 90.0)
    assert verdict is not None
    assert verdict.ranks == (0, 1)
    assert (
        "exchange 9 ('sum of gradients') has not ended for 90 s, though every rank has entered it"
        in verdict.message
    )


def test_who_computes_does_not_hang() -> None:
    assert judge({0: PASSED, 1: PASSED}, 900.0) is None
    assert judge({0: RankNote(), 1: RankNote()}, 5000.0) is None
    roll = RollCall(num_ranks=2, timeout_s=100.0, slow_timeout_s=1000.0, now=0.0)
    for now in range(0, 500, 5):
        roll.hear(0, WAITS, float(now))
        roll.hear(1, replace(LATE, num_changes=now), float(now))  # it does something
        assert roll.judge(float(now)) is None


def test_ranks_that_left_are_not_missed() -> None:
    roll = RollCall(num_ranks=2, timeout_s=100.0, slow_timeout_s=1000.0, now=0.0)
    roll.hear(0, PASSED, 0.0)
    roll.hear(1, LATE, 0.0)
    roll.leave(1)
    roll.hear(0, PASSED, 200.0)
    assert roll.judge(200.0) is None
    roll.leave(0)
    assert roll.judge(300.0) is None


def test_many_ranks_make_a_short_message() -> None:
    notes = {rank: WAITS if rank % 2 else replace(LATE, place=f"step {rank}") for rank in range(100)}
    verdict = judge(notes, 90.0)
    assert verdict is not None
    assert len(verdict.ranks) == 50
    assert verdict.message.startswith("ranks 0, 2, 4, 6, 8 and 45 more hang: ")
    assert len(verdict.message) < 700


def test_notes_follow_the_run() -> None:
    reset_note()
    at("step 1")
    with exchange("outer"):
        with exchange("inner"):
            assert read_note().describe() == "in step 1, in exchange 2 ('inner')"
        assert read_note().describe() == "in step 1, in exchange 2 ('outer')"
    assert not read_note().is_inside
    with slow_part("saving"):
        assert read_note().is_slow
    with pytest.raises(ValueError, match="lost"), slow_part("saving"), exchange("message"):
        raise ValueError("lost")
    note = read_note()
    assert (note.place, note.is_slow, note.is_inside, note.num_entered) == ("step 1", False, False, 3)
    assert note.num_changes > 8
    reset_note()
    assert rank_notes.read_note() == RankNote()


COLLECTIVES = {"all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "all_to_all_single", "barrier",
               "reduce_scatter_tensor", "gather", "scatter", "reduce"}  # fmt: skip


def test_every_collective_of_the_engine_is_noted() -> None:
    """One that is called outside `exchange` would leave the watch without a name for a hang in it."""
    folder = Path(perception.engine.__file__).parent
    unnoted = []
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        noted_functions = {
            call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            for with_ in _exchanges(tree)
            for call in ast.walk(with_)
            if isinstance(call, ast.Call)
        }
        noted = {id(node) for with_ in _exchanges(tree) for node in ast.walk(with_)}
        noted |= {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name in noted_functions
            for node in ast.walk(function)
        }
        unnoted += [
            f"{path.name}:{node.lineno} {node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr in COLLECTIVES) == ("dist", True)
            and id(node) not in noted
        ]
    assert unnoted == []


def _exchanges(tree: ast.AST) -> list[ast.With]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(
            isinstance(item.context_expr, ast.Call)
            and getattr(item.context_expr.func, "id", "") == "exchange"
            for item in node.items
        )
    ]
