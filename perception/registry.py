"""Child registries of MMEngine's: where this project's classes are found by name.

The runner makes ours MMEngine's default scope, so a name in a config is looked up here first, then among MMEngine's
own. Hence each registry that a config can reach has a child, also where no class of ours is in it yet. A child says in
which packages its members live, so that a name is found without the caller importing anything first.
"""

from mmengine import registry as roots
from mmengine.registry import Registry

SCOPE = "perception"


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=list(locations))


MODELS = _child(roots.MODELS, "perception.models")
DATASETS = _child(roots.DATASETS, "perception.datasets")
TRANSFORMS = _child(roots.TRANSFORMS, "perception.datasets")
METRICS = _child(roots.METRICS, "perception.evaluation")
VISUALIZERS = _child(roots.VISUALIZERS, "perception.visualization")
VISBACKENDS = _child(roots.VISBACKENDS, "perception.engine")
DATA_SAMPLERS = _child(roots.DATA_SAMPLERS, "perception.engine")
HOOKS = _child(roots.HOOKS, "perception.engine")
LOOPS = _child(roots.LOOPS, "perception.engine")
OPTIM_WRAPPERS = _child(roots.OPTIM_WRAPPERS, "perception.engine")
RUNNERS = _child(roots.RUNNERS, "perception.engine")
STRATEGIES = _child(roots.STRATEGIES, "perception.engine")

EVALUATOR = _child(roots.EVALUATOR)
FUNCTIONS = _child(roots.FUNCTIONS)
INFERENCERS = _child(roots.INFERENCERS)
LOG_PROCESSORS = _child(roots.LOG_PROCESSORS)
MODEL_WRAPPERS = _child(roots.MODEL_WRAPPERS)
OPTIMIZERS = _child(roots.OPTIMIZERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(roots.OPTIM_WRAPPER_CONSTRUCTORS)
PARAM_SCHEDULERS = _child(roots.PARAM_SCHEDULERS)
RUNNER_CONSTRUCTORS = _child(roots.RUNNER_CONSTRUCTORS)
TASK_UTILS = _child(roots.TASK_UTILS)
WEIGHT_INITIALIZERS = _child(roots.WEIGHT_INITIALIZERS)
