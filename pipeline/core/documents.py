"""Read the rows of a data file, or of a directory of them, by their number.

JSON lines and parquet files may be larger than memory: lines are found by their offset, and of a
parquet file only some rows of the needed columns are read at a time. A JSON list is read whole, and
a plain text file is one row. Whether a JSON file holds a list or lines is seen in its content. What
a row must hold is checked by who reads it: `read_texts`, or `pipeline.calibration.conversations`.
"""

import json
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.data_files import EXPECTED_SUFFIXES, data_suffix, plain_file
from pipeline.core.errors import InputError, short_repr
from pipeline.core.texts import encodable

ROW_KEYS: Final = ("messages", "conversations", "text")
MAX_WHOLE_BYTES: Final = 1 << 30
MAX_LINE_BYTES: Final = 1 << 26
MAX_ROW_GROUP_BYTES: Final = 1 << 32
BATCH_ROWS: Final = 1024
PEEK_BYTES: Final = 1 << 12
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class MalformedRow:
    """Stand for a row that is there and cannot be read, such as a line that is not JSON."""

    reason: str


class Documents(ABC):
    """Rows that are found by their number, from 0 to `num_rows` - 1."""

    num_rows: int

    @abstractmethod
    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        """Yield the rows of those numbers in that order, each with its place for error messages.

        A line that is not JSON is a MalformedRow. Raises InputError for a file that is damaged.
        """


@contextmanager
def open_documents(path: Path) -> Iterator[Documents]:
    """Open a file, or all data files below a directory in the order of their paths.

    Compressed files are expanded into a temporary directory for the block. Raises InputError for a
    name that is none of a data file, and for a file that is too large to be read whole, damaged, or
    whose content does not match its name.
    """
    with TemporaryDirectory(prefix="quantline-") as work:
        if not path.is_dir():
            yield _open_file(path, Path(work))
            return
        files = sorted(
            file for file in path.rglob("*") if data_suffix(file.name) and file.is_file()
        )
        if not files:
            raise InputError(f"{path}: no data file in it; expected {EXPECTED_SUFFIXES}")
        yield _Several([_open_file(file, Path(work)) for file in files])


def read_texts(path: Path) -> list[str]:
    """Return the documents of a file in their order, without the empty ones.

    A row is an object with a key `text` (other keys are ignored) or, in a JSON list, a string.
    Raises InputError with the place of the first row that is anything else.
    """
    if path.is_dir():
        raise InputError(f"{path}: a directory; expected a text file")
    with open_documents(path) as documents:
        rows = documents.rows(range(documents.num_rows))
        texts = [_text_of(row, where) for where, row in rows]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError(f"{path}: no text in it; expected at least one document")
    return texts


def _text_of(row: object, where: str) -> str:
    if isinstance(row, MalformedRow):
        raise InputError(f"{where}: {row.reason}")
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise InputError(f'{where}: found {short_repr(row)}; expected an object with a "text"')
    return encodable(text, where)


def _open_file(path: Path, work_dir: Path) -> Documents:
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path or put the text there")
    suffix = data_suffix(path.name)
    if suffix is None:
        raise InputError(f"{path}: unknown kind of text file; expected {EXPECTED_SUFFIXES}")
    plain = plain_file(path, work_dir)
    if suffix == ".parquet":
        return _Parquet(path, plain)
    is_json = suffix in (".json", ".jsonl")
    if is_json and not _begins_as_list(plain):
        return _JsonLines(path, plain)
    if (size := plain.stat().st_size) > MAX_WHOLE_BYTES:
        raise InputError(
            f"{path}: {size} bytes, expected at most {MAX_WHOLE_BYTES} for a JSON list or plain "
            "text; convert it to JSON lines or parquet"
        )
    content = _read_utf8(path, plain)
    if not is_json:
        return _Rows(path, [{"text": content}])
    try:
        items = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not usable as JSON: {error}") from error
    return _Rows(path, [{"text": item} if isinstance(item, str) else item for item in items])


def _begins_as_list(plain: Path) -> bool:
    """Return whether the first character that is no space opens a JSON list."""
    with plain.open("rb") as file:
        start = file.read(PEEK_BYTES)
    return start.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _read_utf8(path: Path, plain: Path) -> str:
    try:
        return plain.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text; convert the file") from error


class _Rows(Documents):
    """Rows in memory."""

    def __init__(self, path: Path, rows: list[object]) -> None:
        self._path = path
        self._rows = rows
        self.num_rows = len(rows)

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        for number in numbers:
            yield f"{self._path}, item {number + 1}", self._rows[number]


class _JsonLines(Documents):
    """One JSON value for each line; only offsets and numbers of lines are kept, 16 bytes a line.

    `path` names the file in messages, `plain` is what is read.
    """

    def __init__(self, path: Path, plain: Path) -> None:
        self._path, self._plain = path, plain
        self._offsets, self._line_numbers = array("Q"), array("Q")
        with plain.open("rb") as file:
            offset = len(BYTE_ORDER_MARK) if file.read(3) == BYTE_ORDER_MARK else 0
            file.seek(offset)
            for number in count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    break
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(
                        f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes; split it"
                    )
                if not line.isspace():
                    self._offsets.append(offset)
                    self._line_numbers.append(number)
                offset += len(line)
        self.num_rows = len(self._offsets)

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        with self._plain.open("rb") as file:
            for number in numbers:
                file.seek(self._offsets[number])
                line = file.readline()
                yield f"{self._path}, line {self._line_numbers[number]}", _parsed(line)


def _parsed(line: bytes) -> object:
    """Return the value of a JSON line, or a MalformedRow."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return MalformedRow("not UTF-8 text; convert the file")
    except json.JSONDecodeError as error:
        return MalformedRow(f"not valid JSON: {error.msg}")
    except (ValueError, RecursionError) as error:
        return MalformedRow(f"not usable as JSON: {error}")


class _Parquet(Documents):
    """A file of Apache Parquet: https://parquet.apache.org/docs/file-format.

    `path` names the file in messages, `plain` is what is read.
    """

    def __init__(self, path: Path, plain: Path) -> None:
        self._path, self._plain = path, plain
        with _readable(path), pq.ParquetFile(plain) as file:
            columns = file.schema_arrow.names
            groups = [
                file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)
            ]
        self._ends = list(accumulate(groups))
        self.num_rows = self._ends[-1] if groups else 0
        self._columns = [key for key in ROW_KEYS if key in columns]
        if not self._columns:
            raise InputError(
                f"{path}: its columns are {short_repr(columns)}; expected one of "
                f"{', '.join(ROW_KEYS)}"
            )

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        """Read each row group once, in their order, and yield the rows in the order asked for."""
        found: dict[int, object] = {}
        with _readable(self._path), pq.ParquetFile(self._plain) as file:
            by_group = groupby(sorted(set(numbers)), key=partial(bisect_right, self._ends))
            for group, members in by_group:
                first = self._ends[group - 1] if group else 0
                found |= self._group_rows(file, group, first, list(members))
        for number in numbers:
            yield f"{self._path}, row {number + 1}", found[number]

    def _group_rows(
        self, file: pq.ParquetFile, group: int, first: int, wanted: Sequence[int]
    ) -> dict[int, object]:
        """Read the `wanted` rows of a row group, whose number `first` is, BATCH_ROWS at a time.

        A few bytes can stand for a million equal rows, which a whole row group would bring at once.
        """
        stored = file.metadata.row_group(group)
        columns = (stored.column(number) for number in range(stored.num_columns))
        size = sum(
            column.total_uncompressed_size
            for column in columns
            if column.path_in_schema.split(".")[0] in self._columns
        )
        if size > MAX_ROW_GROUP_BYTES:
            raise InputError(
                f"{self._path}: {size} bytes in one row group, expected at most "
                f"{MAX_ROW_GROUP_BYTES}; write it with smaller row groups"
            )
        found: dict[int, object] = {}
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=self._columns):
            inside = [number for number in wanted if first <= number < first + batch.num_rows]
            chosen = batch.take(pa.array([number - first for number in inside], pa.int64()))
            found.update(zip(inside, chosen.to_pylist(), strict=True))
            first += batch.num_rows
            if len(found) == len(wanted):
                break
        if len(found) < len(wanted):
            raise InputError(f"{self._path}: not readable as parquet: has fewer rows than it says")
        return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of pyarrow about a damaged file into an InputError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not readable as parquet: {reason}") from error


class _Several(Documents):
    """The rows of several files, one file after the other."""

    def __init__(self, parts: list[Documents]) -> None:
        self._parts = parts
        self._ends = list(accumulate(part.num_rows for part in parts))
        self.num_rows = self._ends[-1]

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        by_part: dict[int, list[int]] = {}
        for number in numbers:
            by_part.setdefault(bisect_right(self._ends, number), []).append(number)
        found: dict[int, tuple[str, object]] = {}
        for part, members in by_part.items():
            first = self._ends[part - 1] if part else 0
            rows = self._parts[part].rows([number - first for number in members])
            found.update(zip(members, rows, strict=True))
        for number in numbers:
            yield found[number]
