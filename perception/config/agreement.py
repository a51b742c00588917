"""Values that several parts of a config state and that must agree: grids, ranges, class lists, sizes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perception.config.types import type_name

_SAME_EVERYWHERE = ("bev_h", "bev_w", "pc_range", "class_names")
# A metric's are compared with its dataset's when both are built: they may be those of a map.
_EVALUATORS = ("val_evaluator", "test_evaluator")


def disagreements(root: Mapping[str, Any]) -> list[str]:
    """Every contradiction between parts of a config, with the dotted keys of both sides.

    Example:
        >>> disagreements({"model": {"head": {"bev_h": 40}, "encoder": {"bev_h": 50}}})
        ['model.encoder.bev_h is 50, but model.head.bev_h is 40; they must be equal.']
    """
    found = list(_dicts(root, ""))
    problems: list[str] = []
    for key in _SAME_EVERYWHERE:
        stating = [item for item in found if key != "class_names" or not item[0].startswith(_EVALUATORS)]
        problems.extend(
            _unequal([(f"{path}.{key}", node[key]) for path, node in stating if node.get(key) is not None])
        )
    problems.extend(_ranges(found))
    problems.extend(_map_grids(found))
    problems.extend(_class_counts(found))
    problems.extend(_widths(root.get("model")))
    problems.extend(_tasks(root))
    return problems


def _dicts(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        node = {str(key): inner for key, inner in dict.items(value)}
        yield path, node
        for key, inner in node.items():
            yield from _dicts(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _dicts(inner, f"{path}.{index}")


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _unequal(stated: Sequence[tuple[str, Any]]) -> list[str]:
    if not stated:
        return []
    first_path, first = stated[0]
    return [
        f"{path} is {value}, but {first_path} is {first}; they must be equal."
        for path, value in stated[1:]
        if _plain(value) != _plain(first)
    ]


def _ranges(found: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    problems = []
    for path, node in found:
        pc_range = node.get("pc_range")
        if not isinstance(pc_range, (list, tuple)):
            continue
        if len(pc_range) != 6 or any(
            not low < high for low, high in zip(pc_range[:3], pc_range[3:], strict=False)
        ):
            problems.append(
                f"{path}.pc_range is {pc_range}; it must be (x_min, y_min, z_min, x_max, y_max, z_max) with min < max."
            )
    return problems


def _map_grids(found: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    stated = []
    for path, node in found:
        if path.endswith((".grid", ".map_grid")) or path in {"grid", "map_grid"}:
            parts = (
                node.get("x_range", (-15.0, 15.0)),
                node.get("y_range", (-30.0, 30.0)),
                node.get("resolution", 0.15),
            )
        elif path.endswith("seg_head") and "pc_range" in node:  # of a map, not of an image
            parts = (
                node.get("map_x_range", (-15.0, 15.0)),
                node.get("map_y_range", (-30.0, 30.0)),
                node.get("map_resolution", 0.15),
            )
        else:
            continue
        stated.append((f"the map grid (x_range, y_range, resolution) of {path}", _plain(parts)))
    return _unequal(stated)


def _class_counts(found: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    lists = [
        (path, node["class_names"])
        for path, node in found
        if node.get("class_names") and not path.startswith(_EVALUATORS)
    ]
    problems: list[str] = []
    for path, node in found:
        if not path.endswith("box_head") or node.get("num_classes") is None:
            continue
        problems.extend(
            f"{path}.num_classes is {node['num_classes']}, but {where}.class_names has {len(names)} classes; "
            "set one to fit the other."
            for where, names in lists[:1]
            if len(names) != node["num_classes"]
        )
    return problems


def _widths(model: Any) -> list[str]:
    if not isinstance(model, dict):
        return []
    stated = []
    for part, key in (
        ("img_neck", "out_channels"),
        ("bev_encoder", "embed_dims"),
        ("box_head", "embed_dims"),
        ("seg_head", "embed_dims"),
        ("box_head", "in_channels"),
        ("seg_head", "in_channels"),
    ):
        node = dict.get(model, part)
        if isinstance(node, dict) and dict.get(node, key) is not None:
            stated.append((f"model.{part}.{key}", dict.get(node, key)))
    return _unequal(stated)


def _tasks(root: Mapping[str, Any]) -> list[str]:
    model = dict.get(root, "model") if isinstance(root, dict) else None
    if not isinstance(model, dict) or not ({"box_head", "seg_head"} & set(dict.keys(model))):
        return []
    needed = {
        "NuScenesDetectionMetric": "box_head",
        "BoxAPMetric": "box_head",
        "BEVSegMetric": "seg_head",
        "SemSegMetric": "seg_head",
    }
    problems = []
    seg_head = dict.get(model, "seg_head")
    if isinstance(seg_head, dict) and dict.get(model, "box_head") is None:
        if type_name(dict.get(seg_head, "type", "")).rpartition(".")[2] == "PatchSegHead":
            problems.append(
                "model.seg_head is PatchSegHead, whose queries need the decoder of model.box_head, which is None; keep "
                "the box head, or take SegHead."
            )
    for key in _EVALUATORS:
        for path, node in _dicts(root.get(key), key):
            name = type_name(dict.get(node, "type", "")).rpartition(".")[2] if "type" in node else ""
            head = needed.get(name)
            if head is not None and dict.get(model, head) is None:
                problems.append(
                    f"{path} is {name}, but the model has no {head}; remove the metric or add the head."
                )
    return problems
