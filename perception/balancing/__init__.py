"""Task losses and gradients → one update. Imports torch and torchjd only; methods are loaded when first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perception.balancing.balancer import Balancer
from perception.balancing.build import build_balancer
from perception.balancing.methods import balancer_names
from perception.balancing.shared_features import SharedFeatures
from perception.balancing.task_gradients import TaskGradients
from perception.balancing.task_losses import TaskLosses
from perception.balancing.task_streams import TaskStreams

if TYPE_CHECKING:
    from perception.balancing.achievement import AchievementWeights
    from perception.balancing.connection_strength import ConnectionStrength
    from perception.balancing.cross_stitch import CrossStitchUnit, StitchedCopies, stitch_trunk
    from perception.balancing.cross_stitch_balancer import CrossStitch
    from perception.balancing.dynamic_priority import DynamicTaskPriority
    from perception.balancing.dynamic_weights import DynamicTaskWeights
    from perception.balancing.geometric_mean import GeometricMean
    from perception.balancing.graddrop import GradDropBalancer
    from perception.balancing.gradnorm import GradNormWeights
    from perception.balancing.gram_weighting import GramWeighting
    from perception.balancing.loss_weighting import ConstantWeights, LossWeighting
    from perception.balancing.mclgs import MCLGSWeighting
    from perception.balancing.multi_task_balancer import MultiTaskBalancer
    from perception.balancing.nash import NashWeighting
    from perception.balancing.pacing import ExponentialPacing, LinearPacing, RatioPacing
    from perception.balancing.pcgrad import PCGradWeighting
    from perception.balancing.priorities import UniformPriority
    from perception.balancing.recon_balancers import Recon, ReconScores
    from perception.balancing.rotograd import RotoGrad
    from perception.balancing.rotograd_balancer import RotoGradBalancer
    from perception.balancing.static_priority import StaticPriority
    from perception.balancing.task_norms import convert_task_norms, plain_model
    from perception.balancing.wpcgrad import WPCGradWeighting

# TorchJD brings its solvers, which take seconds to import; the plain sum needs none of them.
_MODULES = {
    "AchievementWeights": "achievement",
    "ConnectionStrength": "connection_strength",
    "ConstantWeights": "loss_weighting",
    "CrossStitch": "cross_stitch_balancer",
    "CrossStitchUnit": "cross_stitch",
    "DynamicTaskPriority": "dynamic_priority",
    "DynamicTaskWeights": "dynamic_weights",
    "ExponentialPacing": "pacing",
    "GeometricMean": "geometric_mean",
    "GradDropBalancer": "graddrop",
    "GradNormWeights": "gradnorm",
    "GramWeighting": "gram_weighting",
    "LinearPacing": "pacing",
    "LossWeighting": "loss_weighting",
    "MCLGSWeighting": "mclgs",
    "MultiTaskBalancer": "multi_task_balancer",
    "NashWeighting": "nash",
    "PCGradWeighting": "pcgrad",
    "RatioPacing": "pacing",
    "Recon": "recon_balancers",
    "ReconScores": "recon_balancers",
    "RotoGrad": "rotograd",
    "RotoGradBalancer": "rotograd_balancer",
    "StaticPriority": "static_priority",
    "StitchedCopies": "cross_stitch",
    "UniformPriority": "priorities",
    "WPCGradWeighting": "wpcgrad",
    "stitch_trunk": "cross_stitch",
    "convert_task_norms": "task_norms",
    "plain_model": "task_norms",
}

__all__ = [
    "AchievementWeights",
    "Balancer",
    "ConnectionStrength",
    "ConstantWeights",
    "CrossStitch",
    "CrossStitchUnit",
    "DynamicTaskPriority",
    "DynamicTaskWeights",
    "ExponentialPacing",
    "GeometricMean",
    "GradDropBalancer",
    "GradNormWeights",
    "GramWeighting",
    "LinearPacing",
    "LossWeighting",
    "MCLGSWeighting",
    "MultiTaskBalancer",
    "NashWeighting",
    "PCGradWeighting",
    "RatioPacing",
    "Recon",
    "ReconScores",
    "RotoGrad",
    "RotoGradBalancer",
    "SharedFeatures",
    "StaticPriority",
    "StitchedCopies",
    "TaskGradients",
    "TaskLosses",
    "TaskStreams",
    "UniformPriority",
    "WPCGradWeighting",
    "balancer_names",
    "build_balancer",
    "stitch_trunk",
    "convert_task_norms",
    "plain_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
