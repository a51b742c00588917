"""The names that configs use for methods, and how each is made. Importing this loads none of them."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

Kind = Literal["weighting", "stage", "priority", "pacing", "balancer"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named method.

    Attributes:
        kind: where it can stand: a loss weighting, a stage of a combination, or a part or a balancer of its own.
        target: module of this package and name in it.
        nested: argument → kind of the named part that it takes.
        defaults: arguments that a config may leave out though the class requires them.
        changes_model: whether the model that it trains is another one than the config's.
    """

    kind: Kind
    target: str
    nested: tuple[tuple[str, Kind], ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    changes_model: bool = False

    def load(self) -> Any:
        """The class or function."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"perception.balancing.{module}"), name)


def _methods(kind: Kind, targets: dict[str, str]) -> dict[str, Method]:
    return {name: Method(kind=kind, target=target) for name, target in targets.items()}


METHODS: dict[str, Method] = {
    **_methods(
        "weighting",
        {
            "even": "loss_weighting:LossWeighting",
            "constant": "loss_weighting:ConstantWeights",
            "uncertainty": "learned_weights:UncertaintyWeights",
            "dwa": "scalarizers:DynamicWeightAverage",
            "rlw": "scalarizers:RandomWeights",
            "stch": "scalarizers:SmoothTchebycheffWeights",
            "imtl_l": "learned_weights:IMTLLossWeights",
            "famo": "famo:FAMOWeights",
            "gradnorm": "gradnorm:GradNormWeights",
            "dtp": "dynamic_weights:DynamicTaskWeights",
            "achievement": "achievement:AchievementWeights",
        },
    ),
    **_methods(
        "stage",
        {
            "geometric": "geometric_mean:GeometricMean",
            "pcgrad": "pcgrad:PCGradWeighting",
            "gradvac": "gradvac:VaccineWeighting",
            "mgda": "torchjd_weighting:mgda",
            "cagrad": "torchjd_weighting:cagrad",
            "aligned_mtl": "torchjd_weighting:aligned_mtl",
            "imtl_g": "torchjd_weighting:imtl_g",
            "nash": "nash:NashWeighting",
            "fairgrad": "torchjd_weighting:fairgrad",
            "upgrad": "torchjd_weighting:upgrad",
            "dualproj": "torchjd_weighting:dualproj",
        },
    ),
    "wpcgrad": Method(
        kind="stage",
        target="wpcgrad:WPCGradWeighting",
        nested=(("priority", "priority"),),
        defaults=(("priority", "dtp"),),
    ),
    "mclgs": Method(
        kind="stage",
        target="mclgs:MCLGSWeighting",
        nested=(("pacing", "pacing"),),
        defaults=(("pacing", "ratio"),),
    ),
    "graddrop": Method(
        kind="balancer",
        target="graddrop:GradDropBalancer",
        nested=(("weighting", "weighting"),),
    ),
    "connection_strength": Method(
        kind="balancer",
        target="connection_strength:ConnectionStrength",
        nested=(("weighting", "weighting"),),
        changes_model=True,
    ),
    "cross_stitch": Method(
        kind="balancer",
        target="cross_stitch_balancer:CrossStitch",
        nested=(("weighting", "weighting"), ("combination", "stage")),
        changes_model=True,
    ),
    "rotograd": Method(
        kind="balancer",
        target="rotograd_balancer:RotoGradBalancer",
        nested=(("weighting", "weighting"),),
        changes_model=True,
    ),
    "recon_scores": Method(
        kind="balancer",
        target="recon_balancers:ReconScores",
        nested=(("weighting", "weighting"), ("combination", "stage")),
    ),
    "recon": Method(
        kind="balancer",
        target="recon_balancers:Recon",
        nested=(("weighting", "weighting"), ("combination", "stage")),
        changes_model=True,
    ),
}

PARTS: dict[str, dict[str, Method]] = {
    "priority": _methods(
        "priority",
        {
            "uniform": "priorities:UniformPriority",
            "static": "static_priority:StaticPriority",
            "dtp": "dynamic_priority:DynamicTaskPriority",
        },
    ),
    "pacing": _methods(
        "pacing",
        {
            "linear": "pacing:LinearPacing",
            "ratio": "pacing:RatioPacing",
            "exponential": "pacing:ExponentialPacing",
        },
    ),
}

# Names of the papers' own set-ups: name → (method names in order, arguments).
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "gls": ("geometric", {}),
    "amtl": ("achievement+geometric", {}),
    "imtl": ("imtl_l+imtl_g", {}),
    "wpcgrad-dtp": ("wpcgrad", {"priority": {"name": "dtp"}}),
    "wpcgrad-seg-vel": ("wpcgrad", {"priority": {"name": "static", "schedule": "seg_to_vel"}}),
    "wpcgrad-vel-seg": ("wpcgrad", {"priority": {"name": "static", "schedule": "vel_to_seg"}}),
}
COMBINATIONS = (
    "mclgs+cagrad",
    "uncertainty+mclgs",
    "uncertainty+mclgs+cagrad",
    "achievement+pcgrad",
    "achievement+cagrad",
    "rlw+geometric",
    "dwa+geometric",
    "dtp+geometric",
)


def balancer_names() -> tuple[str, ...]:
    """Every name that `build_balancer` takes, without the free combinations with "+": for help, docs and `compare`."""
    return ("sum", *METHODS, *PRESETS, *COMBINATIONS)
