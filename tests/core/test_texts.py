import json
from pathlib import Path

import pytest

from pipeline.core.documents import read_texts
from pipeline.core.errors import InputError
from pipeline.core.texts import token_ids_sha256, token_windows


def file_with(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "uno"}\n\n{"text": "dos\\u2028tres", "id": 7}\n'),
        ("a.json", '["uno", {"text": "dos\\u2028tres"}, "  "]'),
    ],
)
def test_every_form_gives_the_same_documents(tmp_path: Path, name: str, content: str) -> None:
    assert read_texts(file_with(tmp_path, name, content)) == ["uno", "dos\u2028tres"]


def test_line_separators_inside_a_json_string_do_not_end_the_line(tmp_path: Path) -> None:
    line = json.dumps({"text": "one\u2028two\u0085three"}, ensure_ascii=False)
    assert read_texts(file_with(tmp_path, "a.jsonl", line)) == ["one\u2028two\u0085three"]


@pytest.mark.parametrize("name", ["a.txt", "a.raw"])
def test_a_plain_file_is_one_document(tmp_path: Path, name: str) -> None:
    assert read_texts(file_with(tmp_path, name, "uno\ndos\n")) == ["uno\ndos\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n{"t": 1}', "line 2: found {'t': 1}; expected an object with"),
        ("a.jsonl", '"x"', "line 1: found 'x'; expected an object with"),
        ("a.jsonl", '{"text": 3}', "line 1: found"),
        ("a.jsonl", '{"text": "\\ud800"}', "line 1: half of a surrogate pair"),
        ("a.jsonl", b'{"text": "x"}\n\xff', "line 2: not UTF-8"),
        ("a.json", '["x",\n 3]', "item 2: found 3; expected an object"),
        ("a.json", '["x",\n', "line 2: not valid JSON"),
        ("a.json", '{\n  "data": ["x"]\n}', "line 1: not valid JSON"),
        ("a.txt", " \n", "no text in it"),
        ("a.csv", "text\nx", "unknown kind of text file"),
    ],
)
def test_a_malformed_file_is_named_with_the_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_texts(file_with(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.jsonl: no such file"):
        read_texts(tmp_path / "no.jsonl")
    with pytest.raises(InputError, match="a directory"):
        read_texts(tmp_path)


def letters(text: str) -> list[int]:
    return [0, *(ord(letter) for letter in text)]


def test_windows_are_the_encoded_documents_set_end_to_end() -> None:
    windows = token_windows(
        ["ab", "cde", "never read"], letters, window_tokens=3, num_windows=2, source="x"
    )
    assert windows == [[0, 97, 98], [0, 99, 100]]


def test_too_little_text_says_what_would_do() -> None:
    with pytest.raises(
        InputError, match=r"^evaluate.text: 7 tokens, 12 needed for 4 x 3; .* 2 x 3"
    ):
        token_windows(
            ["ab", "cde"], letters, window_tokens=3, num_windows=4, source="evaluate.text"
        )


def test_the_digest_of_token_ids_covers_every_id_and_their_order() -> None:
    assert token_ids_sha256([[1, 2], [3]]) == token_ids_sha256([[1], [2, 3]])
    assert token_ids_sha256([[1, 2, 3]]) != token_ids_sha256([[1, 3, 2]])
    # sha256 of the four bytes 01 00 00 00
    assert token_ids_sha256([[1]]).startswith("67abdd721024f0ff")
