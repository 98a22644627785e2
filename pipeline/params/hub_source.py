"""References to a model or data set on a hub, in the form `hf:ORG/NAME@COMMIT`."""

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.core.errors import InputError, short_repr
from pipeline.params.params import HUB_PREFIX

COMMIT = re.compile(r"[0-9a-f]{40}")


REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")


REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


RepoType = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubSource:
    """A repository of a hub and a revision: a full commit, or a branch or tag before it is pinned.

    Its text is the form that users write.
    """

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
    """Parse `hf:ORG/NAME@REVISION`; the revision is `main` where none is given.

    Raises InputError for any other form.
    """
    return _parsed(source, "model", key="model.source")


def parse_dataset_source(source: str) -> HubSource:
    """Parse `hf:datasets/ORG/NAME@REVISION` in the same way."""
    return _parsed(source, "dataset", key="calibration.dataset.source")


def _parsed(source: str, repo_type: RepoType, *, key: str) -> HubSource:
    prefix = _PREFIXES[repo_type]
    repo, _, revision = source.removeprefix(prefix).partition("@")
    revision = revision or "main"
    is_name = REPO_ID.fullmatch(repo) and REVISION.fullmatch(revision) and ".." not in source
    if not source.startswith(prefix) or not is_name:
        raise InputError(f"{key} = {short_repr(source)}: expected {prefix}ORG/NAME@COMMIT")
    return HubSource(repo, revision, repo_type)
