"""Read a checkpoint or data set from a Hugging Face hub or a mirror of one.

huggingface_hub sends the requests: endpoint (HF_ENDPOINT), tokens (HF_TOKEN or its credential
store), proxies and retries are its own. It does not check its downloads. Here every file is
compared with the digest that the hub lists for the commit. `hub_errors` has the messages.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)
from huggingface_hub.hf_api import DatasetInfo, ModelInfo, RepoSibling
from huggingface_hub.utils import logging as hub_logging
from tqdm import tqdm

from pipeline.checkpoint.names import CONFIG_FILE
from pipeline.checkpoint.safetensors_header import TensorInfo
from pipeline.core.errors import FailureError, InputError, short_repr
from pipeline.core.file_records import FileRecord, relative_posix
from pipeline.core.files import copy_file
from pipeline.core.progress import note
from pipeline.params.hub_source import HubSource
from pipeline.sources.hub_cache import CachedCheckpoint
from pipeline.sources.hub_digest import HubDigest, hub_record, parse_digest
from pipeline.sources.hub_errors import TRY_AGAIN, readable_hub_errors, redacted_endpoint
from pipeline.sources.source import CheckpointSource

# Requests say nothing about this machine: the library would add the versions of other packages,
# and ask the hub for a list of programs that may have started it.
constants.HF_HUB_DISABLE_TELEMETRY = True
# Its warnings quote whole URLs; what matters in them is in the error at the end.
hub_logging.set_verbosity(logging.ERROR)

EMPTY_CACHE_DIR = "cache"
LISTING_TIMEOUT_S = 60.0
MAX_DIMENSION = 1 << 40
UNREADABLE_HEADER = (NotASafetensorsRepoError, SafetensorsParsingError, KeyError, TypeError)


def open_hub(source: HubSource, *, known_file: str = CONFIG_FILE) -> CheckpointSource:
    """Return the repository at a pinned commit: on the hub, or with HF_HUB_OFFLINE in its cache.

    The cache is searched for `known_file`, which the repository must have. Raises InputError for a
    branch or tag; the message names its current commit.
    """
    if not source.is_pinned:
        raise InputError(_unpinned(source))
    if constants.is_offline_mode():
        return CachedCheckpoint(source, known_file=known_file)
    endpoint = current_endpoint()
    note(f"fetch: {source} from {redacted_endpoint(endpoint)}")
    return HubCheckpoint(source, endpoint=endpoint)


def current_endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT as it is now, else huggingface_hub's own."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _unpinned(source: HubSource) -> str:
    expected = f"{source}: expected a full commit (40 hex digits)"
    if constants.is_offline_mode():
        return f"{expected}; HF_HUB_OFFLINE is set, so the commit cannot be looked up"
    commit = read_info(source, endpoint=current_endpoint()).sha
    pinned = replace(source, revision=str(commit))
    if not pinned.is_pinned:
        return f"{expected}; the hub names none for {source.revision}"
    return f"{expected}; {source.revision} is now at {commit}: write {pinned}"


def read_info(source: HubSource, *, endpoint: str) -> ModelInfo | DatasetInfo:
    """Return the hub's description of a revision, with the size and digest of every file.

    Raises InputError or FailureError, by `readable_hub_errors`.
    """
    with readable_hub_errors(source, endpoint=endpoint):
        try:
            api = HfApi(endpoint=endpoint)
            info = api.dataset_info if source.repo_type == "dataset" else api.model_info
            return info(
                source.repo,
                revision=source.revision,
                files_metadata=True,
                timeout=LISTING_TIMEOUT_S,
            )
        except (httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, UnicodeError):
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FailureError(
                f"{redacted_endpoint(endpoint)}: what it answers does not describe a repository; "
                "check HF_ENDPOINT"
            ) from error


class HubCheckpoint:
    """Offer one commit of a repository on a hub as a CheckpointSource, over the network."""

    def __init__(self, source: HubSource, *, endpoint: str) -> None:
        self._source = source
        self._endpoint = endpoint
        self._listed: dict[str, HubDigest] | None = None

    @property
    def revision(self) -> str:
        """Return the full commit."""
        return self._source.revision

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every listed file, by name."""
        return {name: digest.size for name, digest in self._digests().items()}

    def header(self, name: str) -> dict[str, TensorInfo]:
        """Download the header of a safetensors file alone.

        Raises InputError for a header or a shape that is not valid.
        """
        with readable_hub_errors(self._source, endpoint=self._endpoint, name=name):
            try:
                header = HfApi(endpoint=self._endpoint).parse_safetensors_file_metadata(
                    self._source.repo, name, revision=self._source.revision
                )
            except UNREADABLE_HEADER as error:
                raise InputError(
                    f"{self._source}: {name}: its header cannot be read; use another checkpoint"
                ) from error
        tensors: dict[str, TensorInfo] = {}
        for tensor, entry in header.tensors.items():
            shape: object = entry.shape  # of an untrusted file, like the others
            offsets: tuple[object, ...] = entry.data_offsets
            if not isinstance(shape, list) or not all(
                type(length) is int and 0 <= length < MAX_DIMENSION for length in shape
            ):
                raise InputError(
                    f"{name}: a tensor has the shape {short_repr(shape)}; use another checkpoint"
                )
            match offsets:
                case (int(begin), int(end)):
                    tensors[tensor] = TensorInfo(str(entry.dtype), tuple(shape), end - begin)
                case _:
                    raise InputError(
                        f"{name}: a tensor has the offsets {short_repr(offsets)}; use another "
                        "checkpoint"
                    )
        return tensors

    def is_unchanged(self, files: tuple[FileRecord, ...]) -> bool:
        """Return True: a commit never changes."""
        return True

    def take(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> FileRecord:
        """Download a file unless it is in `target_dir` or in the hub's cache already.

        Raises FailureError when what arrives is not what the hub lists; it is not kept then.
        """
        digest = self._digests()[name]
        target_path = target_dir / name
        if isinstance(record := hub_record(target_path, digest), FileRecord):
            advance(digest.size)
            return record
        target_path.unlink(missing_ok=True)
        if not self._copy_from_cache(name, digest, target_path, advance=advance):
            self._download(name, target_dir, advance=advance)
        record = hub_record(target_path, digest)
        if isinstance(record, FileRecord):
            return record
        target_path.unlink(missing_ok=True)
        raise FailureError(
            f"{self._source}: {name}: {record}: the download is damaged and was not kept; "
            f"{TRY_AGAIN}"
        )

    def _digests(self) -> dict[str, HubDigest]:
        if self._listed is None:
            info = read_info(self._source, endpoint=self._endpoint)
            self._listed = {
                self._safe_name(file.rfilename): self._listed_digest(file)
                for file in info.siblings or ()
            }
        return self._listed

    def _safe_name(self, name: object) -> str:
        try:
            return relative_posix(str(name))
        except ValueError as error:
            raise InputError(
                f"{self._source}: the hub lists a file named {short_repr(name)}: {error}; use "
                "another repository"
            ) from error

    def _listed_digest(self, file: RepoSibling) -> HubDigest:
        try:
            return parse_digest(
                file.lfs.size if file.lfs else file.size,
                git_id=file.blob_id,
                sha256=file.lfs.sha256 if file.lfs else None,
            )
        except ValueError as error:
            raise FailureError(
                f"{self._source}: {short_repr(file.rfilename)}: the hub lists {error}; without it "
                "the file cannot be checked: use another hub or mirror"
            ) from error

    def _copy_from_cache(
        self, name: str, digest: HubDigest, target_path: Path, *, advance: Callable[[int], None]
    ) -> bool:
        source = self._source
        cached = try_to_load_from_cache(
            source.repo, name, revision=source.revision, repo_type=source.repo_type
        )
        if not isinstance(cached, str):
            return False
        if not isinstance(hub_record(Path(cached), digest), FileRecord):
            return False
        copy_file(Path(cached), target_path, advance=advance)
        return True

    def _download(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> None:
        # The cache was searched before. An empty cache prevents the use of a damaged file in it.
        with readable_hub_errors(self._source, endpoint=self._endpoint, name=name):
            hf_hub_download(
                self._source.repo,
                name,
                repo_type=self._source.repo_type,
                revision=self._source.revision,
                local_dir=target_dir,
                cache_dir=target_dir / ".cache" / EMPTY_CACHE_DIR,
                endpoint=self._endpoint,
                tqdm_class=_bar_class(advance),
            )


def _bar_class(advance: Callable[[int], None]) -> "type[tqdm[object]]":
    """Return a progress bar class that shows nothing, and calls `advance` with the bytes moved."""

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignore the bytes on the network; those on the disk are counted."""

        def set_transfer_postfix_str(self, postfix: str, refresh: bool = False) -> None:
            """Show nothing."""

    return Bar
