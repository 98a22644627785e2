"""Rows by number: the same from every form, and every unreadable one named with its place."""

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core import documents
from pipeline.core.documents import MalformedRow, open_documents, read_texts
from pipeline.core.errors import InputError

TEXTS = [f"story {number} – ñ\u2028end" for number in range(10)]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"text": it} for it in texts]
    match path.suffix:
        case ".jsonl":
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            path.write_text("\n\n".join(lines), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(texts), encoding="utf-8")
        case ".parquet":
            pq.write_table(
                pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=3
            )
    return path


def rows_of(path: Path, numbers: list[int] | None = None) -> list[object]:
    """All rows, or those of these numbers."""
    with open_documents(path) as found:
        asked = range(found.num_rows) if numbers is None else numbers
        return [row for _, row in found.rows(asked)]


def texts_of(path: Path, numbers: list[int]) -> list[object]:
    return [row["text"] for row in rows_of(path, numbers) if isinstance(row, dict)]


def json_lines(texts: list[str]) -> bytes:
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    return "\n".join(lines).encode()


def zstandard(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


LINES, LIST = json_lines(TEXTS), json.dumps(TEXTS).encode()
FORMS: dict[str, bytes] = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "list.json": LIST,
    "list.jsonl": LIST,
    "pretty.json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    "mark.jsonl": codecs.BOM_UTF8 + LINES,
    "mark.json": codecs.BOM_UTF8 + b"\r\n" + LIST,
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "blank-lines.jsonl": b"\n \n" + LINES.replace(b"\n", b"\n\n\t\n") + b"\n\n",
    "lines.jsonl.gz": gzip.compress(LINES, mtime=0),
    "list.json.gz": gzip.compress(LIST, mtime=0),
    "mark.jsonl.gz": gzip.compress(codecs.BOM_UTF8 + LINES, mtime=0),
    "two-members.jsonl.gz": gzip.compress(LINES[:40], mtime=0) + gzip.compress(LINES[40:], mtime=0),
    "compressed-unnamed.jsonl": gzip.compress(LINES, mtime=0),
    "named-compressed.jsonl.gz": LINES,
    "lines.jsonl.zst": zstandard(LINES),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_that_people_have_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name])
    assert rows_of(path) == [{"text": text} for text in TEXTS]
    assert texts_of(path, [9, 0, 4]) == [TEXTS[9], TEXTS[0], TEXTS[4]]
    assert read_texts(path) == TEXTS


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda rows, path: rows.to_json(path)),
        ("a.json", lambda rows, path: rows.to_json(path)),
        ("list.json", lambda rows, path: rows.to_json(path, lines=False)),
        ("a.jsonl.gz", lambda rows, path: rows.to_json(path, compression="gzip")),
        ("a.parquet", lambda rows, path: rows.to_parquet(path)),
    ],
)
def test_what_the_datasets_library_writes_is_read(
    tmp_path: Path, name: str, write: Callable[[datasets.Dataset, str], object]
) -> None:
    rows = [{"messages": CHAT, "text": text} for text in TEXTS]
    write(datasets.Dataset.from_list(rows), str(tmp_path / name))
    assert rows_of(tmp_path / name) == rows
    assert read_texts(tmp_path / name) == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_rows_come_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", TEXTS)
    assert len(rows_of(path)) == len(TEXTS)
    numbers = [9, 0, 4, 3, 8]
    assert texts_of(path, numbers) == [TEXTS[it] for it in numbers]


def test_a_directory_is_its_data_files_set_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "b.parquet", TEXTS[4:])
    write(tmp_path / "a.jsonl", TEXTS[:4])
    (tmp_path / "data" / "c.json.gz").write_bytes(gzip.compress(json_lines(["last"]), mtime=0))
    (tmp_path / "README.md").write_text("no data")
    numbers = [7, 1, 10, 3, 4, 9, 0]
    assert texts_of(tmp_path, numbers) == [[*TEXTS, "last"][number] for number in numbers]


def test_plain_text_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert texts_of(tmp_path / "a.txt", [0]) == ["one\ntwo\n"]


def test_of_parquet_only_needed_row_groups_and_columns_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", TEXTS)
    read: list[tuple[list[int], list[str]]] = []
    real = pq.ParquetFile.iter_batches

    def counted(
        self: pq.ParquetFile, size: int, row_groups: list[int], columns: list[str]
    ) -> object:
        read.append((row_groups, columns))
        return real(self, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert texts_of(path, [7, 1, 6]) == [TEXTS[7], TEXTS[1], TEXTS[6]]
    assert read == [([0], ["text"]), ([2], ["text"])]


def test_rows_of_parquet_are_found_in_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BATCH_ROWS", 2)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=7)
    numbers = [9, 0, 6, 3, 8, 7]
    assert texts_of(path, numbers) == [TEXTS[number] for number in numbers]
    monkeypatch.setattr(documents, "MAX_ROW_GROUP_BYTES", 10)
    with pytest.raises(InputError, match="in one row group, expected at most 10; write it with"):
        rows_of(path)


def test_messages_in_parquet_are_lists_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["hi"], "messages": [CHAT]}), path)
    assert rows_of(path) == [{"messages": CHAT}]


def test_a_line_that_is_not_json_is_a_row_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n\n{"text": \n\xff\n' + b"[" * 200_000)
    path.write_bytes(b" " * 5000 + path.read_bytes())
    with open_documents(path) as found:
        rows = list(found.rows(range(found.num_rows)))
    assert [where.rpartition(", ")[2] for where, _ in rows] == [
        "line 1",
        "line 3",
        "line 4",
        "line 5",
    ]
    assert rows[0][1] == {"text": "x"}
    reasons = [row.reason for _, row in rows if isinstance(row, MalformedRow)]
    assert [reason.partition(":")[0] for reason in reasons] == [
        "not valid JSON",
        "not UTF-8 text; convert the file",
        "not usable as JSON",
    ]
    with pytest.raises(InputError, match=r"a\.jsonl, line 3: not valid JSON"):
        read_texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text\nx", "unknown kind of text file; expected .jsonl, .json, .parquet"),
        ("a.parquet", b"PAR1 and nothing", "not readable as parquet"),
        ("a.json", b"[1,\n ", "a.json, line 2: not valid JSON"),
        ("a.json", b"[" * 200_000, "not usable as JSON"),
        ("a.txt", b"one\n\xff", "a.txt, line 2: not UTF-8 text"),
        (
            "a.jsonl.gz",
            gzip.compress(LINES, mtime=0)[:-9],
            "cannot be expanded: Compressed file ended",
        ),
        ("b.jsonl.gz", gzip.compress(LINES, mtime=0)[:20] + b"\xff" * 40, "cannot be expanded"),
        ("a.jsonl.zst", zstandard(LINES)[:-9], "cannot be expanded: Truncated"),
        ("a.parquet.gz", gzip.compress(b"PAR1 and nothing", mtime=0), "not readable as parquet"),
        ("a.tar.gz", gzip.compress(LINES, mtime=0), "unknown kind of text file"),
    ],
    ids=range(10),
)
def test_a_file_that_cannot_be_opened_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as caught:
        rows_of(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_without_a_known_column_names_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"its columns are \['body'\]; expected one of messages"):
        rows_of(tmp_path / "a.parquet")


def test_a_damaged_row_group_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TEXTS)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:4] + b"\xff" * (footer - 4) + data[footer:])
    with pytest.raises(InputError, match=r"a\.parquet: not readable as parquet"):
        rows_of(path, [0])


def test_what_is_missing_or_empty_or_too_large_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no\.jsonl: no such file"):
        rows_of(tmp_path / "no.jsonl")
    with pytest.raises(InputError, match="no data file in it"):
        rows_of(tmp_path)
    monkeypatch.setattr(documents, "MAX_WHOLE_BYTES", 3)
    with pytest.raises(InputError, match=r"expected at most 3 for a JSON list or plain text"):
        rows_of(write(tmp_path / "a.json", TEXTS))
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 30)
    with pytest.raises(InputError, match=r"line 1: longer than 30 bytes"):
        rows_of(write(tmp_path / "a.jsonl", ["x" * 40]))


def test_held_out_text_names_its_first_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "", None]}), path)
    with pytest.raises(InputError, match=r"row 3: found {'text': None}; expected an object"):
        read_texts(path)


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl", "data.parquet"])
def test_a_pointer_of_git_lfs_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n")
    with pytest.raises(InputError, match=rf"{name}: a Git LFS pointer in place of the file"):
        rows_of(tmp_path / name)
