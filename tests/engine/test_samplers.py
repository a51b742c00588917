"""Samplers and loaders: what each rank sees, in which order, in which epoch."""

from collections.abc import Sequence
from typing import Any

import pytest
import toy_world
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.engine import EpochSampler, SceneBatchSampler, SceneSampler
from perception.engine.data_loading import build_dataloader


class Scenes:
    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens

    def scene_tokens(self) -> list[str]:
        return list(self.tokens)


@settings(max_examples=50, deadline=None)
@given(num=st.integers(1, 40), world=st.integers(1, 5), epoch=st.integers(0, 3), data=st.data())
def test_epoch_sampler(num: int, world: int, epoch: int, data: st.DataObject) -> None:
    """Every sample is seen, ranks are equally long, and a position skips exactly what came before."""
    samplers = [EpochSampler(range(num), seed=1, rank=rank, world_size=world) for rank in range(world)]
    parts = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
        assert all(index.epoch == epoch for index in parts[-1])
        consumed = data.draw(st.integers(0, len(sampler)))
        sampler.set_position(epoch=epoch, num_consumed=consumed)
        assert sampler.position == (epoch, consumed)
        assert list(sampler) == parts[-1][consumed:]
    assert {len(part) for part in parts} == {len(samplers[0])}
    assert {index for part in parts for index in part} == set(range(num))
    # The global order is that of one rank, whatever the number of ranks.
    alone = EpochSampler(range(num), seed=1, rank=0, world_size=1)
    alone.set_epoch(epoch)
    joined = [index for step in zip(*parts, strict=True) for index in step]
    assert joined[:num] == list(alone)


def test_epochs_differ_and_positions_are_checked() -> None:
    sampler = EpochSampler(range(20), seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    with pytest.raises(ValueError, match="lies outside an epoch of 20 samples"):
        sampler.set_position(epoch=0, num_consumed=21)
    with pytest.raises(ValueError, match="the training set is empty"):
        EpochSampler([])


@settings(max_examples=50, deadline=None)
@given(num=st.integers(1, 20), short=st.integers(1, 30), world=st.integers(1, 3), shuffle=st.booleans())
def test_short_epochs_see_all_samples_equally_often(num: int, short: int, world: int, shuffle: bool) -> None:
    """Short epochs, joined, are the whole epochs, joined; several ranks see what one sees."""
    whole = EpochSampler(range(num), shuffle=shuffle, rank=0, world_size=1)
    cut = EpochSampler(range(num), samples_per_epoch=short, shuffle=shuffle, rank=0, world_size=1)
    ranks = [
        EpochSampler(range(num), samples_per_epoch=short, shuffle=shuffle, rank=rank, world_size=world)
        for rank in range(world)
    ]
    joined: list[int] = []
    for epoch in range(5):
        for sampler in (cut, *ranks):
            sampler.set_epoch(epoch)
        part = list(cut)
        assert len(part) == len(cut) == short
        assert [index for step in zip(*ranks, strict=True) for index in step][:short] == part
        joined += part
    expected: list[int] = []
    for epoch in range(-(-5 * short // num)):
        whole.set_epoch(epoch)
        expected += list(whole)
    assert joined == expected[: 5 * short]


def test_an_epoch_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="samples_per_epoch is 0"):
        EpochSampler(range(3), samples_per_epoch=0)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    world=st.integers(1, 5),
    batch=st.integers(1, 4),
)
def test_scene_sampler(lengths: list[int], world: int, batch: int) -> None:
    """Each sample once, each scene on one rank in order; in a batch no two frames of a scene."""
    tokens = [f"s{scene}" for scene, length in enumerate(lengths) for _ in range(length)]
    samplers = [SceneSampler(Scenes(tokens), rank=rank, world_size=world) for rank in range(world)]
    parts = [list(sampler) for sampler in samplers]
    assert sorted(index for part in parts for index in part) == list(range(len(tokens)))
    for sampler, part in zip(samplers, parts, strict=True):
        assert len(sampler) == len(part)
        assert part == sorted(part)
    owners = {token: {rank for rank, part in enumerate(parts) for index in part if tokens[index] == token}
              for token in tokens}  # fmt: skip
    assert all(len(ranks) == 1 for ranks in owners.values())
    assert max(map(len, parts)) - min(map(len, parts)) <= max(lengths)
    for sampler, part in zip(samplers, parts, strict=True):
        batches = list(SceneBatchSampler(sampler, batch_size=batch))
        assert sorted(index for indices in batches for index in indices) == sorted(part)
        place = {index: number for number, indices in enumerate(batches) for index in indices}
        for index in part:
            assert len({tokens[other] for other in batches[place[index]]}) == len(batches[place[index]])
            if index + 1 in place and tokens[index + 1] == tokens[index]:
                assert place[index + 1] == place[index] + 1


def test_scene_sampler_needs_scenes() -> None:
    with pytest.raises(ValueError, match="list does not name its scenes"):
        SceneSampler([1, 2])


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_workers_know_the_epoch(options: dict[str, Any]) -> None:
    config = dict(dataset=toy_world.ToyDataset(), sampler=dict(type=EpochSampler), batch_size=4, **options)
    loader = build_dataloader(config, seed=0)
    for epoch in (0, 1, 5):
        loader.sampler.set_epoch(epoch)
        seen = [sample.epoch for batch in loader for sample in batch["data_samples"]]
        assert seen == [epoch] * 10
    del loader


def test_unknown_loader_key() -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['num_worker'\]"):
        build_dataloader(dict(dataset=[1], num_worker=2), seed=0)


def test_scene_tokens_may_be_a_property() -> None:
    class Listed:
        scene_tokens = ("a", "b", "a")

    assert list(SceneSampler(Listed(), rank=0, world_size=1)) == [0, 2, 1]
