"""What of a config must go together where training data come as streams."""

from collections.abc import Iterator, Mapping
from typing import Any

from perception.config.types import type_name

_REMEDY = (
    "use train_dataloader.sampler.type=StreamSampler, train_dataloader.dataset.history='stream' and "
    "train_dataloader.dataset.queue_length=1 together"
)


def stream_problems(root: Mapping[str, Any]) -> list[str]:
    """Every contradiction between a config's training sampler, dataset and model, with what to change.

    Example:
        >>> loader = {"sampler": {"type": "StreamSampler"}, "dataset": {"history": "stream", "queue_length": 3}}
        >>> stream_problems({"train_dataloader": loader})[0].partition(";")[0]
        'train_dataloader.dataset.queue_length is 3, but a frame of a stream is alone'
    """
    return [*_training_problems(root), *_evaluation_problems(root)]


def _training_problems(root: Mapping[str, Any]) -> Iterator[str]:
    loader = _node(root, "train_dataloader")
    sampler, dataset = _node(loader, "sampler"), _node(loader, "dataset")
    has_sampler = _is_stream_sampler(sampler)
    # Of a data set of another class only the run can tell whether it gives streams.
    is_known = "history" in dataset or _name(dataset) == "NuScenesBEVDataset"
    history = dict.get(dataset, "history", "random")
    if has_sampler and is_known and history != "stream":
        yield (
            f"train_dataloader.sampler is StreamSampler, but train_dataloader.dataset.history is {history!r}; "
            f"{_REMEDY}."
        )
    if history == "stream" and not has_sampler:
        name = _name(sampler) or "EpochSampler (the default)"
        yield f"train_dataloader.dataset.history is 'stream', but train_dataloader.sampler is {name}; {_REMEDY}."
    if history == "stream" and dict.get(dataset, "queue_length") not in (None, 1):
        yield (
            f"train_dataloader.dataset.queue_length is {dict.get(dataset, 'queue_length')}, but a frame of a stream is "
            "alone; set it to 1, or history to 'random'."
        )
    if history == "stream" and dict.get(dataset, "on_error") == "skip":
        yield (
            "train_dataloader.dataset.on_error is 'skip', but a frame in place of a defective one would tear its "
            "stream; repair the data and set it to 'strict'."
        )
    if history == "stream" and dict.get(dataset, "test_mode"):
        yield "train_dataloader.dataset.test_mode is True, but streams are for training; leave it out."
    if (has_sampler or history == "stream") and dict.get(_node(root, "model"), "use_history") is False:
        yield (
            "model.use_history is False, but streams carry the history from step to step; set it to True, or train on "
            "single frames: sampler=dict(type=EpochSampler), history='random', queue_length=1."
        )
    sizes = dict.get(sampler, "batch_size"), dict.get(loader, "batch_size", 1)
    if has_sampler and sizes[0] not in (None, sizes[1]):
        yield (
            f"train_dataloader.sampler.batch_size is {sizes[0]}, but train_dataloader.batch_size is {sizes[1]}; leave "
            "the sampler's out."
        )


def _evaluation_problems(root: Mapping[str, Any]) -> Iterator[str]:
    for name in ("val_dataloader", "test_dataloader"):
        if _is_stream_sampler(_node(_node(root, name), "sampler")):
            yield f"{name}.sampler is StreamSampler, which is for training; use dict(type=SceneSampler)."


def _is_stream_sampler(sampler: dict[str, Any]) -> bool:
    return _name(sampler) == "StreamSampler"


def _name(node: dict[str, Any]) -> str:
    return type_name(dict.get(node, "type", "")).rpartition(".")[2]


def _node(parent: Mapping[str, Any], key: str) -> dict[str, Any]:
    # Not `parent[key]`: a lazy config would import the types that it names.
    found = dict.get(parent, key) if isinstance(parent, dict) else None
    return found if isinstance(found, dict) else {}
