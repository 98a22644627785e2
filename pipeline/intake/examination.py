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
    text_values,
)
from pipeline.checkpoint.names import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CODE_KEY,
    CODE_SUFFIX,
    CONFIG_FILE,
    INDEX_FILE,
    OTHER_WEIGHTS,
    PICKLE_SUFFIXES,
    PROCESSOR_FILES,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
    WEIGHTS_SUFFIX,
)
from pipeline.checkpoint.tokenizer import TOKENIZER_FILE
from pipeline.core.errors import InputError, printable
from pipeline.core.files import file_record, write_json
from pipeline.intake.configuration import mended_configuration
from pipeline.intake.generation import GENERATION_FILE, mend_generation
from pipeline.intake.heads import settle_heads
from pipeline.intake.template import TEMPLATE_FILE, mend_template
from pipeline.intake.tokenizer import EOS_ID_KEY, SPECIAL_TOKENS_FILE, mend_tokenizer
from pipeline.intake.weights import Accounting, require_storable
from pipeline.records.intake import Finding, Intake

SAFE_COUNT = "not taken: the weights in safetensors count"
MENDED_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
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


def examine_other_files(names: Collection[str], weights: Collection[str]) -> Iterator[Finding]:
    """Name the files that stay behind because they are weights or code; `weights` are taken."""
    other = sorted(set(names) - set(weights))
    kinds = {
        PICKLE_SUFFIXES: ("pickled weights, which can run code when they are read", SAFE_COUNT),
        OTHER_WEIGHTS: ("other weights than those of the model", SAFE_COUNT),
        (CODE_SUFFIX,): ("Python code", "not taken: code of a repository is never run"),
    }
    for suffixes, (kind, done) in kinds.items():
        if found := [name for name in other if name.endswith(suffixes)]:
            files = "1 file" if len(found) == 1 else f"{len(found)} files"
            yield Finding(file=printable(found[0]), found=f"{files} with {kind}", done=done)


def examine_values(
    directory: Path, weights: Collection[str], accounting: Accounting, intake: Intake
) -> tuple[Intake, tuple[str, ...]]:
    """Examine the values of the files `weights`; config.json may be changed in place.

    Returns the whole record and the tensors that are copies of others. Raises InputError for values
    that are no numbers, and for an output head that vLLM would not read.
    """
    require_storable(directory, weights)
    config_path = directory / CONFIG_FILE
    before = file_record(config_path, directory)
    copies, findings = settle_heads(
        directory, accounting.tied, architecture=accounting.architecture
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
    yield from _mend_processor_code(directory)
    check_tokenizer(directory)
    yield from mend_template(directory)
    stated = [config.values, text_values(config.values)]
    if (directory / GENERATION_FILE).is_file():
        stated.insert(0, read_json_object(directory / GENERATION_FILE))
    ends = tuple(values.get(EOS_ID_KEY) for values in stated)
    yield from mend_tokenizer(directory, vocab_size=config.vocab_size, end_ids=ends)


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
