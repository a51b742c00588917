"""Streams: what each slot of each rank sees, in which order, on any number of ranks, from any position."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import toy_world
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.engine import EpochSampler, SceneSampler, StreamSampler
from perception.engine.data_loading import build_dataloader
from perception.engine.epoch_dataset import StreamIndex


class Scenes:
    def __init__(self, lengths: Sequence[int]) -> None:
        self.scene_tokens = [f"s{scene}" for scene, length in enumerate(lengths) for _ in range(length)]


class StreamedDataset(torch.utils.data.Dataset):
    """Items say what they were asked for."""

    is_streamed = True

    def __init__(self, lengths: Sequence[int]) -> None:
        self.scene_tokens = Scenes(lengths).scene_tokens

    def __len__(self) -> int:
        return len(self.scene_tokens)

    def read_streamed(self, idx: int, *, previous: int | None, visit: int) -> tuple:
        return idx, previous, visit

    def __getitem__(self, idx: int) -> tuple:
        raise AssertionError("a frame of a stream was read as an item of its own")


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def read(sampler: StreamSampler, epoch: int = 0) -> list[list[StreamIndex]]:
    """The sampler's batches of an epoch."""
    sampler.set_epoch(epoch)
    indices = list(sampler)
    size = sampler.batch_size
    return [indices[first : first + size] for first in range(0, len(indices), size)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    batch=st.integers(1, 4),
    epoch=st.integers(0, 3),
    max_frames=st.sampled_from([None, 2, 3, 5]),
)
def test_streams(lengths: list[int], batch: int, epoch: int, max_frames: int | None) -> None:
    """All frames, fewer than a batch of them twice; a history is the frame that the slot had just before."""
    batch = min(batch, sum(lengths))
    dataset = Scenes(lengths)
    sampler = StreamSampler(dataset, batch_size=batch, max_frames=max_frames, seed=1, rank=0, world_size=1)
    batches = read(sampler, epoch)
    total = sum(lengths)
    assert len(sampler) == batch * len(batches) == batch * -(-total // batch)
    counts = Counter(int(index) for indices in batches for index in indices)
    assert set(counts) == set(range(total))
    assert len(sampler) - total < batch
    assert max(counts.values()) <= 2
    longest = 0
    for slot in range(batch):
        run, before = 0, None
        for indices in batches:
            index = indices[slot]
            assert index.epoch == epoch
            if index.previous is None:
                run = 0
            else:
                assert index.previous == before == index - 1
                assert dataset.scene_tokens[before] == dataset.scene_tokens[index]
            run, before = run + 1, int(index)
            longest = max(longest, run)
    assert longest <= min(max(lengths), max_frames or max(lengths))
    # Where history is missing, a part begins or the stream does.
    num_parts = sum(-(-length // (max_frames or length)) for length in lengths)
    starts = sum(index.previous is None for indices in batches for index in indices)
    assert starts <= num_parts + 2 * batch


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS, data=st.data(), short=st.sampled_from([None, 3, 7]), streams=st.sampled_from([1, 2, 4])
)
def test_ranks_and_positions(
    lengths: list[int], data: st.DataObject, short: int | None, streams: int
) -> None:
    """1, 2 and 4 ranks with as many streams have the same global batches; a position skips what came before."""
    if sum(lengths) < streams:
        return
    epoch = data.draw(st.integers(0, 2))
    seen = []
    for world in (size for size in (1, 2, 4) if size <= streams):
        ranks = [
            StreamSampler(
                Scenes(lengths),
                batch_size=streams // world,
                samples_per_epoch=short,
                rank=rank,
                world_size=world,
            )
            for rank in range(world)
        ]
        batches = [read(sampler, epoch) for sampler in ranks]
        assert len({len(part) for part in batches}) == 1
        seen.append(
            [
                sorted(
                    (int(i), i.previous if i.previous is not None else -1, i.visit)
                    for part in step
                    for i in part
                )
                for step in zip(*batches, strict=True)
            ]
        )
        sampler = data.draw(st.sampled_from(ranks))
        whole = [(int(index), index.previous, index.visit) for part in read(sampler, epoch) for index in part]
        consumed = data.draw(st.integers(0, len(sampler)))
        sampler.set_position(epoch=epoch, num_consumed=consumed)
        assert sampler.position == (epoch, consumed)
        assert [(int(index), index.previous, index.visit) for index in sampler] == whole[consumed:]
    assert all(other == seen[0] for other in seen)


def test_short_epochs_go_on_where_the_last_one_ended() -> None:
    """Also inside a scene: the first batch of an epoch then has its history."""
    whole = StreamSampler(Scenes([5, 4, 6, 3]), batch_size=2, seed=4, rank=0, world_size=1)
    short = StreamSampler(
        Scenes([5, 4, 6, 3]), batch_size=2, seed=4, samples_per_epoch=7, rank=0, world_size=1
    )
    assert (whole.epoch_length, short.epoch_length) == (9, 4)
    joined = [batch for epoch in range(9) for batch in read(short, epoch)]
    expected = [batch for epoch in range(4) for batch in read(whole, epoch)]
    assert joined == expected
    assert [[i.previous for i in b] for b in joined] == [[i.previous for i in b] for b in expected]
    assert any(index.previous is not None for index in read(short, 1)[0])


def test_a_visit_is_a_part_in_a_pass() -> None:
    sampler = StreamSampler(Scenes([6, 4]), batch_size=1, max_frames=3, seed=0, rank=0, world_size=1)
    visits: dict[int, list[int]] = {}
    for epoch in (0, 1):
        for (index,) in read(sampler, epoch):
            visits.setdefault(index.visit, []).append(int(index))
    assert sorted(visits.values()) == sorted([[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]] * 2)


def test_the_order_is_random_in_each_epoch_and_by_seed() -> None:
    def order(seed: int, epoch: int, **options: Any) -> list[int]:
        sampler = StreamSampler(Scenes([2] * 12), seed=seed, rank=0, world_size=1, **options)
        return [int(index) for (index,) in read(sampler, epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 1, shuffle=False) == list(range(24))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"samples_per_epoch": 0}, "samples_per_epoch is 0; it must be at least 1"),
        ({"max_frames": 1}, "max_frames is 1; it must be at least 2"),
        (
            {"batch_size": 4, "world_size": 3},
            "10 samples, less than the 12 streams of batch_size 4 on 3 rank",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamSampler(Scenes([4, 6]), **{"rank": 0, "world_size": 1, **options})


def test_bad_positions_and_datasets() -> None:
    with pytest.raises(ValueError, match="list does not name its scenes"):
        StreamSampler([1, 2])
    with pytest.raises(ValueError, match="lies outside an epoch of 10 samples"):
        StreamSampler(Scenes([4, 6])).set_position(epoch=0, num_consumed=11)


def test_an_index_survives_the_way_to_a_worker() -> None:
    index = StreamIndex.in_stream(3, epoch=1, previous=None, visit=7)
    copied = copy.copy(index)  # by __reduce__, as a queue between processes
    assert (int(copied), copied.epoch, copied.previous, copied.visit) == (3, 1, None, 7)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_keeps_the_slots(num_workers: int) -> None:
    """With workers, and resumed in mid-epoch; the sampler gets the loader's batch size."""
    config = dict(
        dataset=StreamedDataset([5, 4, 3]),
        sampler=dict(type=StreamSampler, max_frames=3),
        batch_size=3,
        num_workers=num_workers,
        collate_fn=list,
    )
    loader = build_dataloader(config, seed=2)
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    expected = read(StreamSampler(StreamedDataset([5, 4, 3]), batch_size=3, max_frames=3, seed=2))
    assert batches == [[(int(i), i.previous, i.visit) for i in indices] for indices in expected]
    loader.sampler.set_position(epoch=0, num_consumed=6)
    assert list(loader) == batches[2:]


@pytest.mark.parametrize(
    ("dataset", "sampler", "message"),
    [
        (StreamedDataset([4]), EpochSampler, "the sampler is EpochSampler, which gives no streams"),
        (StreamedDataset([4]), SceneSampler, "the sampler is SceneSampler, which gives no streams"),
        (toy_world.ToyDataset(), StreamSampler, "this dataset, ToyDataset, is not"),
    ],
)
def test_parts_that_do_not_go_together(dataset: Any, sampler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_dataloader(dict(dataset=dataset, sampler=dict(type=sampler)), seed=0)


def test_a_sampler_of_other_batches() -> None:
    with pytest.raises(ValueError, match="StreamSampler has the batch size 2, the loader 3"):
        build_dataloader(
            dict(dataset=StreamedDataset([9]), sampler=dict(type=StreamSampler, batch_size=2), batch_size=3),
            seed=0,
        )
