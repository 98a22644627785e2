"""Record a published version as a git tag, so that `gto show` and `dvc artifacts get` find it.

This is a command of its own: the tag names the commit with the finished dvc.lock, and there is no
such commit yet while publish runs.
"""

from pipeline.core.errors import InputError
from pipeline.core.files import read_record
from pipeline.core.workspace import Workspace
from pipeline.core.yaml_files import read_yaml
from pipeline.records.release import Receipts
from pipeline.release.git_tags import tag_commit, tag_prefix


def run(workspace: Workspace) -> None:
    """Tag the current commit.

    Raises InputError when nothing or more than one version was published, when dvc.yaml names no
    artifact for it, or when the commit cannot have the tag.
    """
    path = workspace.receipts_path
    receipts = read_record(Receipts, path, made_by="publish")
    versions = {
        receipt.tag.removesuffix(f"-{variant}") for variant, receipt in receipts.releases.items()
    }
    if len(versions) != 1:
        raise InputError(f"{path}: {len(versions)} published versions, expected one")
    tag = f"{tag_prefix(workspace.root)}{_artifact_name(workspace)}@v{versions.pop()}"
    lines = [
        f"{receipt.reference} {receipt.manifest_digest}" for receipt in receipts.releases.values()
    ]
    commit = tag_commit(workspace.root, tag, message="\n".join(["Published", "", *lines]))
    print(f"{tag}: {commit}; `git push origin {tag}` shares it")


def _artifact_name(workspace: Workspace) -> str:
    """Return the name of the packages in the section `artifacts` of dvc.yaml. Raises InputError."""
    dvc = read_yaml(workspace.root / "dvc.yaml")
    artifacts = dvc.get("artifacts") if isinstance(dvc, dict) else None
    packages = workspace.packages_dir.relative_to(workspace.root).as_posix()
    for name, artifact in (artifacts if isinstance(artifacts, dict) else {}).items():
        if isinstance(artifact, dict) and artifact.get("path") == packages:
            return str(name)
    raise InputError(f"dvc.yaml: no entry of `artifacts` has the path {packages}; add one")
