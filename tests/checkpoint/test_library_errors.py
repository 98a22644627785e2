"""Whatever a library raises about a file is one line, also where Rust panics."""

import json
from pathlib import Path

import pytest

from pipeline.checkpoint.checks import read_tokenizer_file
from pipeline.checkpoint.library_errors import readable_library_errors
from pipeline.core.errors import FailureError, InputError
from tests.models import tiny_llama


@pytest.mark.parametrize("error", [ValueError("one\ntwo"), AssertionError(), RecursionError("x")])
def test_any_error_becomes_one_line(error: Exception) -> None:
    with (
        pytest.raises(InputError, match=r"^a\.json: cannot be read \(\w+: .*\); get it again$"),
        readable_library_errors("a.json: cannot be read", "get it again"),
    ):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FailureError("own"), SystemExit(1)])
def test_own_errors_and_an_interrupt_pass(error: BaseException) -> None:
    with pytest.raises(type(error)), readable_library_errors("a.json", "get it again"):
        raise error


def test_a_panic_of_rust_is_one_line_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama(tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"^tokenizer.json: the tokenizers library cannot read it"):
        read_tokenizer_file(model)
    assert capfd.readouterr().err == ""
