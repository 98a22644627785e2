"""The rows of a calibration data set, by number, whatever its form and however large it is.

JSON lines and parquet are never held in memory whole: lines are found again by their offset, and
of parquet only the needed column of one row group is read at a time. Plain text is one row and a
JSON list is read whole. What a row holds is not looked at here.
"""

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        """The rows of those numbers in that order, each with its place for an error message.

        Raises InputError for one that cannot be read.
        """


def open_documents(path: Path) -> Documents:
    """The rows of a file, or of all data files below a directory in the order of their paths.

    Raises InputError for what is none of DATA_SUFFIXES, is too large to be read whole, or is not
    what its name says.
    """
    if not path.is_dir():
        return _open_file(path)
    files = sorted(it for it in path.rglob("*") if it.suffix in DATA_SUFFIXES and it.is_file())
    if not files:
        raise InputError(f"{path}: no data file in it; expected {', '.join(DATA_SUFFIXES)}")
    return _Several([_open_file(it) for it in files])


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
        return _Rows(path, [{"text": it} if isinstance(it, str) else it for it in items])
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
    """One JSON value a line; only the offsets of the lines are kept, 16 bytes for each."""

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
    """Apache Parquet: https://parquet.apache.org/docs/file-format."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _readable(path), pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            groups = [file.metadata.row_group(it).num_rows for it in range(file.num_row_groups)]
        self._ends = list(accumulate(groups))
        self.num_rows = self._ends[-1] if groups else 0
        self._columns = [it for it in ROW_KEYS if it in columns]
        if not self._columns:
            raise InputError(
                f"{path}: its columns are {short_repr(columns)}; expected one of "
                f"{', '.join(ROW_KEYS)}"
            )

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        """Row groups are read in their order, each once; then the rows in the order asked for."""
        found: dict[int, object] = {}
        with _readable(self._path), pq.ParquetFile(self._path) as file:
            for group, members in groupby(sorted(set(numbers)), key=self._group_of):
                first = self._ends[group - 1] if group else 0
                wanted = list(members)
                table = file.read_row_group(group, columns=self._columns)
                chosen = table.take(pa.array([it - first for it in wanted])).to_pylist()
                found.update(zip(wanted, chosen, strict=True))
        for number in numbers:
            yield f"{self._path}, row {number + 1}", found[number]

    def _group_of(self, number: int) -> int:
        return bisect_right(self._ends, number)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises about a damaged file into one line."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not readable as parquet: {reason}") from error


class _Several(Documents):
    """Files set end to end."""

    def __init__(self, parts: list[Documents]) -> None:
        self._parts = parts
        self._ends = list(accumulate(it.num_rows for it in parts))
        self.num_rows = self._ends[-1]

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[str, object]]:
        by_part: dict[int, list[int]] = {}
        for number in numbers:
            by_part.setdefault(bisect_right(self._ends, number), []).append(number)
        found: dict[int, tuple[str, object]] = {}
        for part, members in by_part.items():
            first = self._ends[part - 1] if part else 0
            rows = self._parts[part].rows([it - first for it in members])
            found.update(zip(members, rows, strict=True))
        for number in numbers:
            yield found[number]
