"""Which files make up a checkpoint, and how a source of one is written.

Only what is needed to run and to release a model is ever taken: weights in safetensors, the
configuration, the tokenizer, the model card and legal texts. An allow-list, so that nothing that
could carry code (pickles, Python files) gets in under a new name.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.core.errors import InputError, shown
from pipeline.core.file_records import FileRecord
from pipeline.params.params import HUB_PREFIX

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CARD_FILE = "README.md"

# Names as transformers writes them: https://huggingface.co/docs/transformers
SIDECAR_FILES = frozenset(
    {
        CONFIG_FILE,
        INDEX_FILE,
        *TOKENIZER_FILES,
        TOKENIZER_CONFIG_FILE,
        CARD_FILE,
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_NAMED = r"([_-][A-Za-z0-9_-]{1,40}(\.\d+)*)?(\.(txt|md))?"
LEGAL_FILE = re.compile(
    r"(LICEN[SC]E|COPYING|NOTICE|USE_POLICY|ACCEPTABLE_USE)" + _NAMED, re.IGNORECASE
)
LICENSE_TEXT = re.compile(r"(LICEN[SC]E|COPYING)" + _NAMED, re.IGNORECASE)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")
REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


RepoType = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubSource:
    """A repository of a hub and a revision of it: a full commit, or (not yet) a branch or tag."""

    repo: str
    revision: str
    repo_type: RepoType = "model"

    @property
    def is_pinned(self) -> bool:
        return COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{_PREFIXES[self.repo_type]}{self.repo}@{self.revision}"


_PREFIXES: dict[RepoType, str] = {"model": HUB_PREFIX, "dataset": f"{HUB_PREFIX}datasets/"}


def parse_hub_source(source: str) -> HubSource:
    """Read `hf:ORG/NAME@REVISION`; without a revision it is `main`. Raises InputError."""
    return _parsed(source, "model", key="model.source")


def parse_dataset_source(source: str) -> HubSource:
    """Read `hf:datasets/ORG/NAME@REVISION` in the same way."""
    return _parsed(source, "dataset", key="calibration.dataset.source")


def _parsed(source: str, repo_type: RepoType, *, key: str) -> HubSource:
    prefix = _PREFIXES[repo_type]
    repo, _, revision = source.removeprefix(prefix).partition("@")
    revision = revision or "main"
    is_name = REPO_ID.fullmatch(repo) and REVISION.fullmatch(revision) and ".." not in source
    if not source.startswith(prefix) or not is_name:
        raise InputError(f"{key} = {shown(source)}: expected {prefix}ORG/NAME@COMMIT")
    return HubSource(repo, revision, repo_type)


def sidecar_names(names: Collection[str]) -> tuple[str, ...]:
    """The files to take besides the weights, sorted."""
    return tuple(
        sorted(name for name in names if name in SIDECAR_FILES or LEGAL_FILE.fullmatch(name))
    )


def license_text(names: Collection[str]) -> str | None:
    """The file with the license's text: LICENSE, LICENCE or COPYING, the shortest name first."""
    texts = [name for name in names if LICENSE_TEXT.fullmatch(name)]
    return min(texts, key=lambda name: (len(name), name), default=None)


def weight_names(names: Collection[str], *, shards: Collection[str] | None) -> tuple[str, ...]:
    """The weight files to take, sorted.

    `shards` are the files that the index names, None without an index. Like transformers, one
    whole model.safetensors wins over shards. Raises InputError when there are no such weights.
    """
    if WEIGHTS_FILE in names:
        return (WEIGHTS_FILE,)
    if shards is not None:
        for shard in sorted(shards):
            if shard not in names:
                raise InputError(
                    f"{shard}: missing, though {INDEX_FILE} names it; the checkpoint is "
                    "incomplete: use another revision or ask its owner"
                )
        return tuple(sorted(shards))
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise InputError(
            f"{pickles[0]}: weights as a pickle, which can run code when it is read; expected "
            f"{WEIGHTS_FILE} or {INDEX_FILE}: use a safetensors revision or conversion of the model"
        )
    raise InputError(f"no weights: expected {WEIGHTS_FILE} or {INDEX_FILE} among the files")


class CheckpointSource(Protocol):
    """Where a checkpoint's files come from: a hub, its cache on this machine, or a directory."""

    @property
    def revision(self) -> str | None:
        """The full commit of a hub model, else None."""

    def sizes(self) -> dict[str, int]:
        """Every file at the top level, with its size in bytes."""

    def take(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> FileRecord:
        """Bring a file into `target_dir`, proven whole; `advance` is told the bytes moved."""

    def is_unchanged(self, files: tuple[FileRecord, ...]) -> bool:
        """Whether taking the same files again would give the same bytes."""
