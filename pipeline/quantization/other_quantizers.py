"""Run other quantizers, each as a process in a pinned environment of its own.

Two things are taken from a library: its weights, and their description in its `config.json`.
Tensors that it left unquantized are converted to the base's dtype, and so are scales, because on a
CPU all libraries compute, and some write, in float32. Paths of this machine are removed from the
description. Every other file comes from the base, so that a tokenizer or a license that a library
rewrote or dropped is never released. The coverage is measured on the files.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.calibration.sample import calibration_sample
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.checks import read_json_object
from pipeline.checkpoint.names import CARD_FILE, CONFIG_FILE, INDEX_FILE
from pipeline.checkpoint.reading import Checkpoint, save_tensors
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import read_bytes, readable_disk_errors
from pipeline.core.process import run_program
from pipeline.core.progress import note
from pipeline.core.workspace import Workspace
from pipeline.params.other_quantizers import BackendParams, BackendRequest, BackendResult
from pipeline.params.params import Params
from pipeline.quantization.grouping import require_divisible, require_text_alone
from pipeline.quantization.other_coverage import measured_coverage
from pipeline.records.base import BaseManifest
from pipeline.records.variant import TensorCoverage

ROOT = Path(__file__).resolve().parents[2]
SET_UP = ROOT / "envs" / "peer.py"
RUN = ROOT / "envs" / "peers" / "run_backend.py"
WEIGHTS_SUFFIX = ".safetensors"
QUANTIZATION_KEY = "quantization_config"
# Libraries download and report nothing: the model is on this disk.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class BackendVariant:
    """The coverage of a variant, and the versions of the programs that made its files."""

    coverage: tuple[TensorCoverage, ...]
    versions: dict[str, str]


def write_with_backend(
    workspace: Workspace,
    params: Params,
    base: BaseManifest,
    recipe: BackendParams,
    statistics: Statistics,
    model_dir: Path,
) -> BackendVariant:
    """Fill `model_dir` with the variant that the recipe's backend makes of the base.

    Raises InputError when the group size does not divide, and when the calibration text has changed
    since it was measured; FailureError when the library fails, or leaves out a tensor or a linear.
    """
    linears = {name: statistics.in_features(name) for name in statistics.linears}
    require_text_alone(recipe, base.text_part)
    require_divisible(recipe, linears)
    samples = calibration_samples(workspace, params, statistics)
    python = set_up_backend(recipe.backend)
    with TemporaryDirectory(dir=model_dir.parent) as work:
        request = BackendRequest(
            recipe=recipe,
            model_dir=workspace.base_dir.resolve(),
            token_ids_path=Path(work) / "samples.json",
            output_dir=Path(work) / "model",
            result_path=Path(work) / "result.json",
            seed=params.calibration.seed,
        )
        result = run_backend(python, request, samples)
        _write_model(request.output_dir, workspace.base_dir, base, model_dir)
    coverage = measured_coverage(workspace.base_dir, model_dir, recipe, statistics)
    return BackendVariant(coverage=coverage, versions=result.versions)


def calibration_samples(
    workspace: Workspace, params: Params, statistics: Statistics
) -> list[list[int]]:
    """Draw the token ids that calibration measured.

    Raises InputError when they are no longer the same.
    """
    sample = calibration_sample(workspace, params, tokenizer_of(workspace.base_dir))
    if sample.token_ids_sha256 != statistics.record.token_ids_sha256:
        raise InputError(
            f"calibration.text = {params.calibration.text}: not the tokens that were measured; "
            "run `quantline calibrate` again"
        )
    return sample.windows


def environment_dir(backend: str) -> Path:
    return ROOT / f".venv-{backend}"


def set_up_backend(backend: str) -> Path:
    """Return the Python of the backend's environment, which is installed if it is missing."""
    directory = environment_dir(backend)
    python = directory / "bin" / "python"
    if not python.exists():
        note(f"quantize: setting up {directory.name}, once; usually 5 minutes")
    log_path = directory / "setup.log"
    run_program([sys.executable, SET_UP, backend], log_path=log_path, environment={})
    return python


def run_backend(
    python: Path, request: BackendRequest, samples: Sequence[Sequence[int]]
) -> BackendResult:
    """Run the library and return its result.

    Raises FailureError with its last lines when it fails.
    """
    work = request.result_path.parent
    request.token_ids_path.write_text(json.dumps(samples))
    request_path = work / "request.json"
    request_path.write_bytes(request.to_bytes())
    backend = request.recipe.backend
    note(f"quantize: {len(samples)} samples to {backend}; its output is not shown")
    # A C++ extension that a library compiles is kept in its environment.
    extensions = {"TORCH_EXTENSIONS_DIR": str(environment_dir(backend) / "torch-extensions")}
    run_program(
        [python, RUN, request_path],
        log_path=work / "backend.log",
        environment=ENVIRONMENT | extensions,
        cwd=work,
    )
    source = str(request.result_path)
    return BackendResult.from_bytes(read_bytes(request.result_path, made_by=backend), source=source)


def _write_model(made_dir: Path, base_dir: Path, base: BaseManifest, model_dir: Path) -> None:
    """Write the library's weights and their description, and every other file of the base."""
    made_config = read_json_object(made_dir / CONFIG_FILE)
    if QUANTIZATION_KEY not in made_config:
        raise FailureError(f"{made_dir / CONFIG_FILE}: no {QUANTIZATION_KEY}; nothing was kept")
    checkpoint = Checkpoint(base_dir)
    description = _without_paths(made_config[QUANTIZATION_KEY])
    config = checkpoint.config | {QUANTIZATION_KEY: description}
    with readable_disk_errors(model_dir):
        for path in sorted(made_dir.iterdir()):
            if path.suffix == WEIGHTS_SUFFIX:
                save_tensors(model_dir / path.name, _in_base_dtypes(path, checkpoint))
            elif path.name == INDEX_FILE:
                path.rename(model_dir / path.name)
        for file in base.files:
            if Path(file.path).suffix == WEIGHTS_SUFFIX or file.path in (INDEX_FILE, CARD_FILE):
                continue
            target = model_dir / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base_dir / file.path, target)
        (model_dir / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _without_paths(value: Any) -> Any:
    """Copy a JSON value without the keys, at any depth, that hold an absolute path."""
    if not isinstance(value, dict):
        return value
    return {
        key: _without_paths(inner)
        for key, inner in value.items()
        if not (isinstance(inner, str) and Path(inner).is_absolute())
    }


def _in_base_dtypes(path: Path, base: Checkpoint) -> dict[str, Tensor]:
    """Read the tensors of a file, and convert those of the base, and scales, to its dtypes.

    Scales that are not float32 keep their dtype.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise FailureError(f"{path.name}: cannot be read: {error}; nothing was kept") from error
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        weight = f"{name.rpartition('.')[0]}.weight"
        if name in base.names:
            converted[name] = tensor.to(base.tensor(name).dtype)
        elif tensor.dtype is torch.float32 and weight in base.names:
            converted[name] = tensor.to(base.tensor(weight).dtype)
        else:
            converted[name] = tensor
    return converted
