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
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks import real_model
from benchmarks.babyllama import MODEL_DIR, make_workspace
from benchmarks.measured import Cost
from benchmarks.result import commit
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.documents import read_texts
from pipeline.core.record import Record, sha256_hex
from pipeline.core.texts import token_windows
from pipeline.core.workspace import BASE, PARAMS_FILE, Workspace
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import Scorer, window_logits
from pipeline.evaluation.evaluator import score_windows
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

    `kl` is in nats per token, `top1` is a share of tokens. CPU seconds are without imports.
    """

    kl: float
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

    def measure(self, name: str) -> tuple[Measurement | None, bool]:
        """Quantize and evaluate `variants.<name>`; return the result and whether it was cached.

        The result is None where it did not end within the limit. Only the results of other
        quantizers are cached.
        """
        recipe = read_workspace(self.workspace).variants[name]
        path = self._cache_path(name)
        if isinstance(recipe, BackendWeights) and path.exists():
            return Measurement.from_bytes(path.read_bytes(), source=str(path)), True
        if isinstance(recipe, BackendWeights):
            set_up_backend(recipe.backend)
        costs = self.costs(f"quantize:{name}")
        if costs is None:
            return None, False
        made = self._evaluate(name, costs[0])
        if isinstance(recipe, BackendWeights):
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

    def held_out(self) -> list[list[int]]:
        """Read the windows of token ids of the evaluation text."""
        evaluate = read_workspace(self.workspace).evaluate
        return token_windows(
            read_texts(self.workspace.root / evaluate.text),
            tokenizer_of(self.workspace.base_dir).encode,
            window_tokens=evaluate.window_tokens,
            num_windows=evaluate.num_windows,
            source=evaluate.text,
        )

    def _evaluate(self, name: str, cost: Cost) -> Measurement:
        params = read_workspace(self.workspace)
        recipe = params.variants[name]
        evaluate = params.evaluate
        tokenizer = tokenizer_of(self.workspace.base_dir)
        windows = self.held_out()
        with (
            closing(_scorer(self.workspace, name)) as scorer,
            closing(_scorer(self.workspace, BASE)) as base,
        ):
            own, reference = (
                window_logits(engine, windows, batch_size=evaluate.batch_size)
                for engine in (scorer, base)
            )
            found = score_windows(windows, own, reference, tokenizer, label=scorer.label)
        distance = found.distance
        assert distance is not None
        if isinstance(recipe, BackendWeights):
            spent_s = cost.children_cpu_s - imports_cpu_s(recipe.backend)
            peak = cost.children_peak_gib
        else:
            spent_s = cost.own_cpu_s + cost.children_cpu_s
            peak = max(cost.own_peak_gib, cost.children_peak_gib)
        return Measurement(
            kl=distance.kl,
            top1=distance.top1,
            perplexity=found.perplexity,
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
            pins.read_text() if pins.exists() else "",
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
    """Make a calibrated workspace for `demo`, `babyllama` or `smollm2` with these variants."""
    if model == "babyllama":
        workspace = make_workspace(root, source=str(MODEL_DIR), variants=())
    elif model == "smollm2":
        workspace = Workspace(root)
        real_model.make_workspace(root, str(real_model.made_model(cache_dir / model)))
    else:
        workspace = demo_workspace(root)
    yaml = YAML()
    params = yaml.load(workspace.params_path)
    params["calibration"]["seed"] = seed
    params["variants"] = dict(variants)
    yaml.dump(params, workspace.params_path)
    fetch.run(workspace, read_workspace(workspace))
    run = Run(workspace=workspace, cache_dir=cache_dir, time_limit_s=time_limit_s)
    if run.costs("calibrate") is None:
        sys.exit("calibrate: out of time")
    return run


def demo_workspace(root: Path) -> Workspace:
    """Make a workspace of the demo model with the repository's own parameters and texts."""
    root.mkdir(parents=True, exist_ok=True)
    (root / PARAMS_FILE).write_text((ROOT / PARAMS_FILE).read_text())
    for name in ("demo", "eval"):
        (root / name).symlink_to(ROOT / name)
    return Workspace(root)
