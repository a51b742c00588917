"""Lines of progress, and names in messages."""

import io
import sys

import pytest

from perception.utils import Progress, name_some, progress, show_progress


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_REDRAWS", 0.0)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_every_item_is_given_and_counted(monkeypatch, no_pause, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(show_progress([3, 1, 2], "Sorting")) == [3, 1, 2]
    text = sys.stderr.getvalue()
    assert "Sorting: 1/3 items" in text
    assert "Sorting: 3 items in 0." in text
    assert text.endswith("\n")
    assert ("\r" in text) == (stream is Terminal)


def test_an_unknown_total_is_no_obstacle(monkeypatch, no_pause):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(show_progress(iter("ab"), "Reading")) == ["a", "b"]
    assert "Reading: 1 items" in sys.stderr.getvalue()


def test_lines_keep_their_distance_and_silence_is_kept(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Progress("Quick", total=100)
    for _ in range(100):
        bar.advance()
    assert sys.stderr.getvalue() == ""
    assert list(show_progress([1], "Mute", is_enabled=False)) == [1]
    assert sys.stderr.getvalue() == ""


def test_some_names():
    assert name_some(["a", "b"]) == "a, b"
    assert name_some("abcdefg") == "a, b, c, d, e and 2 more"
