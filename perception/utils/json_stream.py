"""JSON values out of a file one after another, with only a piece of the text in memory at a time."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 22  # characters; no record of an index or a table is longer
_WHITESPACE = re.compile(r"[ \t\n\r]*")


class JsonStream:
    """Reads the values of a JSON text in order.

    Args:
        file: the text, opened with `newline=""`.

    Example:
        >>> import io
        >>> stream = JsonStream(io.StringIO('[{"a": 1}, 2]'))
        >>> [value for value, _ in stream.array()]
        [{'a': 1}, 2]
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._position = 0
        self._is_at_end = False

    def peek(self) -> str:
        """The next character that is not white space; "" at the end.

        Raises:
            UnicodeDecodeError: the file is not UTF-8.
        """
        while True:
            match = _WHITESPACE.match(self._text, self._position)
            self._position = self._position if match is None else match.end()
            if self._position < len(self._text) or not self._read():
                return self._text[self._position : self._position + 1]

    def expect(self, character: str) -> None:
        """Pass over one character.

        Raises:
            json.JSONDecodeError: another one is there.
        """
        if self.peek() != character:
            raise json.JSONDecodeError(f"Expecting {character!r}", self._text, self._position)
        self._position += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and its text.

        Raises:
            json.JSONDecodeError: the text is not JSON.
        """
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError:
                # The piece may end within the value; a defect further from its end is one.
                if len(self._text) - self._position > _CHUNK or not self._read():
                    raise
                continue
            if end < len(self._text) or not self._read():  # a number may go on in the next piece
                text = self._text[self._position : end]
                self._position = end
                return value, text

    def array(self) -> Iterator[tuple[Any, str]]:
        """Values of an array, and their texts.

        Raises:
            json.JSONDecodeError: the text is not an array.
        """
        self.expect("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def keys(self) -> Iterator[str]:
        """Keys of an object; the caller takes each key's value before it asks for the next key.

        Raises:
            json.JSONDecodeError: the text is not an object.
        """
        self.expect("{")
        while self.peek() != "}":
            key, _ = self.value()
            self.expect(":")
            yield key
            if self.peek() != "}":
                self.expect(",")
        self.expect("}")

    def _read(self) -> bool:
        """Append the next piece, and drop what has been read."""
        piece = "" if self._is_at_end else self._file.read(_CHUNK)
        self._is_at_end = not piece
        if piece:
            self._text = self._text[self._position :] + piece
            self._position = 0
        return bool(piece)
