"""Something that is done before each exchange; `test_rank_watch` has the rest."""

from perception.engine.rank_notes import before_exchanges, exchange


def test_preparations_end_and_the_outer_ones_come_back() -> None:
    done: list[str] = []
    stop_outer = before_exchanges(lambda: done.append("outer"))
    with exchange("one"):
        stop_inner = before_exchanges(lambda: done.append("inner"))
        with exchange("two"):
            pass
    stop_inner()
    with exchange("three"):
        pass
    stop_outer()
    with exchange("four"):
        pass
    assert done == ["outer", "inner", "outer"]
