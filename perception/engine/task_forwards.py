"""Running a model once per group of tasks, in training and in prediction, each group on its own copies of layers.

A group is a name and the tasks that belong to it, as `Balancer.plan` lists them. Its forwards run under `use_task`,
which chooses its copies, and the model's `only_tasks`, which leaves other tasks' heads alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from perception.balancing import Balancer
from perception.balancing.build import build_balancer, changes_model
from perception.balancing.task_copies import use_task
from perception.engine.collectives import gather_json
from perception.engine.step_context import StepContext

if TYPE_CHECKING:
    from perception.balancing.connection_strength import ConnectionStrength
    from perception.engine.optim_wrapper import BalancedOptimWrapper

Plan = Sequence[tuple[str, Sequence[str]]]


def balancer_that_changes_the_model(optim_wrapper: Mapping[str, Any] | None) -> Balancer | None:
    """The balancer of an optimiser wrapper's config, if the model that it trains is not the config's; else None.

    Raises:
        ValueError: it can't be built.
    """
    spec = (optim_wrapper or {}).get("balancer")
    if isinstance(spec, Balancer):
        return spec if spec.changes_model else None
    return build_balancer(spec) if changes_model(spec) else None


def prepare_model(balancer: Balancer, model: nn.Module) -> nn.Module:
    """The model that a balancer trains, checked that it can run group by group.

    Raises:
        ValueError: the method can't train this model.
    """
    prepared = balancer.prepare(model)
    compiled = [name for name, part in model.named_modules() if part._compiled_call_impl is not None]
    if compiled and prepared is not model:
        raise ValueError(
            f"{type(balancer).__name__} trains a changed copy of the model, in which nothing is compiled, but "
            f"{compiled} are to be. Leave model.compiled out, or use another method"
        )
    if balancer.needs_task_forwards and not hasattr(model, "only_tasks"):
        raise ValueError(
            f"{type(balancer).__name__} runs the model once per group of tasks, but {type(model).__name__} has no "
            "`only_tasks`. Use a model of perception.models, or give yours this context manager"
        )
    for group, tasks in balancer.plan:
        with task_group(prepared, group, tasks):
            pass
    return prepared


@contextmanager
def task_group(model: Any, group: str, tasks: Sequence[str]) -> Iterator[None]:
    """Forwards inside are the group's.

    Raises:
        ValueError: the model has no copies for the group, or can't compute its tasks apart from others.
    """
    with use_task(model, group), model.only_tasks(tasks):
        yield


def train_by_groups(
    model: Any, data_batch: Any, optim_wrapper: "BalancedOptimWrapper", *, step: int
) -> dict[str, Tensor]:
    """One training step: the batch is prepared once, then one forward and backward per group.

    Either each group is followed by an optimiser step (`Balancer.steps_per_group`), or all end in one. Where a loss or
    gradient isn't finite, the rest of the step is left out; `last_step` names the groups that were updated before.

    Args:
        model: the bare model, prepared.
        data_batch: what the loader gave.
        optim_wrapper: its `last_step` describes the whole step afterwards.
        step: its number, from 1.

    Returns:
        The loss terms, for the log.

    Raises:
        FloatingPointError: as `BalancedOptimWrapper.update_params`.
    """
    balancer = cast("ConnectionStrength", optim_wrapper.balancer)
    is_sequential = balancer.steps_per_group
    scopes = {group: partial(task_group, model, group, tasks) for group, tasks in balancer.plan}
    context = partial(StepContext, step=step, model=model, data_batch=data_batch)
    optim_wrapper.begin_step(context(scopes=tuple(scopes.values())))
    with optim_wrapper.optim_context(model):
        data = model.data_preprocessor(data_batch, True)
    terms: dict[str, Tensor] = {}
    done: dict[str, dict[str, Any]] = {}  # group → what the wrapper says of it
    report: dict[str, Any] = {}
    updated: list[str] = []
    for group, scope in scopes.items():
        if is_sequential:  # a failure undoes and explains this group's forward alone
            optim_wrapper.begin_step(context(scopes=(scope,)))
        with scope():
            with optim_wrapper.optim_context(model), _watching(balancer, model):
                losses = model(**data, mode="loss")
            task_losses, log_vars = model.parse_losses(losses)
            optim_wrapper.add_losses(task_losses)
        terms |= {key: value for key, value in log_vars.items() if key != "loss"}
        if not balancer.holds_gradients:  # else the tasks are combined at the end
            report = _joined(report, balancer.report())
        done[group] = optim_wrapper.last_step
        if is_sequential and optim_wrapper.take_step():
            updated.append(group)
        if optim_wrapper.last_step["skipped"]:
            break
    if is_sequential:
        balancer.record_shares(model)
    elif optim_wrapper.take_step():
        updated = list(scopes)
    if updated and not optim_wrapper.last_step["skipped"]:
        optim_wrapper.end_update()
    optim_wrapper.last_step = _describe(done, updated, _joined(report, balancer.report()), is_sequential)
    return terms


def predict_by_groups(model: Any, plan: Plan, step: Callable[[Any], Any], data_batch: Any) -> Any:
    """One forward per group; each sample has the predictions of all.

    Args:
        model: the bare model.
        plan: the groups; none: one forward of the plain model.
        step: the model's `val_step` or `test_step`.
        data_batch: what the loader gave.

    Returns:
        What `step` returns: data samples.
    """
    if not plan:
        return step(data_batch)
    merged: list[Any] = []
    for group, tasks in plan:
        with task_group(model, group, tasks):
            found = step(data_batch)
        merged = merged or list(found)
        for sample, other in zip(merged, found, strict=True):
            for key, value in other.items():
                if key not in sample:
                    setattr(sample, key, value)
    return merged


@contextmanager
def _watching(balancer: "ConnectionStrength", model: nn.Module) -> Iterator[None]:
    """In a run's first forward, and the first after a resume, layers are paired with norms; ranks must agree."""
    if getattr(balancer, "is_watched", True):  # other methods need not know
        yield
        return
    with balancer.watch(model):
        yield
    found = [[pair.layer, pair.norm, *pair.through] for pair in balancer.connections]
    if any(other != found for other in gather_json(found)):
        raise ValueError(
            "the ranks' first forwards connect layers and norms differently, so their channels can't be compared. The "
            "trunk must run the same layers in the same order for every batch"
        )


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two reports as one; where both have a dict, as of different tasks, their entries together."""
    joined = {**first, **second}
    for key in first.keys() & second.keys():
        if isinstance(first[key], Mapping) and isinstance(second[key], Mapping):
            joined[key] = {**first[key], **second[key]}
    return joined


def _describe(
    done: Mapping[str, Mapping[str, Any]],
    updated: Sequence[str],
    report: Mapping[str, Any],
    is_sequential: bool,
) -> dict[str, Any]:
    """The log's line of the whole step; of several updates' gradient norms the largest."""
    last = [*done.values()][-1]
    step = {**last, "tasks": {task: loss for part in done.values() for task, loss in part["tasks"].items()}}
    step.pop("balance", None)
    norms = {group: part["grad_norm"] for group, part in done.items() if part["grad_norm"] is not None}
    if any("balance" in part for part in done.values()):
        step["balance"] = dict(report)
    if is_sequential:
        step["grad_norm"] = max(norms.values(), default=None)
        if "balance" in step:
            step["balance"]["group_grad_norms"] = norms
        for failure in ("non_finite", "overflow"):
            if failure in step:
                step[failure] = {**step[failure], "updated": list(updated)}
    return step
