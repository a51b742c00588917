"""A config's model with a checkpoint's weights, ready for export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from perception.balancing.build import build_balancer, changes_model
from perception.checkpoint import CheckpointError, load_weights
from perception.config import ConfigError
from perception.models import BEVFormer, FCOSMultiTask
from perception.registry import MODELS
from perception.utils import name_some, sha256_file

_TRAINING_ONLY = ("compiled", "activation_checkpointing", "distillation", "backbone_weights")


@dataclass(frozen=True)
class LoadedModel:
    """A model to export.

    Attributes:
        model: in evaluation mode, on the CPU.
        checkpoint: "name", "sha256" and "step" of its weights, for the manifest.
        state: what the checkpoint says beside the weights; empty for a bare file.
    """

    model: nn.Module
    checkpoint: dict[str, Any]
    state: dict[str, Any]


def load_model(cfg: Config, checkpoint: str | Path) -> LoadedModel:
    """Build a config's model and load weights into it.

    Args:
        cfg: the config; not changed.
        checkpoint: run folder, step folder or `.safetensors` file.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another model.
        ConfigError: the model is of a kind that can't be exported.
    """
    weights = load_weights(checkpoint)
    model = build_model(cfg)
    state = {
        name: value for name, value in weights.model_state.items() if not name.startswith("distillation.")
    }
    own = model.state_dict()
    reshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    problems = [
        f"{len(names)} {what}: {name_some(sorted(names))}"
        for what, names in (
            ("missing", set(own) - set(state)),
            ("unknown", set(state) - set(own)),
            ("of another shape", reshaped),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"the weights do not fit the model; {'; '.join(problems)}. Use the config that the checkpoint was trained "
            "with",
            path=weights.path,
        )
    model.load_state_dict(state)
    file = weights.path if weights.path.is_file() else weights.path / "model.safetensors"
    origin = {"name": weights.path.name, "sha256": sha256_file(file), "step": weights.state.get("step")}
    return LoadedModel(model.eval().requires_grad_(False), origin, weights.state)


def build_model(cfg: Config) -> nn.Module:
    """A config's model as it is after training, with weights of no meaning.

    Raises:
        ConfigError: the model is of a kind that can't be exported.
    """
    settings = {key: value for key, value in cfg.model.items() if key not in _TRAINING_ONLY}
    model = MODELS.build(settings)
    if not isinstance(model, BEVFormer | FCOSMultiTask):
        raise ConfigError(f"model is a {type(model).__name__}; export knows BEVFormer and FCOSMultiTask.")
    return _as_trained(model, cfg.get("optim_wrapper"))


def _as_trained(model: nn.Module, optim_wrapper: Mapping[str, Any] | None) -> nn.Module:
    """The form that a balancing method gives to the model that it trains."""
    spec = (optim_wrapper or {}).get("balancer")
    if not changes_model(spec):
        return model
    balancer = build_balancer(spec)
    prepared = balancer.prepare(model)
    groups = [group for group, _ in balancer.plan] or list(prepared.task_streams.groups)
    if groups:
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        raise ConfigError(
            f"the model was trained by {name!r}, with layers of their own for {groups}, and runs once for each of "
            "them; export knows models that run once. Train with another method, or export single-task models"
        )
    return prepared
