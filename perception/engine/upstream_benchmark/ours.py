"""Our encoder and box head of `bevformer_official_tiny`, as one side of the comparison."""

from torch import Tensor, nn

from perception.checkpoint.upstream import convert_state, restore_state
from perception.config import load_config
from perception.engine.upstream_benchmark.rebatching import use_rebatching
from perception.engine.upstream_benchmark.worker import Inputs
from perception.models import BEVEncoder, BoxHead
from perception.registry import MODELS
from perception.utils import keep_freed_memory

CONFIG = "bevformer_official_tiny_r50_det_8xb1_24e_nuscenes"


class OurSide:
    """The modules of a shipped config, with dropout, as the official config has it.

    Args:
        is_rebatching: replace the spatial cross-attention by the plain loop of `use_rebatching`.
    """

    def __init__(self, *, is_rebatching: bool = False) -> None:
        keep_freed_memory()  # as every run on a CPU
        model = load_config(CONFIG)["model"]
        # Since 2023-07-27 the official shift leaves the current reference points alone.
        compat = {**model["upstream_compat"], "aliased_shift": False}
        parts = {"bev_encoder": model["bev_encoder"], "box_head": model["box_head"]}
        self.parts = nn.ModuleDict(
            {name: MODELS.build({**part, "upstream_compat": compat}) for name, part in parts.items()}
        )
        if is_rebatching:
            use_rebatching(self._encoder)

    @property
    def _encoder(self) -> BEVEncoder:
        encoder = self.parts["bev_encoder"]
        assert isinstance(encoder, BEVEncoder)
        return encoder

    @property
    def _head(self) -> BoxHead:
        head = self.parts["box_head"]
        assert isinstance(head, BoxHead)
        return head

    def modules(self) -> nn.Module:
        """Encoder and head."""
        return self.parts

    def encoder(self, inputs: Inputs) -> Tensor:
        """(B, Q, C)."""
        bev: Tensor = self._encoder(
            [inputs.features], inputs.lidar2img, inputs.can_bus, inputs.image_shape, inputs.prev_bev
        )
        return bev

    def decoder(self, inputs: Inputs, bev: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and codes."""
        outputs = self._head(bev)
        return outputs.cls_scores, outputs.codes

    def whole(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits and codes."""
        return self.decoder(inputs, self.encoder(inputs))

    def official_state(self) -> dict[str, Tensor]:
        """Weights by their official names."""
        return restore_state(self.parts.state_dict())

    def load_official_state(self, state: dict[str, Tensor]) -> None:
        """Take weights by their official names."""
        self.parts.load_state_dict(convert_state(state))

    def to_our_codes(self, codes: Tensor) -> Tensor:
        """They are."""
        return codes
