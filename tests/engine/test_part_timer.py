"""Each moment of a step counts to one part."""

import pytest
import torch

from perception.engine.part_timer import REST, PartTimer


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> PartTimer:
    return PartTimer(torch.device("cpu"), clock=clock)


def test_an_inner_part_stops_the_outer_ones_clock(timer: PartTimer, clock: Clock) -> None:
    timer.begin_step()
    clock.now += 1
    with timer.part("outer"):
        clock.now += 2
        with timer.part("inner"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    timer.end_step()
    assert timer.seconds == {REST: 17.0, "outer": 10.0, "inner": 4.0}
    assert timer.calls == {"outer": 1, "inner": 1}
    assert timer.num_steps == 1


def test_between_steps_nothing_is_counted(timer: PartTimer, clock: Clock) -> None:
    for _ in range(2):
        timer.begin_step()
        clock.now += 1
        timer.end_step()
        clock.now += 100
    assert timer.seconds == {REST: 2.0}
    assert timer.current is None


def test_a_part_takes_the_place_of_another(timer: PartTimer, clock: Clock) -> None:
    timer.begin_step()
    with timer.part("first"):
        clock.now += 1
        timer.switch("second")
        clock.now += 2
    timer.end_step()
    assert timer.seconds == {REST: 0.0, "first": 1.0, "second": 2.0}


def test_a_part_that_raises_is_left(timer: PartTimer) -> None:
    timer.begin_step()
    with pytest.raises(KeyError), timer.part("broken"):
        raise KeyError
    assert timer.current == REST
