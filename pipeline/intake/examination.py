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
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CODE_KEY,
    CONFIG_FILE,
    INDEX_FILE,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
    WEIGHTS_SUFFIX,
)
from pipeline.checkpoint.tokenizer import TOKENIZER_FILE
from pipeline.core.errors import InputError
from pipeline.core.files import file_record, write_json
from pipeline.intake.configuration import mended_configuration, with_known_tokens
from pipeline.intake.template import TEMPLATE_FILE, mend_template
from pipeline.intake.tokenizer import EOS_ID_KEY, SPECIAL_TOKENS_FILE, mend_tokenizer
from pipeline.records.intake import Finding, Intake

GENERATION_FILE = "generation_config.json"
MENDED_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
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
    """Say which of several forms of the weights counts, by the names of all files.

    Raises InputError for files that are no whole checkpoint.
    """
    if ADAPTER_FILE in names:
        weights = {name for name in names if name.endswith(WEIGHTS_SUFFIX)}
        if CONFIG_FILE not in names or weights <= {ADAPTER_WEIGHTS}:
            raise InputError(
                f"{ADAPTER_FILE}: an adapter without the weights that it changes; merge it into "
                "its base model, as PEFT's merge_and_unload does, and use what that saves"
            )
        yield Finding(
            file=ADAPTER_FILE,
            found="is there beside the weights of a whole model",
            done="not taken: the model counts without the adapter",
        )
    if CONFIG_FILE not in names:
        raise InputError(
            f"{CONFIG_FILE}: missing, so this is no checkpoint in the form of transformers; found "
            f"{', '.join(sorted(names)[:3]) or 'no file'}; {USE_ANOTHER}"
        )
    if WEIGHTS_FILE in names and INDEX_FILE in names:
        yield Finding(
            file=INDEX_FILE,
            found=f"is there beside a whole {WEIGHTS_FILE}",
            done=f"not taken: {WEIGHTS_FILE} alone counts, as in transformers",
        )


def _findings(directory: Path) -> Iterator[Finding]:
    config = mended_configuration(read_json_object(directory / CONFIG_FILE))
    if config.findings:
        write_json(directory / CONFIG_FILE, config.values)
    yield from config.findings
    yield from _mend_generation(directory, config.vocab_size)
    yield from _mend_tokenizer_code(directory)
    check_tokenizer(directory)
    yield from mend_template(directory)
    ends = tuple(
        read_json_object(directory / name).get(EOS_ID_KEY)
        for name in (GENERATION_FILE, CONFIG_FILE)
        if (directory / name).is_file()
    )
    yield from mend_tokenizer(directory, vocab_size=config.vocab_size, end_ids=ends)


def _mend_generation(directory: Path, vocab_size: int) -> Iterator[Finding]:
    path = directory / GENERATION_FILE
    if path.is_file():
        generation = dict(read_json_object(path))
        findings = tuple(with_known_tokens(generation, file=GENERATION_FILE, vocab_size=vocab_size))
        if findings:
            write_json(path, generation)
        yield from findings


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
