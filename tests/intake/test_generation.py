"""generation_config.json: what travels, what no engine can use, what transformers refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from pipeline.core.errors import InputError
from pipeline.intake.generation import mend_generation


def mended(tmp_path: Path, **stated: Any) -> tuple[dict[str, Any], list[str]]:
    """Mend a file with these values; return what it holds then, and what was found."""
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(stated))
    findings = list(mend_generation(tmp_path, vocab_size=320))
    GenerationConfig.from_pretrained(tmp_path)
    return json.loads(path.read_text()), [finding.found for finding in findings]


def test_without_sampling_values_nothing_is_found(tmp_path: Path) -> None:
    neutral = {"eos_token_id": 1, "do_sample": False, "temperature": 1.0, "top_p": 1.0}
    assert mended(tmp_path, **neutral) == (neutral, [])
    (tmp_path / "generation_config.json").unlink()
    assert list(mend_generation(tmp_path, vocab_size=320)) == []


def test_sampling_values_travel_and_are_named(tmp_path: Path) -> None:
    stated = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20}
    values, (found,) = mended(tmp_path, **stated)
    assert values == stated
    assert found == (
        "temperature = 0.7, top_k = 20, repetition_penalty = 1.05, which engines apply to "
        "requests that state no other values"
    )


def test_values_that_have_no_effect_are_read(tmp_path: Path) -> None:
    values, found = mended(tmp_path, do_sample=False, temperature=0.6)
    assert values == {"do_sample": False, "temperature": 0.6}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_p", -0.5),
        ("top_p", 1.5),
        ("top_k", -7),
        ("top_k", "50"),
        ("top_k", 40.5),
        ("temperature", -1),
        ("temperature", "warm"),
        ("temperature", float("nan")),
        ("temperature", [0.7]),
        ("repetition_penalty", True),
        ("repetition_penalty", 0),
        ("min_p", 2),
        ("top_p", 0),
        ("penalty_last_n", "all"),
    ],
)
def test_values_that_no_engine_takes_are_left_out(tmp_path: Path, key: str, value: Any) -> None:
    values, (found,) = mended(tmp_path, eos_token_id=1, **{key: value})
    assert values == {"eos_token_id": 1}
    assert found.startswith(f"{key} = ")


def test_a_whole_number_is_written_as_one(tmp_path: Path) -> None:
    values, found = mended(tmp_path, top_k=20.0)
    assert values == {"top_k": 20}
    assert type(values["top_k"]) is int
    assert found[0] == "top_k = 20.0, expected an integer from -1"


@pytest.mark.parametrize(
    "stated",
    [{"early_stopping": "now"}, {"max_new_tokens": 0}, {"num_return_sequences": 3}],
)
def test_what_transformers_refuses_is_one_line(tmp_path: Path, stated: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"^generation_config.json: transformers .* refuses it \("
    ) as caught:
        mended(tmp_path, **stated)
    assert "\n" not in str(caught.value)
