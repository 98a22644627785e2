"""Set git tags in the form of GTO (`NAME@vVERSION`), by which DVC finds a version of an artifact.

Tags stay in the local repository. The user decides whether to push them.

Format: https://dvc.org/doc/gto/user-guide
"""

from pathlib import Path
from typing import Final

from pipeline.core.errors import FailureError, InputError
from pipeline.core.process import ask_program

TIMEOUT_S: Final = 60.0
RECORDED_FILES: Final = ("dvc.lock", "dvc.yaml", "params.yaml")


def tag_commit(root: Path, tag: str, *, message: str) -> str:
    """Give the current commit an annotated tag, unless it has this tag; return the commit's id.

    Raises InputError when another commit has the tag, and when dvc.lock, dvc.yaml or params.yaml,
    which DVC reads at a tag, are not committed. Raises FailureError when git refuses.
    """
    commit = _ask(root, "rev-parse", "--verify", "HEAD^{commit}")
    if commit is None:
        raise InputError(f"{root}: no commit of a git repository to tag; commit dvc.lock first")
    if not _ask(root, "ls-files", "dvc.lock") or _ask(root, "status", "-s", "--", *RECORDED_FILES):
        raise InputError(
            f"{', '.join(RECORDED_FILES)}: not as committed; commit them, so that the tag finds "
            "this release, then run the same command again"
        )
    tagged = _ask(root, "rev-parse", "-q", "--verify", f"refs/tags/{tag}^{{commit}}")
    if tagged is None:
        if _ask(root, "tag", "-a", tag, "-m", message, commit) is None:
            raise FailureError(f"git tag {tag}: failed; git says why above")
    elif tagged != commit:
        raise InputError(f"{tag}: already the tag of {tagged}; tags never move")
    return commit


def tag_prefix(root: Path) -> str:
    """Return GTO's prefix of a name: the path of the workspace in its repository, and `=`."""
    place = (_ask(root, "rev-parse", "--show-prefix") or "").rstrip("/")
    return f"{place}=" if place else ""


def _ask(root: Path, *arguments: str) -> str | None:
    """Return what git prints, or None when it fails."""
    answer = ask_program(["git", "-C", root, *arguments], b"", timeout_s=TIMEOUT_S)
    return answer.output.decode(errors="replace").strip() if answer.exit_code == 0 else None
