"""Show a release and its evidence, and of an alias the history."""

from pipeline.core.errors import printable
from pipeline.core.formatting import NBSP, bytes_text
from pipeline.core.workspace import Workspace
from pipeline.registry.alias_moves import read_history
from pipeline.registry.aliases import ALIAS
from pipeline.registry.evidence import find_evidence
from pipeline.registry.places import open_release
from pipeline.registry.stored_release import StoredRelease, read_release


def run(workspace: Workspace, *, ref: str) -> None:
    """Print the release that `ref` names.

    Raises InputError when it is no release, FailureError when the store fails.
    """
    store, name = open_release(workspace, ref)
    release = read_release(store, name)
    rows = [*describe(release)]
    for evidence in find_evidence(store, release.digest):
        rows.append((evidence.kind.name, evidence.content.digest))
    if ALIAS.fullmatch(name):
        history = read_history(store, name)
        for move in history.moves:
            rows.append((f"{move.verb} {move.time:%Y-%m-%d %H:%M}", f"{move.title} {move.digest}"))
        if history.moves and history.standing()[-1].digest != release.digest:
            rows.append(("moved since", "by something else; `quantline promote` sets it again"))
    width = max(len(key) for key, _ in rows)
    print("\n".join(f"{key:<{width}}  {printable(value)}" for key, value in rows))


def describe(release: StoredRelease) -> list[tuple[str, str]]:
    """Return the facts of a release, in rows of a name and a value."""
    package = release.package
    base = package.base
    size = bytes_text(release.contents.size_bytes).replace(NBSP, " ")
    return [
        ("release", package.title),
        ("digest", release.digest),
        ("format", ", ".join(dict.fromkeys((package.format, package.quantization)))),
        ("quantized with", package.quantizer),
        ("bits per weight", f"{package.bits_per_weight:.2f}"),
        ("license", package.license.expression),
        ("made by", package.quantized_by),
        ("made from", f"{base.name}@{base.revision}" if base.revision else base.name),
        ("files", f"{len(release.contents.files)}, {size}"),
    ]
