"""Read generation_config.json as transformers, vLLM and llama.cpp's converter will.

Its sampling values travel with every release. They have no part in evaluation and benchmark, whose
requests state neutral ones (`pipeline.serving.sampling`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object
from pipeline.core.errors import InputError, printable, short_repr
from pipeline.core.files import write_json
from pipeline.intake.configuration import with_known_tokens
from pipeline.records.intake import Finding

GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class SamplingValue:
    """Numbers that every engine takes, from `least` to `largest`; `neutral` changes no text."""

    least: float
    largest: float
    neutral: float
    excludes_least: bool = False
    is_integer: bool = False

    def takes(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(
            value, int if self.is_integer else int | float
        ):
            return False
        return self.least <= value <= self.largest and not (
            self.excludes_least and value == self.least
        )

    def __str__(self) -> str:
        """Describe the numbers."""
        kind = "an integer" if self.is_integer else "a number"
        start = "above" if self.excludes_least else "from"
        end = f" to {self.largest:g}" if self.largest < LARGEST else ""
        return f"{kind} {start} {self.least:g}{end}"


# 32 bits hold it in a GGUF file.
LARGEST = 2**31 - 1
# By transformers and vLLM, then those that llama.cpp's converter alone reads.
SAMPLING_VALUES = {
    "temperature": SamplingValue(0, LARGEST, 1),
    "top_p": SamplingValue(0, 1, 1, excludes_least=True),
    "top_k": SamplingValue(-1, LARGEST, 0, is_integer=True),
    "min_p": SamplingValue(0, 1, 0),
    "typical_p": SamplingValue(0, 1, 1, excludes_least=True),
    "repetition_penalty": SamplingValue(0, LARGEST, 1, excludes_least=True),
    "presence_penalty": SamplingValue(-2, 2, 0),
    "frequency_penalty": SamplingValue(-2, 2, 0),
    "penalty_repeat": SamplingValue(0, LARGEST, 1, excludes_least=True),
    "penalty_last_n": SamplingValue(-1, LARGEST, 0, is_integer=True),
    "xtc_probability": SamplingValue(0, 1, 0),
    "xtc_threshold": SamplingValue(0, 1, 0),
    "mirostat": SamplingValue(0, 2, 0, is_integer=True),
    "mirostat_tau": SamplingValue(0, LARGEST, 0),
    "mirostat_eta": SamplingValue(0, LARGEST, 0),
}


def mend_generation(directory: Path, *, vocab_size: int) -> Iterator[Finding]:
    """Leave out what no engine can use; generation_config.json is changed in place.

    Raises InputError for values that transformers refuses.
    """
    path = directory / GENERATION_FILE
    if not path.is_file():
        return
    generation = dict(read_json_object(path))
    mended = [
        *with_known_tokens(generation, file=GENERATION_FILE, vocab_size=vocab_size),
        *_without_wrong_values(generation),
    ]
    if mended:
        write_json(path, generation)
    yield from mended
    try:
        GenerationConfig.from_dict(dict(generation)).validate()
    except Exception as error:  # each key has a check of its own
        raise InputError(
            f"{GENERATION_FILE}: transformers {version('transformers')} refuses it "
            f"({printable(str(error))}); correct the key or {USE_ANOTHER}"
        ) from error
    stated = ", ".join(
        f"{key} = {generation[key]}"
        for key, expected in SAMPLING_VALUES.items()
        if generation.get(key) not in (None, expected.neutral)
    )
    if stated:
        yield Finding(
            file=GENERATION_FILE,
            found=f"{stated}, which engines apply to requests that state no other values",
            done="goes into releases as it is; evaluation and benchmark state neutral values",
        )


def _without_wrong_values(generation: dict[str, Any]) -> Iterator[Finding]:
    """Leave out sampling values that no engine takes; 50.0 is written as 50 where it has to be."""
    for key, expected in SAMPLING_VALUES.items():
        value = generation.get(key)
        if value is None or expected.takes(value):
            continue
        if isinstance(value, float) and value.is_integer() and expected.takes(int(value)):
            generation[key] = int(value)
            done = f"written as {generation[key]}"
        else:
            del generation[key]
            done = "left out: no engine takes it"
        yield Finding(
            file=GENERATION_FILE,
            found=f"{key} = {short_repr(value)}, expected {expected}",
            done=done,
        )
