"""Read a checkpoint or data set from huggingface_hub's cache, without a network.

The cache keeps each file under the digest that the hub listed for it, and each commit as a
directory of links to such files. A file is compared with the digest in the target of its link.

Format: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from pipeline.checkpoint.safetensors_header import TensorInfo, read_header
from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord
from pipeline.core.files import copy_file
from pipeline.params.hub_source import HubSource
from pipeline.sources.hub_digest import SHA256, HubDigest, hub_record, parse_digest

BLOBS_DIR = "blobs"


class CachedCheckpoint:
    """Offer the cached files of one commit of a repository as a CheckpointSource."""

    def __init__(self, source: HubSource, *, known_file: str) -> None:
        """Raise InputError when the cache does not have `known_file` of this commit."""
        self._source = source
        kind = " --repo-type dataset" if source.repo_type == "dataset" else ""
        self._fill = (
            "unset HF_HUB_OFFLINE, or fill the cache with "
            f"`hf download {source.repo}{kind} --revision {source.revision}`"
        )
        cached = try_to_load_from_cache(
            source.repo, known_file, revision=source.revision, repo_type=source.repo_type
        )
        if not isinstance(cached, str):
            raise InputError(f"{source}: not in the cache, and HF_HUB_OFFLINE is set; {self._fill}")
        self._snapshot_dir = Path(cached).parents[known_file.count("/")]

    @property
    def revision(self) -> str:
        """Return the full commit."""
        return self._source.revision

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every cached file, by name."""
        return {
            path.relative_to(self._snapshot_dir).as_posix(): path.stat().st_size
            for path in self._snapshot_dir.rglob("*")
            if path.is_file()
        }

    def header(self, name: str) -> dict[str, TensorInfo]:
        """Read the header of a safetensors file where it is."""
        return read_header(self._snapshot_dir / name)

    def is_unchanged(self, files: tuple[FileRecord, ...]) -> bool:
        """Return True: a commit never changes."""
        return True

    def take(self, name: str, target_dir: Path, *, advance: Callable[[int], None]) -> FileRecord:
        """Copy a file from the cache. Raises InputError when its digest is not the listed one."""
        digest = self._digest(name)
        copy_file(self._snapshot_dir / name, target_dir / name, advance=advance)
        record = hub_record(target_dir / name, digest)
        if isinstance(record, FileRecord):
            return record
        (target_dir / name).unlink()
        raise InputError(
            f"{self._source}: {name}: damaged in the cache ({record}); delete "
            f"{self._snapshot_dir / name} and what it points to, then {self._fill}"
        )

    def _digest(self, name: str) -> HubDigest:
        path = self._snapshot_dir / name
        blob = path.readlink() if path.is_symlink() else Path()
        is_sha256 = SHA256.fullmatch(blob.name) is not None
        try:
            if blob.parent.name != BLOBS_DIR:
                raise ValueError("not kept by digest")
            return parse_digest(
                path.stat().st_size,
                git_id=blob.name,
                sha256=blob.name if is_sha256 else None,
            )
        except ValueError as error:
            raise InputError(
                f"{self._source}: {name}: the cache does not say its digest, so it cannot be "
                f"checked; {self._fill}"
            ) from error
