"""The calibration sample: drawn by seed, kept apart from the evaluation, and refused when short."""

import codecs
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.calibration.overlap import NGRAM_WORDS
from pipeline.calibration.sample import CalibrationSample, calibration_sample, drawn_order
from pipeline.checkpoint.chat_rendering import TEMPLATE_DATE
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import InputError
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.params.reading import read_params
from pipeline.records.statistics import SkipReason
from tests.evaluation_files import HELD_OUT, ROW, write_evaluation_files
from tests.support import ROOT

CLEAN = [
    f"House {number} stands on hill {number * 7} beside {number + 3} trees." for number in range(60)
]


@pytest.fixture
def tokenizer() -> Any:
    return tokenizer_of(ROOT / "demo" / "model")


def sample(
    root: Path,
    tokenizer: Any,
    *,
    text: str = "text.jsonl",
    seed: int = 0,
    samples: int = 8,
    max_skipped: float = 0.1,
) -> CalibrationSample:
    write_evaluation_files(root)
    params = read_params(ROOT / PARAMS_FILE)
    calibration = params.calibration.model_copy(
        update={
            "text": text,
            "seed": seed,
            "num_calibration_samples": samples,
            "max_seq_length": 32,
            "max_skipped": max_skipped,
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
    lines = (tmp_path / "text.jsonl").read_bytes()
    (tmp_path / "lines.json").write_bytes(codecs.BOM_UTF8 + lines)
    (tmp_path / "text.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    names = ("text.jsonl", "text.json", "text.parquet", "lines.json", "text.jsonl.gz")
    digests = {sample(tmp_path, tokenizer, text=name).token_ids_sha256 for name in names}
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


ODD_ROWS: list[tuple[SkipReason, Any]] = [
    (SkipReason.NO_DOCUMENT, {"body": "x"}),
    (SkipReason.NO_TURNS, {"messages": []}),
    (SkipReason.NO_TEXT, {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}),
    (SkipReason.TEMPLATE, {"messages": [{"role": "tool_call", "content": "x"}]}),
]


def test_odd_rows_are_skipped_counted_by_reason_and_change_nothing_else(
    tmp_path: Path, tokenizer: Any
) -> None:
    write_lines(tmp_path / "text.jsonl", CLEAN)
    with pytest.raises(InputError, match=r"needed for 900 x 32") as plain:
        sample(tmp_path, tokenizer, samples=900)
    rows = [row for _, row in ODD_ROWS]
    write_lines(tmp_path / "text.jsonl", [*CLEAN, *rows, ODD_ROWS[0][1], "", "  "])
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write('\n{"text": "cut o')
    with pytest.raises(InputError, match=r"needed for 900 x 32") as with_odd_rows:
        sample(tmp_path, tokenizer, samples=900)
    assert str(with_odd_rows.value) == str(plain.value)
    with pytest.raises(InputError) as refused:
        sample(tmp_path, tokenizer, samples=900, max_skipped=0.0)
    assert (
        "6 rows were skipped (1 not JSON, 2 neither text nor turns, 1 no turns, 1 content that is "
        "not text, 1 refused by the chat template), beside 60 documents"
    ) in str(refused.value)


@pytest.mark.parametrize(("reason", "row"), ODD_ROWS)
def test_more_odd_rows_than_allowed_are_refused_with_the_first_of_them(
    tmp_path: Path, tokenizer: Any, reason: SkipReason, row: object
) -> None:
    write_lines(tmp_path / "text.jsonl", [*CLEAN[:10], *[row] * 30])
    with pytest.raises(InputError) as caught:
        sample(tmp_path, tokenizer, samples=900)
    said = str(caught.value)
    assert said.startswith("calibration.text = text.jsonl: 30 rows were skipped (30 ")
    assert f"{reason}), beside 10 documents; calibration.max_skipped = 0.1" in said
    assert re.search(r"The first: .*text\.jsonl, line \d+: ", said)
    made = sample(tmp_path, tokenizer, samples=4, max_skipped=0.95)
    assert [entry.reason for entry in made.skipped] == [reason]


def test_the_share_counts_and_nothing_else(tmp_path: Path, tokenizer: Any) -> None:
    write_lines(tmp_path / "text.jsonl", [*CLEAN[:9], {"messages": []}])
    with pytest.raises(InputError, match="needed for 900"):
        sample(tmp_path, tokenizer, samples=900, max_skipped=0.1)
    with pytest.raises(InputError, match=r"max_skipped = 0\.09 allows fewer"):
        sample(tmp_path, tokenizer, samples=900, max_skipped=0.09)


def test_a_data_set_of_another_form_is_not_read_to_its_end(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.calibration.sample.MANY_SKIPPED", 20)
    write_lines(tmp_path / "text.jsonl", [{"body": "x"}] * 500)
    with pytest.raises(InputError, match=r"20 rows were skipped .20 neither text nor turns"):
        sample(tmp_path, tokenizer)


def test_the_date_that_a_template_was_told_is_recorded(tmp_path: Path, tokenizer: Any) -> None:
    write_lines(tmp_path / "text.jsonl", CLEAN)
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{{ messages[0].content }}"
    assert sample(tmp_path, tokenizer).template_date is None
    chats = [{"messages": [{"role": "user", "content": text}]} for text in CLEAN]
    write_lines(tmp_path / "text.jsonl", chats)
    made = sample(tmp_path, tokenizer)
    assert made.template_date == TEMPLATE_DATE
    tokenizer.chat_template = "2026{{ messages[0].content }}"
    again = sample(tmp_path, tokenizer)
    assert (again.template_date, again.token_ids_sha256) == (None, made.token_ids_sha256)


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
