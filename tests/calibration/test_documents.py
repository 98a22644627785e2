"""Rows by number: the same from every form, and every unreadable one named with its place."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.calibration import documents
from pipeline.calibration.documents import open_documents
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


def texts_of(path: Path, numbers: list[int]) -> list[object]:
    rows = [row for _, row in open_documents(path).rows(numbers)]
    return [row["text"] for row in rows if isinstance(row, dict)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_rows_come_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", TEXTS)
    assert open_documents(path).num_rows == len(TEXTS)
    numbers = [9, 0, 4, 3, 8]
    assert texts_of(path, numbers) == [TEXTS[it] for it in numbers]


def test_a_directory_is_its_data_files_set_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "b.parquet", TEXTS[4:])
    write(tmp_path / "a.jsonl", TEXTS[:4])
    (tmp_path / "README.md").write_text("no data")
    numbers = [7, 1, 3, 4, 9, 0]
    assert texts_of(tmp_path, numbers) == [TEXTS[it] for it in numbers]


def test_plain_text_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert texts_of(tmp_path / "a.txt", [0]) == ["one\ntwo\n"]


def test_of_parquet_only_needed_row_groups_and_columns_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", TEXTS)
    read: list[tuple[int, list[str]]] = []
    real = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.append((group, columns))
        return real(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert texts_of(path, [7, 1, 6]) == [TEXTS[7], TEXTS[1], TEXTS[6]]
    assert read == [(0, ["text"]), (2, ["text"])]


def test_messages_in_parquet_are_lists_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["hi"], "messages": [CHAT]}), path)
    assert [row for _, row in open_documents(path).rows([0])] == [{"messages": CHAT}]


def test_a_wrong_row_is_named_only_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n\n{"text": \n\xff\n')
    rows = open_documents(path)
    assert rows.num_rows == 3
    assert [row for _, row in rows.rows([0])] == [{"text": "x"}]
    with pytest.raises(InputError, match=r"a\.jsonl, line 3: not valid JSON"):
        list(rows.rows([1]))
    with pytest.raises(InputError, match=r"a\.jsonl, line 4: not UTF-8"):
        list(rows.rows([2]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text\nx", "unknown kind of text file; expected .jsonl, .json, .parquet"),
        ("a.parquet", b"PAR1 and nothing", "not readable as parquet"),
        ("a.json", b'{"text": "x"}', "expected a list of rows, found {'text': 'x'}"),
        ("a.json", b"[1, ", "not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_opened_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as caught:
        open_documents(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_without_a_known_column_names_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"its columns are \['body'\]; expected one of messages"):
        open_documents(tmp_path / "a.parquet")


def test_a_damaged_row_group_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TEXTS)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:4] + b"\xff" * (footer - 4) + data[footer:])
    with pytest.raises(InputError, match=r"a\.parquet: not readable as parquet"):
        list(open_documents(path).rows([0]))


def test_what_is_missing_or_empty_or_too_large_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no\.jsonl: no such file"):
        open_documents(tmp_path / "no.jsonl")
    with pytest.raises(InputError, match="no data file in it"):
        open_documents(tmp_path)
    monkeypatch.setattr(documents, "MAX_WHOLE_BYTES", 3)
    with pytest.raises(InputError, match=r"expected at most 3 for \.json; convert it"):
        open_documents(write(tmp_path / "a.json", TEXTS))
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 30)
    with pytest.raises(InputError, match=r"line 1: longer than 30 bytes"):
        open_documents(write(tmp_path / "a.jsonl", ["x" * 40]))
