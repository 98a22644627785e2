"""Read the rows of a calibration data set by their number.

JSON lines and parquet files may be larger than memory. Lines are found by their offset. Of a
parquet file, only the needed columns of one row group are read at a time. A plain text file is one
row, and a JSON list is read whole. The content of rows is checked in
`pipeline.calibration.conversations`.
"""

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, count, groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import InputError, short_repr
from pipeline.core.texts import parse_json, read_utf8

ROW_KEYS = ("messages", "conversations", "text")
DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".raw")
MAX_WHOLE_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 26


class Documents(ABC):
    """Rows that are found by their number, from 0 to `num_rows` - 1."""

    num_rows: int

    @abstractmethod
    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        """Yield the rows of those numbers in that order, each with its place for error messages.

        Raises InputError for a row that cannot be read.
        """


def open_documents(path: Path) -> Documents:
    """Open a file, or all data files below a directory in the order of their paths.

    Raises InputError for a file that has none of DATA_SUFFIXES, that is too large to be read whole,
    or whose content does not match its suffix.
    """
    if not path.is_dir():
        return _open_file(path)
    files = sorted(
        file for file in path.rglob("*") if file.suffix in DATA_SUFFIXES and file.is_file()
    )
    if not files:
        raise InputError(f"{path}: no data file in it; expected {', '.join(DATA_SUFFIXES)}")
    return _Several([_open_file(file) for file in files])


def _open_file(path: Path) -> Documents:
    if not path.is_file():
        raise InputError(f"{path}: no such file; correct the path or put the text there")
    if path.suffix == ".jsonl":
        return _JsonLines(path)
    if path.suffix == ".parquet":
        return _Parquet(path)
    if path.suffix not in DATA_SUFFIXES:
        raise InputError(f"{path}: unknown kind of text file; expected {', '.join(DATA_SUFFIXES)}")
    if (size := path.stat().st_size) > MAX_WHOLE_BYTES:
        raise InputError(
            f"{path}: {size} bytes, expected at most {MAX_WHOLE_BYTES} for {path.suffix}; convert "
            "it to .jsonl or .parquet"
        )
    content = read_utf8(path)
    if path.suffix == ".json":
        items = parse_json(content, str(path))
        if not isinstance(items, list):
            raise InputError(f"{path}: expected a list of rows, found {short_repr(items)}")
        return _Rows(path, [{"text": item} if isinstance(item, str) else item for item in items])
    return _Rows(path, [{"text": content}])


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
    """One JSON value for each line; only offsets and numbers of lines are kept, 16 bytes a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets, self._line_numbers = array("Q"), array("Q")
        offset = 0
        with path.open("rb") as file:
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
        with self._path.open("rb") as file:
            for number in numbers:
                where = f"{self._path}, line {self._line_numbers[number]}"
                file.seek(self._offsets[number])
                try:
                    text = file.readline().decode("utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(f"{where}: not UTF-8 text; convert the file") from error
                yield where, parse_json(text.rstrip("\n"), where)


class _Parquet(Documents):
    """A file of Apache Parquet: https://parquet.apache.org/docs/file-format."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _readable(path), pq.ParquetFile(path) as file:
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
        with _readable(self._path), pq.ParquetFile(self._path) as file:
            by_group = groupby(sorted(set(numbers)), key=partial(bisect_right, self._ends))
            for group, members in by_group:
                first = self._ends[group - 1] if group else 0
                wanted = list(members)
                table = file.read_row_group(group, columns=self._columns)
                inside = pa.array([number - first for number in wanted])
                chosen = table.take(inside).to_pylist()
                found.update(zip(wanted, chosen, strict=True))
        for number in numbers:
            yield f"{self._path}, row {number + 1}", found[number]


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
