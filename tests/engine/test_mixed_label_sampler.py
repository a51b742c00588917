"""The sampler of frames with different labels: exact ratio, any number of ranks, positions, visits."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.engine import EpochSampler, MixedLabelSampler, balance_workloads
from perception.engine.data_loading import build_dataloader
from perception.engine.epoch_dataset import VisitIndex


class Frames:
    """Frames with label kinds; an item tells what it was asked for."""

    def __init__(self, kinds: Sequence[tuple[str, ...]]) -> None:
        self.label_kinds = list(kinds)

    def __len__(self) -> int:
        return len(self.label_kinds)

    def __getitem__(self, index: int) -> tuple:
        return index, None

    def read_visit(self, index: int, *, visit: int) -> tuple:
        return index, visit


def frames(num_det: int, num_seg: int, num_both: int = 0) -> Frames:
    return Frames([("det",)] * num_det + [("seg",)] * num_seg + [("det", "seg")] * num_both)


def make(dataset: Frames, *, world: int = 1, **options: Any) -> list[MixedLabelSampler]:
    options = {"ratio": {"det": 1, "seg": 1}, "seed": 3, **options}
    return [MixedLabelSampler(dataset, rank=rank, world_size=world, **options) for rank in range(world)]


def global_batches(samplers: Sequence[MixedLabelSampler], epoch: int) -> list[list[VisitIndex]]:
    """Batches over all ranks, in the order of slots."""
    parts = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
    size = samplers[0].batch_size
    return [
        [part[step + slot] for slot in range(size) for part in parts]
        for step in range(0, len(parts[0]), size)
    ]


@settings(max_examples=40, deadline=None)
@given(
    num_det=st.integers(1, 30),
    num_seg=st.integers(1, 9),
    share=st.integers(1, 3),
    world=st.sampled_from([1, 2, 4]),
    epoch=st.integers(0, 2),
    data=st.data(),
)
def test_ratio_ranks_and_positions(
    num_det: int, num_seg: int, share: int, world: int, epoch: int, data: st.DataObject
) -> None:
    """The ratio is exact in each global batch, which is the same on any number of ranks; positions skip exactly."""
    dataset = frames(num_det, num_seg)
    whole = 4 * (share + 1)
    options: dict[str, Any] = {"ratio": {"det": share, "seg": 1}}
    (alone,) = make(dataset, batch_size=whole, **options)
    expected = global_batches([alone], epoch)
    assert len(expected) == -(-len(dataset) // whole)
    for batch in expected:
        counts = Counter(kind for index in batch for kind in dataset.label_kinds[index])
        assert counts == {"det": 4 * share, "seg": 4}
        assert all(index.epoch == epoch for index in batch)
    samplers = make(dataset, world=world, batch_size=whole // world, **options)
    found = global_batches(samplers, epoch)
    assert found == expected
    assert [[i.visit for i in batch] for batch in found] == [[i.visit for i in batch] for batch in expected]
    for sampler in samplers:
        consumed = data.draw(st.integers(0, len(sampler)))
        rest = list(sampler)[consumed:]
        sampler.set_position(epoch=epoch, num_consumed=consumed)
        assert sampler.position == (epoch, consumed)
        assert list(sampler) == rest


def test_each_rank_has_its_share_of_each_kind() -> None:
    dataset = frames(40, 40)
    for sampler in make(dataset, world=4, batch_size=4):
        kinds = [dataset.label_kinds[index][0] for index in sampler]
        for start in range(0, len(kinds), 4):
            assert sorted(kinds[start : start + 4]) == ["det", "det", "seg", "seg"]


@settings(max_examples=30, deadline=None)
@given(num_det=st.integers(1, 12), num_seg=st.integers(1, 12), short=st.integers(1, 20))
def test_a_pool_is_passed_whole_before_it_is_passed_again(num_det: int, num_seg: int, short: int) -> None:
    """Across epochs, whatever their length; and no visit of a frame is like another."""
    dataset = frames(num_det, num_seg)
    (sampler,) = make(dataset, batch_size=4, samples_per_epoch=short)
    walk = [index for epoch in range(6) for batch in global_batches([sampler], epoch) for index in batch]
    for kind, size in (("det", num_det), ("seg", num_seg)):
        drawn = [index for index in walk if dataset.label_kinds[index] == (kind,)]
        assert len(drawn) == len(walk) // 2
        for start in range(0, len(drawn) - size + 1, size):
            assert len(set(drawn[start : start + size])) == size
    assert len({(int(index), index.visit) for index in walk}) == len(walk)


def test_equal_shares_of_what_there_is_by_default() -> None:
    assert make(frames(5, 3), ratio=None, batch_size=4)[0].counts == {"det": 2, "seg": 2}
    (sampler,) = make(frames(5, 0), ratio=None, batch_size=2)
    assert sampler.counts == {"det": 2}
    assert len(set(list(sampler)[:4])) == 4


def test_orders_follow_seed_and_pass() -> None:
    dataset = frames(30, 30)
    (first,), (same,), (other,), (plain,) = (
        make(dataset, batch_size=10, **options) for options in ({}, {}, {"seed": 4}, {"shuffle": False})
    )
    assert list(first) == list(same) != list(other)
    assert [int(index) for index in plain][:10] == [0, 1, 2, 3, 4, 30, 31, 32, 33, 34]
    assert global_batches([first], 0) != global_batches([first], 1)


def test_a_frame_with_both_labels_is_in_both_pools() -> None:
    dataset = frames(1, 1, num_both=1)
    (sampler,) = make(dataset, batch_size=4)
    batch = list(sampler)
    assert sorted(map(int, batch)) == [0, 1, 2, 2]
    assert len({index.visit for index in batch if index == 2}) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_gives_its_batch_size_and_hands_visits_on(num_workers: int) -> None:
    dataset = frames(4, 2)
    config = dict(
        dataset=dataset,
        sampler=dict(type=MixedLabelSampler, ratio=dict(det=1, seg=1)),
        batch_size=4,
        num_workers=num_workers,
        collate_fn=dict(type=list),
    )
    loader = build_dataloader(config, seed=0)
    assert loader.sampler.batch_size == 4
    loader.sampler.set_epoch(1)
    seen = [item for batch in loader for item in batch]
    assert seen == [(int(index), index.visit) for index in loader.sampler]
    plain = build_dataloader({**config, "sampler": dict(type=EpochSampler)}, seed=0)
    assert {item[1] for batch in plain for item in batch} == {None}
    with pytest.raises(ValueError, match="MixedLabelSampler has the batch size 2, the loader 4"):
        build_dataloader({**config, "sampler": {**config["sampler"], "batch_size": 2}}, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": {"det": 1, "seg": 2}, "batch_size": 4}, "4 × 1 rank.*cannot be divided.*a multiple of 3"),
        ({"ratio": {"det": 1, "sag": 1}}, "'sag', which no frame.*Did you mean 'seg'"),
        ({"ratio": {"det": 1, "seg": 0}}, "ratio.seg is 0"),
        ({"ratio": {}}, "ratio is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2, "samples_per_epoch": 0}, "samples_per_epoch is 0"),
    ],
)
def test_what_cannot_be_drawn(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(frames(3, 3), **options)


def test_a_dataset_that_does_not_tell_its_kinds() -> None:
    with pytest.raises(ValueError, match="list does not. Use dataset=dict"):
        MixedLabelSampler([1, 2], ratio={"det": 1})
    (sampler,) = make(frames(3, 3), batch_size=2)
    with pytest.raises(ValueError, match="lies outside an epoch of 6 samples"):
        sampler.set_position(epoch=0, num_consumed=7)


def test_the_batch_from_that_methods_are_measured_on_has_all_labels() -> None:
    assert balance_workloads._batch_from(frames(6, 3), 0, 4) == [0, 1, 6, 7]
    assert balance_workloads._batch_from(frames(6, 0), 0, 4) == [0, 1, 2, 3]
    assert balance_workloads._batch_from([5, 6], 0, 4) == [0, 1]
