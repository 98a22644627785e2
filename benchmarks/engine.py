"""Measure quantline's own engine: peak memory, reruns after kills, repeats and architectures.

`python -m benchmarks.engine` makes random models in a temporary directory (about 2 GB). It runs
calibrate and quantize as processes of their own, one thread each, and reads the peak of their
resident memory. Kills are SIGKILL at seeded random moments. Digests are those of the records.
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import Row, publish
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import save_tensors, shard_name, write_index
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.params.params import AwqParams, GptqParams, PackedVariant
from pipeline.params.reading import read_params
from pipeline.params.variants import CompressedTensorsParams, Scheme
from pipeline.quantization.packed_checkpoint import write_packed
from tests.architecture_models import CONFIGS, base_manifest, calibrated_model, token_windows
from tests.evaluation_files import write_evaluation_files
from tests.models import byte_bpe, write_json
from tests.workspace import write_base_manifest

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
SEED = 0
NUM_SAMPLES, SAMPLE_TOKENS, VOCABULARY = 8, 256, 1024
LAYER_COUNTS = (4, 8, 16)
NUM_KILLS = 10  # of each stage
POLL_S = 0.002
INPUT_ROUNDING = 0.03  # the largest relative change of the logits by 8-bit activations alone
RECIPE = {
    "format": "gptq",
    "num_bits": 4,
    "group_size": 128,
    "scale_search": False,
    "clip_search": True,
    "rounding": "gptq",
    "refine_sweeps": 1,
    "dampening_frac": 0.01,
    "quantized_inputs": False,
    "align_samples": 0,
    "on_indivisible": "error",
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; `key_value` is the width of keys and of values."""

    hidden: int
    intermediate: int
    key_value: int
    layers: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.key_value, self.hidden),
            "self_attn.v_proj": (self.key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }


ONE_BILLION = Shape(hidden=2048, intermediate=5632, key_value=256, layers=0)
EIGHT_BILLION_LAYER = Shape(hidden=4096, intermediate=14336, key_value=1024, layers=1)
SMALL = Shape(hidden=256, intermediate=512, key_value=128, layers=12)


def main() -> None:
    rows = [*memory_rows(), *kill_rows(), *repeat_rows(), architectures_row()]
    publish("engine", rows)


def memory_rows() -> list[Row]:
    """Measure the peak resident memory of calibrate and of quantize, the larger of the two."""
    peaks: dict[str, float] = {}
    rows: list[Row] = []
    shapes = {
        f"{count}_layers": Shape(**vars(ONE_BILLION) | {"layers": count}) for count in LAYER_COUNTS
    }
    for name, shape in (shapes | {"8b_layer": EIGHT_BILLION_LAYER}).items():
        with tempfile.TemporaryDirectory() as root:
            make_workspace(Path(root), shape)
            stages = {stage: peak_gib(Path(root), stage) for stage in ("calibrate", "quantize")}
        peaks[name] = max(stages.values())
        rows += [
            Row(f"peak_rss_gib_{name}_{stage}", peak, None, None, "GiB")
            for stage, peak in stages.items()
        ]
        rows.append(Row(f"peak_rss_gib_{name}", peaks[name], None, None, "GiB"))
    growth = peaks[f"{LAYER_COUNTS[-1]}_layers"] / peaks[f"{LAYER_COUNTS[0]}_layers"] - 1
    rows.append(
        Row(
            "peak_rss_growth", growth, None, None, f"{LAYER_COUNTS[0]} to {LAYER_COUNTS[-1]} layers"
        )
    )
    return rows


def peak_gib(root: Path, stage: str, *, num_threads: int = 1) -> float:
    """Run a stage in a process of its own and return its peak resident memory in GiB."""
    process = stage_process(root, stage, num_threads=num_threads)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{stage} ended with {process.returncode}")
    return usage.ru_maxrss * 1024 / GIB


def stage_process(root: Path, stage: str, *, num_threads: int = 1) -> subprocess.Popen[bytes]:
    """Start a stage in a process of its own."""
    arguments = [stage, "variant"] if stage == "quantize" else [stage]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(num_threads)},
    )


def make_workspace(root: Path, shape: Shape, **recipe: Any) -> Workspace:
    """Write a random base of that shape, its manifest, text, and parameters with one variant."""
    workspace = Workspace(root)
    write_model(workspace.base_dir, shape)
    write_base_manifest(workspace, source="random")
    write_evaluation_files(root)
    texts = [f"the baker sells {number} loaves near the river" for number in range(2000)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "text.jsonl").write_text(lines)
    params = read_params(ROOT / PARAMS_FILE).model_dump(mode="json")
    params["calibration"] |= {
        "text": "text.jsonl",
        "num_calibration_samples": NUM_SAMPLES,
        "max_seq_length": SAMPLE_TOKENS,
    }
    params["variants"] = {"variant": RECIPE | recipe}
    write_json(workspace.params_path, params)
    return workspace


def write_model(model_dir: Path, shape: Shape) -> None:
    """Write random float16 weights, one shard for each layer and one for the rest."""
    model_dir.mkdir(parents=True)
    byte_bpe(VOCABULARY).save(str(model_dir / "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(model_dir / "tokenizer_config.json", tokenizer_config)
    head_dim = 64
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // head_dim,
        "num_key_value_heads": shape.key_value // head_dim,
        "head_dim": head_dim,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }
    write_json(model_dir / "config.json", config)
    generator = torch.Generator().manual_seed(SEED)
    norm = torch.ones(shape.hidden, dtype=torch.float16)
    num_shards = shape.layers + 1
    for number in range(shape.layers):
        prefix = f"model.layers.{number}."
        tensors = {
            f"{prefix}{name}.weight": _random(size, generator)
            for name, size in shape.linears.items()
        }
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = norm.clone()
        save_tensors(model_dir / shard_name(number + 1, num_shards), tensors)
    embeddings = _random((VOCABULARY, shape.hidden), generator)
    save_tensors(
        model_dir / shard_name(num_shards, num_shards),
        {"model.embed_tokens.weight": embeddings, "model.norm.weight": norm.clone()},
    )
    write_index(model_dir)


def _random(size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(size, generator=generator) / math.sqrt(size[1])).to(torch.float16)


def kill_rows() -> list[Row]:
    """Kill each stage at random moments, and compare the record of its rerun with a whole run's."""
    moments = random.Random(SEED)
    identical = 0
    with tempfile.TemporaryDirectory() as work:
        workspace = make_workspace(Path(work), SMALL)
        for stage, record in (
            ("calibrate", workspace.statistics_path),
            ("quantize", workspace.variant_path("variant")),
        ):
            work_s = run_stage(workspace.root, stage)
            expected = record.read_bytes()
            for _ in range(NUM_KILLS):
                shutil.rmtree(record.parent)
                run_stage(workspace.root, stage, kill_after_s=moments.uniform(0, 1) * work_s)
                if not record.exists():
                    run_stage(workspace.root, stage)
                identical += record.read_bytes() == expected
    total = 2 * NUM_KILLS
    return [Row("kill_reruns_identical", float(identical), None, None, f"of {total} kills")]


def run_stage(root: Path, stage: str, *, kill_after_s: float | None = None) -> float:
    """Run a stage and return the seconds from its first unfinished output to its end.

    SIGKILL ends it `kill_after_s` after that output appeared.
    """
    with stage_process(root, stage) as process:
        while process.poll() is None and not any((root / "artifacts").rglob("*.partial")):
            time.sleep(POLL_S)
        began = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(kill_after_s)
        process.kill()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{stage} ended with {process.returncode}")
    return time.monotonic() - began


def repeat_rows() -> list[Row]:
    """Run both stages twice with one thread and once with two, and compare their digests."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        workspace = make_workspace(Path(work), SMALL)
        digests = [_digests(workspace, num_threads) for num_threads in (1, 1, 2)]
    for key, other in (("repeat_identical", digests[1]), ("threads_identical", digests[2])):
        same = sum(a == b for a, b in zip(digests[0], other, strict=True))
        rows.append(Row(key, float(same), None, None, f"of {len(digests[0])} stages"))
    return rows


def _digests(workspace: Workspace, num_threads: int) -> Sequence[str]:
    """Return the digests of both stages; quantize uses the statistics of a single thread."""
    for stage in ("calibrate", "quantize"):
        peak_gib(workspace.root, stage, num_threads=num_threads)
    return [
        json.loads(path.read_bytes())["digest"]
        for path in (workspace.statistics_path, workspace.variant_path("variant"))
    ]


def architectures_row() -> Row:
    """Quantize every architecture in every packed format and read it back.

    A result is good when its logits are as near to the base's as its coverage predicts.
    """
    good = total = 0
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as work:
            workspace = calibrated_model(Path(work), name)
            base = _logits(workspace.base_dir)
            for number, recipe in enumerate(every_format()):
                if _rounds_inputs(recipe) and "experts" in str(Statistics(workspace).linears):
                    continue  # refused: no evaluation can round activations inside experts
                model_dir = Path(work) / str(number) / "model"
                model_dir.mkdir(parents=True)
                coverage, _ = write_packed(
                    workspace.base_dir,
                    base_manifest(workspace),
                    recipe,
                    Statistics(workspace),
                    model_dir,
                )
                explained = math.sqrt(sum(row.relative_error or 0.0 for row in coverage))
                allowed = 1.5 * explained + (INPUT_ROUNDING if _rounds_inputs(recipe) else 0.0)
                difference = float((_logits(model_dir) - base).norm() / base.norm())
                good += 0 < difference < allowed
                total += 1
    return Row("architectures_ok", float(good), None, None, f"of {total}")


def _rounds_inputs(recipe: PackedVariant) -> bool:
    return isinstance(recipe, CompressedTensorsParams) and recipe.rounds_inputs


def every_format() -> list[PackedVariant]:
    """List AWQ, GPTQ of every width and compressed-tensors of every scheme, in groups of 16."""
    shared = {key: value for key, value in RECIPE.items() if key not in ("format", "num_bits")}
    shared |= {"group_size": 16}
    awq = AwqParams.model_validate(shared | {"format": "awq", "num_bits": 4, "scale_search": True})
    gptq = [
        GptqParams.model_validate(shared | {"format": "gptq", "num_bits": num_bits})
        for num_bits in (2, 3, 4, 8)
    ]
    compressed = [
        CompressedTensorsParams.model_validate(
            shared | {"format": "compressed-tensors", "scheme": scheme} | _demanded_by(scheme)
        )
        for scheme in Scheme
    ]
    return [awq, *gptq, *compressed]


def _demanded_by(scheme: Scheme) -> dict[str, Any]:
    whole_channels: dict[str, Any] = {"group_size": None}
    if scheme is Scheme.W8A8:
        return whole_channels
    if scheme is Scheme.FP8_DYNAMIC:
        return whole_channels | {
            "clip_search": False,
            "rounding": "nearest",
            "refine_sweeps": 0,
        }
    return {}


def _logits(model_dir: Path) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.tensor(token_windows(samples=4, seed=1))
        logits: torch.Tensor = unpacked_model(model_dir)(input_ids=ids).logits
    return logits - logits.mean(-1, keepdim=True)


if __name__ == "__main__":
    main()
