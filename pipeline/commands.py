"""Define the commands: one for each stage of the graph, and those before, after and without a run.

A command checks the parameters and calls the `run` of its module. The module is imported only then,
so that help and completion load no model library. `pipeline.cli_app` turns the error of a command
into one line.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from pipeline.cli_app import BESIDE_THE_GRAPH, RELEASES, STAGES, app, command, run_command
from pipeline.core.errors import QuantlineError
from pipeline.core.workspace import BASE, PARAMS_FILE, Workspace

if TYPE_CHECKING:
    from pipeline.params.params import Params

__all__ = ["app", "run_command"]  # with every command registered

# Idle threads of torch sleep instead of spinning: spinning costs several times what it saves when
# the machine runs anything else. The variable is read once, when a stage loads torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _workspace_here() -> Workspace:
    return Workspace(Path.cwd())


def _workspace() -> "tuple[Workspace, Params]":
    """Return the workspace and its checked parameters. Raises InputError."""
    from pipeline.params.reading import read_workspace

    workspace = _workspace_here()
    return workspace, read_workspace(workspace)


def _variants(context: typer.Context) -> list[str]:
    """Return the variants of params.yaml for completion; none where it cannot be read."""
    from pipeline.core.yaml_files import read_yaml

    directory = context.parent.params.get("directory") if context.parent else None
    try:
        values = read_yaml(Path(directory or ".") / PARAMS_FILE)
    except QuantlineError:
        return []
    variants = values.get("variants") if isinstance(values, dict) else None
    return [str(name) for name in variants] if isinstance(variants, dict) else []


def _models(context: typer.Context) -> list[str]:
    return [BASE, *_variants(context)]


VARIANT_HELP: Final = f"A key of `variants` in {PARAMS_FILE}"
Variant = Annotated[
    str, typer.Argument(metavar="NAME", help=f"{VARIANT_HELP}.", autocompletion=_variants)
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME",
        help=f"{VARIANT_HELP}, or `{BASE}`; several share a run.",
        autocompletion=_models,
    ),
]
Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="TAG, HOST/REPOSITORY:TAG or oci:DIRECTORY:TAG; @sha256:... may replace :TAG.",
    ),
]
Place = Annotated[
    str | None,
    typer.Argument(
        metavar="PLACE",
        help=f"HOST/REPOSITORY or oci:DIRECTORY; without it, the one of {PARAMS_FILE}.",
    ),
]
TarFile = Annotated[Path, typer.Argument(metavar="FILE", help="A tar file.")]


@command(STAGES, "inputs")
def inputs() -> None:
    """Record the state of the files that params.yaml names."""
    from pipeline.stages.inputs import run

    run(*_workspace())


@command(STAGES, "fetch")
def fetch() -> None:
    """Get the pinned base checkpoint and verify every file."""
    from pipeline.stages.fetch import run

    run(*_workspace())


@command(STAGES, "calibrate")
def calibrate() -> None:
    """Measure the second moments of every linear input."""
    from pipeline.stages.calibrate import run

    run(*_workspace())


@command(STAGES, "quantize awq-w4-g128")
def quantize(name: Variant) -> None:
    """Make one variant."""
    from pipeline.stages.quantize import run

    run(*_workspace(), name)


@command(STAGES, "evaluate base", "evaluate awq-w4-g128 gguf-q4-k-m")
def evaluate(names: Models) -> None:
    """Score the base or variants."""
    from pipeline.stages.evaluate import run

    run(*_workspace(), *names)


@command(STAGES, "select")
def select() -> None:
    """Decide which variants may be released."""
    from pipeline.stages.select import run

    run(*_workspace())


@command(STAGES, "benchmark")
def benchmark() -> None:
    """Serve the approved variants and the base under load."""
    from pipeline.stages.benchmark import run

    run(*_workspace())


@command(STAGES, "package")
def package() -> None:
    """Make a self-contained directory of each approved variant."""
    from pipeline.stages.package import run

    run(*_workspace())


@command(STAGES, "publish")
def publish() -> None:
    """Push the packages to the registry."""
    from pipeline.stages.publish import run

    run(*_workspace())


@command(STAGES, "report")
def report() -> None:
    """Write the report."""
    from pipeline.stages.report import run

    run(*_workspace())


@command(BESIDE_THE_GRAPH, "plan", "plan --fits '8 GB'")
def plan(
    fits: Annotated[str, typer.Option(help="Print the best GGUF types for this memory.")] = "",
) -> None:
    """Predict memory, disk and time of a run, and refuse one that cannot fit."""
    from pipeline.verbs.plan import run

    run(*_workspace(), fits)


@command(BESIDE_THE_GRAPH, "explain gguf-q2-k")
def explain(name: Variant) -> None:
    """Say why a variant got its verdict."""
    from pipeline.verbs.explain import run

    run(*_workspace(), name)


@command(BESIDE_THE_GRAPH, "record")
def record() -> None:
    """Tag the current commit with the published version."""
    from pipeline.verbs.record import run

    run(_workspace_here())


@command(RELEASES, "ls", "ls registry.example.org/team/model")
def ls(place: Place = None) -> None:
    """List releases and aliases."""
    from pipeline.verbs.ls import run

    run(_workspace_here(), place=place)


@command(RELEASES, "show 1.0.0-awq-w4-g128", "show registry.example.org/team/model:prod")
def show(ref: Ref) -> None:
    """Describe a release, or an alias and its history."""
    from pipeline.verbs.show import run

    run(_workspace_here(), ref=ref)


@command(
    RELEASES,
    "verify 1.0.0-awq-w4-g128 --key key.pub",
    "verify prod --identity jane@example.org --issuer https://example.org",
)
def verify(
    ref: Ref,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The signer's public key (PEM).")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(metavar="WHO", help="Who signed without a key, such as an address."),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="The URL that vouches for the identity.")
    ] = None,
    trusted_root: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sigstore's trusted root (JSON).")
    ] = None,
) -> None:
    """Check digests, license, evidence and signature of a release."""
    from pipeline.verbs.verify import run

    run(
        _workspace_here(),
        ref=ref,
        key=key,
        identity=identity,
        issuer=issuer,
        trusted_root=trusted_root,
    )


@command(
    RELEASES,
    "pull 1.0.0-awq-w4-g128 --to vllm",
    "pull oci:artifacts/registry:1.0.0-gguf-q4-k-m --to dir --into model",
)
def pull(
    ref: Ref,
    to: Annotated[Literal["vllm", "ollama", "dir"], typer.Option(help="What will use it.")],
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The directory; else a new one, or OLLAMA_MODELS."),
    ] = None,
) -> None:
    """Download a release, verified."""
    from pipeline.verbs.pull import run

    run(_workspace_here(), ref=ref, to=to, into=into)


@command(RELEASES, "promote 1.0.0-awq-w4-g128 prod")
def promote(
    ref: Ref, alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as latest or prod.")]
) -> None:
    """Point an alias at a release."""
    from pipeline.verbs.promote import run

    run(_workspace_here(), ref=ref, alias=alias)


@command(RELEASES, "rollback prod")
def rollback(
    alias: Annotated[
        str, typer.Argument(metavar="ALIAS", help="Such as prod, or HOST/REPOSITORY:prod.")
    ],
) -> None:
    """Point an alias at its previous release again."""
    from pipeline.verbs.rollback import run

    run(_workspace_here(), alias=alias)


@command(RELEASES, "export 1.0.0-awq-w4-g128 release.tar")
def export(ref: Ref, file: TarFile) -> None:
    """Write a release and its evidence into one file."""
    from pipeline.verbs.export import run

    run(_workspace_here(), ref=ref, file=file)


@command(RELEASES, "import release.tar oci:mirror", name="import")
def import_(file: TarFile, place: Place = None) -> None:
    """Publish the releases of an exported file."""
    from pipeline.verbs.import_ import run

    run(_workspace_here(), file=file, place=place)
