"""Compressed data of strangers: expanded up to a limit, and gone afterwards."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.core import data_files
from pipeline.core.documents import open_documents
from pipeline.core.errors import InputError


def zstandard(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard])
def test_a_small_file_that_expands_without_end_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(data_files, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(compress(b"0" * (1 << 25)))
    limit = max(1 << 20, data_files.MAX_EXPANSION * bomb.stat().st_size)
    taken = 0

    def take_all() -> None:
        nonlocal taken
        for piece in data_files.expanded_pieces(bomb):
            taken += len(piece)

    with pytest.raises(InputError, match=r"bomb\.jsonl\.gz: expands to more than .*; expand it"):
        take_all()
    assert taken <= limit < 1 << 25
    with pytest.raises(InputError, match="expands to more"), open_documents(bomb):
        pass
    with pytest.raises(InputError, match="expands to more"):
        data_files.require_expandable(bomb)
    bomb.write_bytes(compress(b"0" * (1 << 20)))
    assert sum(map(len, data_files.expanded_pieces(bomb))) == 1 << 20


def test_expanded_files_are_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}', mtime=0))
    with open_documents(path) as found:
        assert len(list(scratch.rglob("*.jsonl"))) == 1
        assert found.num_rows == 1
    assert list(scratch.iterdir()) == []
    assert path.read_bytes()[:2] == data_files.GZIP_START


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl", ".jsonl"),
        ("data/a.json.gz", ".json"),
        ("a.parquet.zst", ".parquet"),
        ("a.b.txt.gz", ".txt"),
        ("a.gz", None),
        ("a.tar.gz", None),
        ("a.py", None),
        ("a.jsonl.gz.gz", None),
        ("jsonl", None),
    ],
)
def test_a_data_file_is_known_by_its_name(name: str, suffix: str | None) -> None:
    assert data_files.data_suffix(name) == suffix
