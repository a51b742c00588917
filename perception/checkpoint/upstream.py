"""Official BEVFormer state dicts to ours and back: names, and the few tensors whose rows stand for something.

*Source*: parameter names of fundamentalvision/BEVFormer and, for the map head, of
Bin-ze/BEVFormer_segmentation_detection. Every name has exactly one counterpart. Three kinds of tensors change:

- the last layer of every regression branch: upstream's box code is (cx, cy, log w, log l, cz, log h, sin, cos, vx, vy)
  with yaw_upstream = −yaw − π/2, ours has (log l, log w) and (sin, cos) of yaw. So rows 2 and 3 change places, and
  rows 6 and 7 change places and sign: sin yaw = −cos yaw_upstream, cos yaw = −sin yaw_upstream. The rows of the centre
  stay, so the refinement of reference points and the decoder's cross-attention, which use nothing else, stay too;
- `code_weights`: the same order, no sign;
- the last layer of every class branch, only where the checkpoint's classes stand in another order.

Reordering and changing signs are exact, and the box rule is its own inverse, so that a round trip gives the same bits.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from perception.checkpoint.errors import CheckpointError
from perception.utils import name_some

CODE_ORDER = (0, 1, 3, 2, 4, 5, 7, 6, 8, 9)
"""Where one box code's channels lie in the other."""
CODE_SIGN = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0)

_ENCODER = "pts_bbox_head.transformer.encoder.layers.{}.", "bev_encoder.layers.{}."
_DECODER = "pts_bbox_head.transformer.decoder.layers.{}.", "box_head.decoder.{}."
_LAYER = (
    ("ffns.0.layers.0.0.", "ffn.linear1."),
    ("ffns.0.layers.1.", "ffn.linear2."),
    ("norms.", "norms."),
)
_PAIRS = (
    *(
        (_ENCODER[0] + official, _ENCODER[1] + ours)
        for official, ours in (
            ("attentions.0.", "temporal_self_attention."),
            ("attentions.1.output_proj.", "spatial_cross_attention.output_proj."),
            ("attentions.1.deformable_attention.", "spatial_cross_attention."),
            *_LAYER,
        )
    ),
    *(
        (_DECODER[0] + official, _DECODER[1] + ours)
        for official, ours in (
            ("attentions.0.attn.", "self_attention."),
            ("attentions.1.", "cross_attention."),
            *_LAYER,
        )
    ),
    ("pts_bbox_head.transformer.can_bus_mlp.", "bev_encoder.can_bus_mlp."),
    ("pts_bbox_head.transformer.level_embeds", "bev_encoder.level_embeds"),
    ("pts_bbox_head.transformer.cams_embeds", "bev_encoder.cams_embeds"),
    ("pts_bbox_head.bev_embedding.", "bev_encoder.bev_embedding."),
    ("pts_bbox_head.positional_encoding.", "bev_encoder.positional_encoding."),
    ("pts_bbox_head.transformer.reference_points.", "box_head.reference_points."),
    ("pts_bbox_head.query_embedding.", "box_head.query_embedding."),
    ("pts_bbox_head.cls_branches.", "box_head.cls_branches."),
    ("pts_bbox_head.reg_branches.", "box_head.reg_branches."),
    ("pts_bbox_head.code_weights", "box_head.code_weights"),
    ("pts_bbox_head.seg_decoder.", "seg_head.seg_encode."),
    ("img_backbone.", "img_backbone."),
    ("img_neck.", "img_neck."),
)
"""Official ↔ ours; {} is a layer's number, and what follows a final dot is kept. Earlier pairs win."""

_WRAPPED = "module."
_OLD_OFFSET = re.compile(r"^(img_backbone\..*\.conv2)_offset\.(weight|bias)$")
_REGRESSION = re.compile(r"box_head\.reg_branches\.\d+\.4\.(weight|bias)")
_CLASSES = re.compile(r"box_head\.cls_branches\.\d+\.6\.(weight|bias)")
_CODE_WEIGHTS = "box_head.code_weights"


def official_to_ours(name: str) -> str | None:
    """Our name of an official tensor; None where there is none.

    A leading `module.` (data-parallel training) and the offset convolutions' name before mmcv 1.0 (`conv2_offset`) are
    understood.

    Example:
        >>> official_to_ours("pts_bbox_head.transformer.decoder.layers.0.attentions.0.attn.in_proj_bias")
        'box_head.decoder.0.self_attention.in_proj_bias'
    """
    name = _OLD_OFFSET.sub(r"\1.conv_offset.\2", name.removeprefix(_WRAPPED))
    ours = _translate(name, _TO_OURS)
    # What does not lead back is a name that upstream does not have, though one of our patterns fits it.
    return ours if ours is not None and ours_to_official(ours) == name else None


def ours_to_official(name: str) -> str | None:
    """The official name of one of our tensors; None where upstream has no such tensor.

    Example:
        >>> ours_to_official("bev_encoder.layers.2.ffn.linear1.weight")
        'pts_bbox_head.transformer.encoder.layers.2.ffns.0.layers.0.0.weight'
    """
    return _translate(name, _TO_OFFICIAL)


def convert_code(code: Tensor, dim: int = -1) -> Tensor:
    """Upstream's box code → ours, or ours → upstream's: the rule is its own inverse.

    Args:
        code: box codes, or rows that make them; 10 long on `dim`.
        dim: where the code's channels are.

    Example:
        >>> convert_code(torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])).int().tolist()
        [[0, 1, 3, 2, 4, 5, -7, -6, 8, 9]]
    """
    shape = [1] * code.dim()
    shape[dim] = len(CODE_SIGN)
    order = torch.tensor(CODE_ORDER, device=code.device)
    return code.index_select(dim, order) * code.new_tensor(CODE_SIGN).view(shape)


def convert_state(
    official: Mapping[str, Tensor], *, class_rows: Sequence[int] | None = None, path: str = "state dict"
) -> dict[str, Tensor]:
    """Official state dict → ours; outputs are in today's box convention, see the module.

    Args:
        official: name → tensor.
        class_rows: for each of our classes, its position among the checkpoint's; None: the same order.
        path: where it comes from, for messages.

    Raises:
        CheckpointError: names that upstream does not have, or two names of one tensor.

    Example:
        >>> list(convert_state({"pts_bbox_head.code_weights": torch.ones(10)}))
        ['box_head.code_weights']
    """
    pairs = {name: official_to_ours(name) for name in official}
    _refuse_unknown([name for name, ours in pairs.items() if ours is None], path)
    state: dict[str, Tensor] = {}
    for name, ours in pairs.items():
        assert ours is not None
        if ours in state:
            raise CheckpointError(
                f"the file holds {ours_to_official(ours)} twice, under an old name or with and without '{_WRAPPED}'. "
                "Delete one of the two",
                path=path,
            )
        state[ours] = _convert(ours, official[name], class_rows)
    return state


def restore_state(
    ours: Mapping[str, Tensor], *, class_rows: Sequence[int] | None = None, path: str = "state dict"
) -> dict[str, Tensor]:
    """Our state dict → upstream's; the inverse of `convert_state`, bit for bit.

    Args:
        ours: name → tensor.
        class_rows: for each of the wanted classes, its position among ours; None: the same order.
        path: where it comes from, for messages.

    Raises:
        CheckpointError: tensors that upstream does not have.

    Example:
        >>> list(restore_state({"box_head.code_weights": torch.ones(10)}))
        ['pts_bbox_head.code_weights']
    """
    pairs = {name: ours_to_official(name) for name in ours}
    _refuse_unknown([name for name, official in pairs.items() if official is None], path)
    return {str(pairs[name]): _convert(name, value, class_rows) for name, value in ours.items()}


def _convert(ours: str, value: Tensor, class_rows: Sequence[int] | None) -> Tensor:
    if _REGRESSION.fullmatch(ours):
        return convert_code(value, dim=0)
    if ours == _CODE_WEIGHTS:
        return value[list(CODE_ORDER)]
    if class_rows is not None and _CLASSES.fullmatch(ours):
        return value[list(class_rows)]
    return value


def _refuse_unknown(names: Sequence[str], path: str) -> None:
    if names:
        raise CheckpointError(
            f"{len(names)} name(s) have no counterpart on the other side: {name_some(names)}. What can be converted: "
            "BEVFormer (tiny, small, base), Bin-ze's segmentation fork, and models of ours with the same parts",
            path=path,
        )


def _compile(pairs: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    compiled = []
    for source, target in pairs:
        rest = "(.+)" if source.endswith(".") else "()"
        pattern = re.escape(source).replace(r"\{\}", r"(\d+)") + rest
        compiled.append((re.compile(pattern), target + "{}"))
    return compiled


def _translate(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        match = pattern.fullmatch(name)
        if match:
            return target.format(*match.groups())
    return None


_TO_OURS = _compile(_PAIRS)
_TO_OFFICIAL = _compile((ours, official) for official, ours in _PAIRS)
