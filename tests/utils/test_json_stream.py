"""Streaming JSON equals json.loads, wherever the pieces are cut."""

import io
import json

import pytest

from perception.utils import json_stream
from perception.utils.json_stream import JsonStream

RECORDS = [{"token": "a", "x": [1.5, -2e-3], "s": 'q"}],{'}, 12345, "ü\n", None, {"nested": {"b": [[]]}}]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 4096])
@pytest.mark.parametrize("indent", [None, 1])
def test_array_equals_json_loads(monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    # A defect is told from a cut by the length of what is left, so a value must fit into a piece.
    monkeypatch.setattr(JsonStream, "_read", _grow_slowly(JsonStream._read, chunk))
    text = " " + json.dumps(RECORDS, indent=indent, ensure_ascii=False) + "\n"
    values = list(JsonStream(io.StringIO(text)).array())
    assert [value for value, _ in values] == RECORDS
    assert [json.loads(part) for _, part in values] == RECORDS


def _grow_slowly(read, chunk):
    def wrapped(self):
        json_stream._CHUNK = chunk
        result = read(self)
        json_stream._CHUNK = 1 << 20
        return result

    return wrapped


def test_object_gives_its_keys():
    stream = JsonStream(io.StringIO('{"a": 12, "b": [1, 2], "c": {}}'))
    assert [(key, stream.value()[0]) for key in stream.keys()] == [("a", 12), ("b", [1, 2]), ("c", {})]
    assert stream.peek() == ""


@pytest.mark.parametrize("text", ["", "{", '[{"a": 1} {"b": 2}]', '[{"a": }]', "[1, 2", "[{]"])
def test_broken_text_is_refused(text):
    with pytest.raises(json.JSONDecodeError):
        list(JsonStream(io.StringIO(text)).array())


def test_defect_in_a_long_file_is_found_without_reading_it_all(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 100)
    file = io.StringIO("[{bad}, " + ", ".join(["1"] * 10_000) + "]")
    with pytest.raises(json.JSONDecodeError):
        list(JsonStream(file).array())
    assert file.tell() < 1000
