"""Run every quantizer on the same model and calibration tokens, and evaluate it in the same way.

`benchmarks.quantizers` has the tables of what is compared.
"""

import json
import os
import signal
import statistics as stats
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from benchmarks import real_model
from benchmarks.babyllama import MODEL_DIR, make_workspace
from benchmarks.measured import Cost
from benchmarks.quantizer_texts import OTHER_TEXT, HeldOut, write_other_text
from benchmarks.result import commit
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.record import Record, sha256_hex
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.engines.distance import perplexity
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import Scorer
from pipeline.params.other_quantizers import BackendWeights
from pipeline.params.reading import read_workspace
from pipeline.quantization.other_quantizers import ROOT, environment_dir, set_up_backend
from pipeline.records.base import read_base_manifest
from pipeline.stages import fetch

STOP_GRACE_S = 60.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# The imports of each backend. Their CPU time is subtracted, because it does not grow with the
# model. quantline's own imports end before it is measured (benchmarks/measured.py).
IMPORTS = {
    "autoawq": "import torch, awq",
    "gptqmodel": "import torch, gptqmodel",
    "llmcompressor": (
        "import torch, datasets, llmcompressor.modifiers.gptq, llmcompressor.modifiers.transform"
    ),
    "auto-round": "import torch, auto_round",
}


class Measurement(Record):
    """The quality and cost of one quantizer on one calibration sample.

    `kl` is in nats per token, and so are `window_kls` for each window of the held-out text and
    `other_window_kls` for text of another kind, where that is compared. `top1` is a share of
    tokens. CPU seconds are without imports.
    """

    kl: float
    window_kls: tuple[float, ...]
    other_window_kls: tuple[float, ...]
    top1: float
    perplexity: float
    cpu_s: float
    wall_s: float
    peak_gib: float
    date: str
    commit: str


@dataclass(frozen=True)
class Run:
    """A workspace with a calibrated base, in which quantizers are measured."""

    workspace: Workspace
    cache_dir: Path
    time_limit_s: float

    def measure(self, name: str, *, other_text: bool) -> tuple[Measurement | None, bool]:
        """Quantize and evaluate `variants.<name>`; return the result and whether it was cached.

        The result is None where it did not end within the limit. Results of other quantizers are
        cached, and those of quantline for the same commit.
        """
        recipe = read_workspace(self.workspace).variants[name]
        path = self._cache_path(name)
        if path.exists():
            return Measurement.from_bytes(path.read_bytes(), source=str(path)), True
        if isinstance(recipe, BackendWeights):
            set_up_backend(recipe.backend)
        costs = self.costs(f"quantize:{name}")
        if costs is None:
            return None, False
        made = self._evaluate(name, costs[0], other_text=other_text)
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.to_bytes())
        return made, False

    def costs(self, *tasks: str) -> list[Cost] | None:
        """Run tasks in a process of their own, with one thread. None when time ran out."""
        command = [sys.executable, "-m", "benchmarks.measured", str(self.workspace.root), *tasks]
        process = subprocess.Popen(
            command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True
        )
        try:
            output, _ = process.communicate(timeout=self.time_limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it ends what it started
            process.communicate(timeout=STOP_GRACE_S)
            return None
        if process.returncode != 0:
            sys.exit(f"{' '.join(tasks)}: exit code {process.returncode}; its output is above")
        return [Cost(**cost) for cost in json.loads(output.splitlines()[-1])]

    @property
    def million_weights(self) -> float:
        """The weights of all linears that are quantized, in millions."""
        checkpoint = Checkpoint(self.workspace.base_dir)
        linears = Statistics(self.workspace).linears
        return sum(prod(checkpoint.shape(f"{linear}.weight")) for linear in linears) / 1e6

    def _evaluate(self, name: str, cost: Cost, *, other_text: bool) -> Measurement:
        recipe = read_workspace(self.workspace).variants[name]
        own = HeldOut(self.workspace)
        with closing(_scorer(self.workspace, name)) as scorer:
            found = own.distances(scorer)
            other = HeldOut(self.workspace, OTHER_TEXT).distances(scorer) if other_text else []
        if isinstance(recipe, BackendWeights):
            spent_s = cost.children_cpu_s - imports_cpu_s(recipe.backend)
            peak = cost.children_peak_gib
        else:
            spent_s = cost.own_cpu_s + cost.children_cpu_s
            peak = max(cost.own_peak_gib, cost.children_peak_gib)
        return Measurement(
            kl=float(np.mean([it.kl.mean() for it in found])),
            window_kls=tuple(float(it.kl.mean()) for it in found),
            other_window_kls=tuple(float(it.kl.mean()) for it in other),
            top1=float(np.mean([it.same_top1.mean() for it in found])),
            perplexity=perplexity([it.own_losses for it in found]),
            cpu_s=spent_s,
            wall_s=cost.wall_s,
            peak_gib=peak,
            date=datetime.now(UTC).date().isoformat(),
            commit=commit(),
        )

    def _cache_path(self, name: str) -> Path:
        """Name the file of a result by the digest of everything that it depends on."""
        recipe = read_workspace(self.workspace).variants[name]
        backend = getattr(recipe, "backend", "native")
        pins = ROOT / "envs" / "peers" / f"{backend}.txt"
        parts = (
            recipe.model_dump_json(),
            read_base_manifest(self.workspace).digest,
            Statistics(self.workspace).record.token_ids_sha256,
            pins.read_text() if pins.exists() else commit(),
        )
        return self.cache_dir / f"{name}-{sha256_hex(chr(0).join(parts).encode())[:16]}.json"


def _scorer(workspace: Workspace, name: str) -> Scorer:
    for path in workspace.model_dir(name).glob("*.gguf"):
        return LlamaCppScorer(path, label=name)
    return TransformersScorer(unpacked_model(workspace.model_dir(name)), label=name)


_imports: dict[str, float] = {}


def imports_cpu_s(backend: str) -> float:
    """Measure the CPU seconds in which a backend's Python imports its library, the median of 3."""
    if backend not in _imports:
        python = environment_dir(backend) / "bin" / "python"
        command = [python, "-c", IMPORTS[backend]]
        _imports[backend] = stats.median(_cpu_s_of(command) for _ in range(3))
    return _imports[backend]


def _cpu_s_of(command: list[Any]) -> float:
    process = subprocess.Popen(
        command,
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command}: exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def make_run(
    model: str,
    root: Path,
    *,
    seed: int,
    variants: Mapping[str, dict[str, Any]],
    cache_dir: Path,
    time_limit_s: float,
) -> Run:
    """Make a calibrated workspace for `demo`, `babyllama` or `smollm2` with these variants.

    One that the same commit made in `root` is used again.
    """
    workspace = Workspace(root)
    if not workspace.params_path.is_file():
        if model == "babyllama":
            make_workspace(root, source=str(MODEL_DIR), variants=())
        elif model == "smollm2":
            real_model.make_workspace(root, str(real_model.made_model(cache_dir / model)))
            write_other_text(root)
        else:
            make_demo_workspace(root)
    yaml = YAML()
    params = yaml.load(workspace.params_path)
    params["calibration"]["seed"] = seed
    params["variants"] = dict(variants)
    yaml.dump(params, workspace.params_path)
    fetch.run(workspace, read_workspace(workspace))
    run = Run(workspace=workspace, cache_dir=cache_dir, time_limit_s=time_limit_s)
    calibrated = root / "calibrated"
    if not calibrated.is_file() or calibrated.read_text() != commit():
        if run.costs("calibrate") is None:
            sys.exit("calibrate: out of time")
        calibrated.write_text(commit())
    return run


def make_demo_workspace(root: Path) -> None:
    """Make a workspace of the demo model with the repository's own parameters and texts."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("demo", "eval"):
        (root / name).symlink_to(ROOT / name)
    (root / PARAMS_FILE).write_text((ROOT / PARAMS_FILE).read_text())
