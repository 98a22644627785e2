"""Write the state of what `params.yaml` names outside the graph, so that DVC sees its changes.

The stage runs at every `dvc repro`, reads no weights, and refuses a named file that is missing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.core.errors import InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import (
    PACKAGE_DIR,
    file_record,
    file_sha256,
    new_directory,
    write_record,
)
from pipeline.core.workspace import Workspace
from pipeline.licensing.reading import read_data_license, read_decision
from pipeline.licensing.rules import license_rules
from pipeline.params.gate import GateParams
from pipeline.params.params import DEMO_SOURCE, HUB_PREFIX, Params
from pipeline.records.inputs import FileState, NamedFiles, ReleaseNaming, StoppingRules

FORMATS: Final = ("awq", "gptq", "compressed-tensors", "gguf")
GATE_DIR: Final = PACKAGE_DIR / "gate"
MAX_HASHED_BYTES: Final = 1 << 26  # a tenth of a second; a clone then has the same state


def run(workspace: Workspace, params: Params) -> None:
    """Write `artifacts/inputs/`. Raises InputError for a named file that is not there."""
    model_dir = _model_dir(workspace, params.model.source)
    license_texts = _license_texts(workspace, params)
    key = params.release.signing_key
    signing_key = workspace.root / key if key is not None else None
    if signing_key is not None and not signing_key.is_file():
        raise InputError(
            f"release.signing_key = {key}: no such file; make a key (docs/license.md says how), or "
            "set it to null to leave packages unsigned"
        )
    with new_directory(workspace.inputs_dir) as work_dir:
        write_record(work_dir / "model.json", _named_files([model_dir]))
        write_record(work_dir / "license.json", _named_files(license_texts))
        write_record(work_dir / "signing-key.json", _named_files([signing_key]))
        for name in FORMATS:
            write_record(work_dir / f"release.{name}.json", _release_naming(params, name))
        write_record(work_dir / "stopping.json", _stopping_rules(params.gate))


def _model_dir(workspace: Workspace, source: str) -> Path | None:
    """Find the directory of a local model; None for a hub's, whose commit is its own pin."""
    if source.startswith(HUB_PREFIX):
        return None
    return workspace.demo_model_dir if source == DEMO_SOURCE else workspace.root / source


def _license_texts(workspace: Workspace, params: Params) -> list[Path | None]:
    """Find the texts of the decisions on the licenses of the model and of the calibration data."""
    data = read_data_license(workspace, params.calibration.license, license_rules())
    decisions = [
        read_decision(workspace, params.model.license),
        data.applied.decision if data.applied else None,
    ]
    return [
        workspace.root / decision.text if decision and decision.text else None
        for decision in decisions
    ]


def _named_files(named: Sequence[Path | None]) -> NamedFiles:
    """Describe the named files, and those right in a named directory."""
    paths = [
        file
        for path in named
        if path is not None
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if file.is_file()
    ]
    states = []
    for file in paths:
        facts = file.stat()
        is_small = facts.st_size <= MAX_HASHED_BYTES
        states.append(
            FileState(
                name=file.name,
                size=facts.st_size,
                sha256=file_sha256(file) if is_small else None,
                modified_ns=None if is_small else facts.st_mtime_ns,
            )
        )
    return NamedFiles(files=tuple(states))


def _release_naming(params: Params, format_name: str) -> ReleaseNaming:
    """Return what files of a format state about the release: GGUF has metadata, others nothing."""
    if format_name != "gguf":
        return ReleaseNaming(name=None, quantized_by=None)
    return ReleaseNaming(name=params.release.name, quantized_by=params.release.quantized_by)


def _stopping_rules(gate: GateParams) -> StoppingRules:
    """Return the rules of the gate that evaluate reads: none, unless it may stop early."""
    if gate.sequential is None:
        return StoppingRules(
            code_sha256=None, error_rate=None, margin=None, classes=None, sequential=None
        )
    return StoppingRules(
        code_sha256=tree_digest(
            tuple(file_record(path, GATE_DIR) for path in sorted(GATE_DIR.glob("*.py")))
        ),
        error_rate=gate.error_rate,
        margin=gate.margin,
        classes=gate.classes,
        sequential=gate.sequential,
    )
