"""Reading trace files so that every mistake is reported with file, line and field."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_GZIP_MAGIC: Final = b"\x1f\x8b"

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class TraceFormatError(ValueError):
    """A trace file that cannot be read: says which file, which line (1-based), which field, and what is wrong."""

    def __init__(self, path: Path | str, line: int, field: str, problem: str) -> None:
        where = f"{path}:{line}" + (f": field {field}" if field else "")
        super().__init__(f"{where}: {problem}")
        self.path = str(path)
        self.line = line
        self.field = field
        self.problem = problem


class Row:
    """One JSON object of a trace file; the accessors check types and name the field that is wrong."""

    __slots__ = ("_data", "_path", "_prefix", "line")

    def __init__(self, path: Path, line: int, data: Mapping[str, Json], prefix: str = "") -> None:
        self._path = path
        self._data = data
        self._prefix = prefix
        self.line = line

    def __contains__(self, field: str) -> bool:
        return self._data.get(field) is not None

    def error(self, field: str, problem: str) -> TraceFormatError:
        """The error to raise for ``field`` of this row."""
        return TraceFormatError(self._path, self.line, self._prefix + field, problem)

    def _value(self, field: str) -> Json:
        value = self._data.get(field)
        if value is None:
            raise self.error(field, "is missing")
        return value

    def text(self, field: str, default: str | None = None) -> str:
        """A string; numbers are accepted as identifiers and written in decimal."""
        if default is not None and field not in self:
            return default
        value = self._value(field)
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise self.error(field, f"must be a string, not {value!r}")

    def number(self, field: str, default: float | None = None) -> float:
        """A finite number that is not negative."""
        if default is not None and field not in self:
            return default
        value = self._value(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(field, f"must be a number, not {value!r}")
        if not 0 <= value < float("inf"):
            raise self.error(field, f"must be zero or more, not {value!r}")
        return float(value)

    def count(self, field: str, default: int | None = None) -> int:
        """A whole number that is not negative."""
        if default is not None and field not in self:
            return default
        value = self._value(field)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(field, f"must be a whole number, not {value!r}")
        if value < 0:
            raise self.error(field, f"must be zero or more, not {value}")
        return value

    def flag(self, field: str) -> bool:
        """A boolean; absent means false."""
        value = self._data.get(field)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.error(field, f"must be true or false, not {value!r}")
        return value

    def ids(self, field: str) -> list[int]:
        """A list of block ids; absent means none."""
        if field not in self:
            return []
        value = self._value(field)
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {value!r}")
        ids: list[int] = []
        for i, item in enumerate(value):
            if isinstance(item, bool) or not isinstance(item, int) or item < 0:
                raise self.error(f"{field}[{i}]", f"must be a whole number of zero or more, not {item!r}")
            ids.append(item)
        return ids

    def runs(self, field: str) -> tuple[tuple[int, int], ...]:
        """A list of ``[first, count]`` pairs with counts above zero; absent means none."""
        if field not in self:
            return ()
        value = self._value(field)
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {value!r}")
        runs: list[tuple[int, int]] = []
        for i, item in enumerate(value):
            match item:
                case [int(first), int(count)] if first >= 0 and count > 0:
                    runs.append((first, count))
                case _:
                    raise self.error(f"{field}[{i}]", f"must be [first id, count above zero], not {item!r}")
        return tuple(runs)

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of identifiers; absent means none."""
        if field not in self:
            return ()
        value = self._value(field)
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {value!r}")
        found: list[str] = []
        for i, item in enumerate(value):
            if isinstance(item, bool) or not isinstance(item, (str, int)):
                raise self.error(f"{field}[{i}]", f"must be a string, not {item!r}")
            found.append(str(item))
        return tuple(found)

    def rows(self, field: str) -> list[Row]:
        """A list of objects, each a row of its own that reports fields as ``field[i].name``."""
        value = self._value(field)
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {value!r}")
        found: list[Row] = []
        for i, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.error(f"{field}[{i}]", f"must be an object, not {item!r}")
            found.append(Row(self._path, self.line, item, f"{self._prefix}{field}[{i}]."))
        return found

    def peek(self, field: str) -> Json:
        """The raw value, or None: only for telling formats apart."""
        return self._data.get(field)


def read_text(path: Path) -> str:
    """Whole file as text, unzipped if it is gzip (by content, not by name)."""
    raw = path.read_bytes()
    if raw[:2] == _GZIP_MAGIC:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise TraceFormatError(path, 1, "", f"is not a whole gzip file: {error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TraceFormatError(path, raw[: error.start].count(b"\n") + 1, "", "is not UTF-8 text") from error


def json_rows(path: Path, text: str) -> Iterator[Row]:
    """Rows of JSON Lines, or the single row of a file that is one (possibly pretty-printed) JSON object."""
    lines = text.splitlines()
    whole = _whole_object(text) if len(lines) > 1 and lines[0].strip() == "{" else None
    if whole is not None:
        yield Row(path, 1, whole)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise TraceFormatError(path, number, "", f"is not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # A number of thousands of digits, thousands of brackets.
            raise TraceFormatError(path, number, "", f"cannot be read: {error}") from error
        if not isinstance(data, dict):
            raise TraceFormatError(path, number, "", "must be a JSON object")
        yield Row(path, number, data)


def _whole_object(text: str) -> dict[str, Json] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def csv_rows(path: Path, text: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) for each record; the header must have all ``columns``."""
    # Python's own lines, so that any line end will do.
    reader = csv.DictReader(text.splitlines())
    try:
        header = reader.fieldnames or ()
    except csv.Error as error:
        raise TraceFormatError(path, 1, "", f"is not CSV: {error}") from error
    for column in columns:
        if column not in header:
            raise TraceFormatError(path, 1, column, f"is missing from the header {','.join(header)}")
    try:
        for record in reader:
            for column in columns:
                if record[column] is None:
                    raise TraceFormatError(path, reader.line_num, column, "is missing")
            yield reader.line_num, {column: record[column] for column in columns}
    except csv.Error as error:
        raise TraceFormatError(path, max(1, reader.line_num), "", f"is not CSV: {error}") from error
