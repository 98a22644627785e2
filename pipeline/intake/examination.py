"""Examine a checkpoint before anything heavy runs: what is odd is mended in place, or refused.

`plan` and `fetch` share this. Small files first, then the headers of the weights, then, in fetch
alone, their values. After it every tool reads the same: transformers, vLLM, llama.cpp's converter.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.checkpoint.checks import (
    USE_ANOTHER,
    check_tokenizer,
    read_config,
    read_json_object,
)
from pipeline.checkpoint.names import (
    CODE_KEY,
    CONFIG_FILE,
    INDEX_FILE,
    PROCESSOR_FILES,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
)
from pipeline.checkpoint.tokenizer import TOKENIZER_FILE
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import file_record, write_json
from pipeline.intake.configuration import mended_configuration, with_known_tokens
from pipeline.intake.template import TEMPLATE_FILE, mend_template
from pipeline.intake.tokenizer import largest_token, mend_tokenizer
from pipeline.records.intake import Finding, Intake

GENERATION_FILE = "generation_config.json"
MENDED_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_CONFIG_FILE,
    TEMPLATE_FILE,
    *PROCESSOR_FILES,
)


def examine_small_files(directory: Path) -> Intake:
    """Examine configuration, tokenizer and template; files of `directory` are changed in place.

    The license is not examined here. Raises InputError for a model that is quantized already, that
    transformers does not know, or that no change of these files makes every tool read alike.
    """
    before = {
        name: file_record(directory / name, directory)
        for name in MENDED_FILES
        if (directory / name).is_file()
    }
    read_config(directory)
    findings = tuple(_findings(directory))
    return Intake(
        findings=findings,
        originals=tuple(
            record
            for name, record in before.items()
            if file_record(directory / name, directory) != record
        ),
        added=tuple(
            name for name in MENDED_FILES if name not in before and (directory / name).is_file()
        ),
    )


def examine_file_names(names: Collection[str]) -> Iterator[Finding]:
    """Say which of several forms of the weights counts, by the names of all files."""
    if WEIGHTS_FILE in names and INDEX_FILE in names:
        yield Finding(
            file=INDEX_FILE,
            found=f"is there beside a whole {WEIGHTS_FILE}",
            done=f"not taken: {WEIGHTS_FILE} alone counts, as in transformers",
        )
    elif INDEX_FILE not in names and WEIGHTS_FILE not in names:
        yield Finding(
            file=INDEX_FILE,
            found="is not there, though the weights are in shards",
            done="made from the headers of the shards",
        )


def _findings(directory: Path) -> Iterator[Finding]:
    config = mended_configuration(read_json_object(directory / CONFIG_FILE))
    if config.findings:
        write_json(directory / CONFIG_FILE, config.values)
    yield from config.findings
    yield from _mend_generation(directory, config.vocab_size)
    yield from _mend_tokenizer_code(directory)
    yield from _mend_processor_code(directory)
    check_tokenizer(directory)
    yield from mend_template(directory)
    yield from mend_tokenizer(directory)
    if (directory / TOKENIZER_FILE).is_file():
        number, token = largest_token(directory)
        if number >= config.vocab_size:
            raise InputError(
                f"{TOKENIZER_FILE}: token {short_repr(token)} has id {number}, expected less than "
                f"vocab_size = {config.vocab_size} of {CONFIG_FILE}: the embedding has no row "
                f"for it; remove the token or {USE_ANOTHER}"
            )


def _mend_generation(directory: Path, vocab_size: int) -> Iterator[Finding]:
    path = directory / GENERATION_FILE
    if path.is_file():
        generation = dict(read_json_object(path))
        findings = tuple(with_known_tokens(generation, file=GENERATION_FILE, vocab_size=vocab_size))
        if findings:
            write_json(path, generation)
        yield from findings


def _mend_processor_code(directory: Path) -> Iterator[Finding]:
    """Remove references to a processor's Python code: transformers has one for each model."""
    for path in (directory / name for name in PROCESSOR_FILES):
        if path.is_file() and CODE_KEY in (config := read_json_object(path)):
            write_json(path, {key: value for key, value in config.items() if key != CODE_KEY})
            yield Finding(
                file=path.name,
                found=f"{CODE_KEY} names Python code of the repository",
                done="removed: code of a repository is never run",
            )


def _mend_tokenizer_code(directory: Path) -> Iterator[Finding]:
    """Remove the reference to a tokenizer's Python code where tokenizer.json does without it."""
    path = directory / TOKENIZER_CONFIG_FILE
    if not (path.is_file() and (directory / TOKENIZER_FILE).is_file()):
        return
    config = read_json_object(path)
    if config.get(CODE_KEY) is not None:
        write_json(path, {key: value for key, value in config.items() if key != CODE_KEY})
        yield Finding(
            file=TOKENIZER_CONFIG_FILE,
            found=f"{CODE_KEY} names Python code of the repository",
            done=f"removed: {TOKENIZER_FILE} says all of it",
        )
