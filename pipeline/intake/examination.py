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
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
)
from pipeline.checkpoint.tokenizer import TOKENIZER_FILE
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import file_record, write_json
from pipeline.intake.configuration import mended_configuration
from pipeline.intake.generation import GENERATION_FILE, mend_generation
from pipeline.intake.heads import settle_heads
from pipeline.intake.template import TEMPLATE_FILE, mend_template
from pipeline.intake.tokenizer import largest_token, mend_tokenizer
from pipeline.intake.weights import Accounting, require_finite
from pipeline.records.intake import Finding, Intake

MENDED_FILES = (CONFIG_FILE, GENERATION_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE)


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


def examine_values(
    directory: Path, weights: Collection[str], accounting: Accounting, intake: Intake
) -> tuple[Intake, tuple[str, ...]]:
    """Examine the values of the files `weights`; config.json may be changed in place.

    Returns the whole record and the tensors that are copies of others. Raises InputError for values
    that are no numbers, and for an output head that vLLM would not read.
    """
    require_finite(directory, weights)
    config_path = directory / CONFIG_FILE
    before = file_record(config_path, directory)
    copies, findings = settle_heads(
        directory, accounting.tied, architecture=read_config(directory).architecture
    )
    originals = {record.path: record for record in intake.originals}
    if file_record(config_path, directory) != before:
        originals.setdefault(CONFIG_FILE, before)
    return (
        intake.model_copy(
            update={
                "findings": (*intake.findings, *accounting.findings, *findings),
                "originals": tuple(originals.values()),
            }
        ),
        copies,
    )


def _findings(directory: Path) -> Iterator[Finding]:
    config = mended_configuration(read_json_object(directory / CONFIG_FILE))
    if config.findings:
        write_json(directory / CONFIG_FILE, config.values)
    yield from config.findings
    yield from mend_generation(directory, vocab_size=config.vocab_size)
    yield from _mend_tokenizer_code(directory)
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
