"""The calibration sample: drawn by seed, kept apart from the evaluation, and refused when short."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.calibration.overlap import NGRAM_WORDS
from pipeline.calibration.sample import CalibrationSample, calibration_sample, drawn_order
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import InputError
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.params.reading import read_params
from tests.evaluation_files import HELD_OUT, ROW, write_evaluation_files
from tests.support import ROOT

CLEAN = [
    f"House {number} stands on hill {number * 7} beside {number + 3} trees." for number in range(60)
]


@pytest.fixture
def tokenizer() -> Any:
    return tokenizer_of(ROOT / "demo" / "model")


def sample(
    root: Path, tokenizer: Any, *, text: str = "text.jsonl", seed: int = 0, samples: int = 8
) -> CalibrationSample:
    write_evaluation_files(root)
    params = read_params(ROOT / PARAMS_FILE)
    calibration = params.calibration.model_copy(
        update={
            "text": text,
            "seed": seed,
            "num_calibration_samples": samples,
            "max_seq_length": 32,
        }
    )
    return calibration_sample(
        Workspace(root), params.model_copy(update={"calibration": calibration}), tokenizer
    )


def write_lines(path: Path, rows: list[Any]) -> None:
    lines = (json.dumps({"text": it} if isinstance(it, str) else it) for it in rows)
    path.write_text("\n".join(lines))


def test_the_same_rows_give_the_same_tokens_in_every_form(tmp_path: Path, tokenizer: Any) -> None:
    write_lines(tmp_path / "text.jsonl", CLEAN)
    (tmp_path / "text.json").write_text(json.dumps(CLEAN))
    pq.write_table(pa.table({"text": CLEAN}), tmp_path / "text.parquet", row_group_size=7)
    digests = {
        sample(tmp_path, tokenizer, text=f"text.{suffix}").token_ids_sha256
        for suffix in ("jsonl", "json", "parquet")
    }
    assert len(digests) == 1


def test_the_seed_draws_the_documents(tmp_path: Path, tokenizer: Any) -> None:
    write_lines(tmp_path / "text.jsonl", CLEAN)
    first, again, other = (sample(tmp_path, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.token_ids_sha256 != other.token_ids_sha256
    assert first.text_sha256 == other.text_sha256
    assert [len(window) for window in first.windows] == [32] * 8
    assert first.decontamination.num_documents_drawn < len(CLEAN)


def test_drawing_visits_every_row_once_whatever_is_taken() -> None:
    assert sorted(drawn_order(1000, seed=3)) == list(range(1000))
    order = drawn_order(10**15, seed=3)
    first = [next(order) for _ in range(1000)]
    assert len(set(first)) == 1000
    assert max(first) > 9 * 10**14


def test_documents_of_the_evaluation_are_dropped_and_counted(
    tmp_path: Path, tokenizer: Any
) -> None:
    run_of_held_out = " ".join(HELD_OUT.split()[2 : 2 + NGRAM_WORDS])
    one_word_less = " ".join(HELD_OUT.split()[2 : 1 + NGRAM_WORDS])
    write_lines(tmp_path / "text.jsonl", CLEAN)
    kept = sample(tmp_path, tokenizer, samples=20)
    assert kept.decontamination.num_contaminated_dropped == 0
    contaminated = [f"<|user|>{ROW['prompt']}<|eos|><|assistant|>the red one", run_of_held_out]
    write_lines(tmp_path / "text.jsonl", [*CLEAN[:30], *contaminated, one_word_less, *CLEAN[30:]])
    with pytest.raises(InputError, match=r"needed for 900 x 32.*\(2 of 63 documents were dropped"):
        sample(tmp_path, tokenizer, samples=900)


def test_chat_rows_are_compared_by_what_is_said(tmp_path: Path, tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": ROW["prompt"]},
        {"role": "assistant", "content": "the red one"},
    ]
    write_lines(tmp_path / "text.jsonl", [{"messages": turns}, *CLEAN])
    with pytest.raises(InputError, match="1 of 61 documents were dropped"):
        sample(tmp_path, tokenizer, samples=900)


def test_wrong_answers_do_not_count(tmp_path: Path, tokenizer: Any) -> None:
    write_lines(tmp_path / "text.jsonl", [f"{ROW['prompt']} none", *CLEAN])
    with pytest.raises(InputError, match=r"needed for 900 x 32; [^(]*$"):
        sample(tmp_path, tokenizer, samples=900)


def test_what_was_compared_is_named_with_its_digest(tmp_path: Path, tokenizer: Any) -> None:
    write_lines(tmp_path / "text.jsonl", CLEAN)
    compared = sample(tmp_path, tokenizer).decontamination.compared
    assert [(it.name, it.num_texts) for it in compared] == [("tiny", 1), ("evaluate.text", 1)]
    assert len({it.sha256 for it in compared}) == 2


def test_too_little_text_says_what_would_do(tmp_path: Path, tokenizer: Any) -> None:
    write_lines(tmp_path / "text.jsonl", CLEAN[:4])
    with pytest.raises(InputError, match=r"^calibration.text = text.jsonl: \d+ tokens, 256 needed"):
        sample(tmp_path, tokenizer)


def test_the_demo_keeps_most_of_its_text(tokenizer: Any) -> None:
    params = read_params(ROOT / PARAMS_FILE)
    made = calibration_sample(Workspace(ROOT), params, tokenizer)
    assert len(made.windows) == params.calibration.num_calibration_samples
    check = made.decontamination
    assert 0 < check.num_contaminated_dropped < 0.2 * check.num_documents_drawn
