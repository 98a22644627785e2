"""Examine a checkpoint before anything heavy runs: what is odd is mended in place, or refused.

`plan` and `fetch` share this. Small files first, then the headers of the weights, then, in fetch
alone, their values. After it every tool reads the same: transformers, vLLM, llama.cpp's converter.
"""

import json
from collections.abc import Collection, Container, Iterator
from pathlib import Path

from pipeline.checkpoint.checks import (
    check_tokenizer,
    read_config,
    read_json_object,
)
from pipeline.checkpoint.names import (
    CODE_KEY,
    CODE_SUFFIX,
    CONFIG_FILE,
    INDEX_FILE,
    OTHER_WEIGHTS,
    PICKLE_SUFFIXES,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
)
from pipeline.checkpoint.tokenizer import TOKENIZER_FILE
from pipeline.core.errors import printable
from pipeline.core.files import file_record, write_json
from pipeline.intake.configuration import mended_configuration, with_known_tokens
from pipeline.intake.template import TEMPLATE_FILE, mend_template
from pipeline.intake.tokenizer import (
    ENDS_KEY,
    mended_tokenizer,
    normalizer_findings,
    require_rows,
    without_unnamed_ends,
)
from pipeline.records.intake import Finding, Intake

GENERATION_FILE = "generation_config.json"
SAFE_COUNT = "not taken: the weights in safetensors count"
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


def examine_file_names(names: Collection[str], weights: Collection[str]) -> Iterator[Finding]:
    """Say which files count, by the names of all files; `weights` are those that are taken."""
    if WEIGHTS_FILE in weights and INDEX_FILE in names:
        yield Finding(
            file=INDEX_FILE,
            found=f"is there beside a whole {WEIGHTS_FILE}",
            done=f"not taken: {WEIGHTS_FILE} alone counts, as in transformers",
        )
    elif WEIGHTS_FILE not in weights and INDEX_FILE not in names:
        yield Finding(
            file=INDEX_FILE,
            found="is not there, though the weights are in shards",
            done="made from the headers of the shards",
        )
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


def _findings(directory: Path) -> Iterator[Finding]:
    config = mended_configuration(read_json_object(directory / CONFIG_FILE))
    if config.findings:
        write_json(directory / CONFIG_FILE, config.values)
    yield from config.findings
    yield from _mend_generation(directory, config.vocab_size)
    yield from _mend_tokenizer_code(directory)
    check_tokenizer(directory)
    yield from mend_template(directory)
    tokenizer, findings = mended_tokenizer(directory)
    yield from findings
    vocabulary = tokenizer.get_vocab()
    require_rows(directory, vocabulary, vocab_size=config.vocab_size)
    yield from _mend_ends(directory, set(vocabulary.values()))
    if (directory / TOKENIZER_FILE).is_file():
        yield from normalizer_findings(directory)


def _mend_ends(directory: Path, ids: Container[object]) -> Iterator[Finding]:
    for path in (directory / name for name in (CONFIG_FILE, GENERATION_FILE)):
        values = dict(read_json_object(path)) if path.is_file() else {}
        for stated in without_unnamed_ends(values, ids):
            write_json(path, values)
            yield Finding(
                file=path.name,
                found=f"{ENDS_KEY} = {stated}, and {TOKENIZER_FILE} has no token with each id",
                done=f"written as {json.dumps(values[ENDS_KEY])}",
            )


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
