"""Architectures in packed formats, read by programs of others.

As in `test_readers`; files with experts in compressed-tensors are read by that library alone. Each
architecture is read by every reader in some format, and each format in some architecture; with the
mark `full`, every one in every other.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine import every_format
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.unpacked_model import unpacked_model, unpacked_weights
from pipeline.params.params import CompressedTensorsParams, PackedVariant
from pipeline.quantization.packed_checkpoint import write_packed
from tests.architecture_models import CONFIGS, base_manifest, calibrated_model
from tests.readers.test_readers import IDS, read_files

Tensors = dict[str, torch.Tensor]

EXPERTS = ("mixtral", "qwen3-moe")
ROUNDED_INPUTS = ("W8A8", "FP8_DYNAMIC")

pytestmark = pytest.mark.slow


def format_name(recipe: PackedVariant) -> str:
    if isinstance(recipe, CompressedTensorsParams):
        return recipe.scheme.value
    return f"{recipe.format}-{recipe.num_bits}"


FORMATS = {format_name(recipe): recipe for recipe in every_format()}
COMPRESSED = [name for name, it in FORMATS.items() if it.format == "compressed-tensors"]
VLLM_UNPACKS = ["awq-4", "gptq-4", "gptq-8"]
# The compressed-tensors library multiplies in the dtype of the scales, float16.
HALF_ROUNDING = 2**-10


def files_of(architecture: str, formats: list[str]) -> list[str]:
    """No file has rounded activations inside experts: those are refused."""
    return [
        f"{architecture}-{it}"
        for it in formats
        if architecture not in EXPERTS or it not in ROUNDED_INPUTS
    ]


def all_files(formats: list[str], *, architectures: Iterable[str] = CONFIGS) -> list[str]:
    return [it for architecture in architectures for it in files_of(architecture, formats)]


def some_files() -> set[str]:
    """Three for each architecture, by turns: two of compressed-tensors, one that vLLM unpacks."""
    chosen = set()
    for number, architecture in enumerate(CONFIGS):
        compressed = files_of(architecture, COMPRESSED)
        chosen |= {compressed[(number + shift) % len(compressed)] for shift in (0, 2)}
        chosen.add(f"{architecture}-{VLLM_UNPACKS[number % len(VLLM_UNPACKS)]}")
    return chosen


def marked(names: Iterable[str]) -> list[Any]:
    """The names as parameters; those that only the full product has are marked so."""
    some = some_files()
    return [pytest.param(it, marks=() if it in some else pytest.mark.full) for it in names]


DENSE_COMPRESSED = all_files(COMPRESSED, architectures=[it for it in CONFIGS if it not in EXPERTS])
EXPERT_COMPRESSED = all_files(COMPRESSED, architectures=EXPERTS)
UNPACKED_BY_VLLM = all_files(VLLM_UNPACKS)


@pytest.fixture(scope="module")
def model_dirs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The files that the tests of this run ask for."""
    tests = [it for it in request.session.items if it.path == request.path]
    asked = {it.callspec.params["name"] for it in tests if isinstance(it, pytest.Function)}
    made = {}
    for architecture in CONFIGS:
        root = tmp_path_factory.mktemp(architecture)
        workspace = calibrated_model(root, architecture)
        for name in asked & set(files_of(architecture, [*COMPRESSED, *VLLM_UNPACKS])):
            model_dir = made[name] = root / name / "model"
            model_dir.mkdir(parents=True)
            recipe = FORMATS[name.removeprefix(f"{architecture}-")]
            write_packed(
                workspace.base_dir,
                base_manifest(workspace),
                recipe,
                Statistics(workspace),
                model_dir,
            )
    return made


@pytest.fixture(scope="module")
def read_by_others(
    model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensors]:
    """What the reader of each file makes of it."""
    readers = {
        "transformers_reader": DENSE_COMPRESSED,
        "compressed_tensors_reader": EXPERT_COMPRESSED,
        "vllm_reader": UNPACKED_BY_VLLM,
    }
    made = {reader: [it for it in files if it in model_dirs] for reader, files in readers.items()}
    return read_files(made, model_dirs, tmp_path_factory.mktemp("read"))


@pytest.mark.parametrize("name", marked(DENSE_COMPRESSED))
def test_transformers_computes_the_logits_of_the_unpacked_weights(
    model_dirs: dict[str, Path], read_by_others: dict[str, Tensors], name: str
) -> None:
    with torch.inference_mode():
        ours = unpacked_model(model_dirs[name])(input_ids=IDS).logits
    difference = (read_by_others[name]["logits"] - ours).norm() / ours.norm()
    assert difference < (0.03 if name.endswith(ROUNDED_INPUTS) else 0.002)


@pytest.mark.parametrize("name", marked([*EXPERT_COMPRESSED, *UNPACKED_BY_VLLM]))
def test_others_unpack_the_same_weights(
    model_dirs: dict[str, Path], read_by_others: dict[str, Tensors], name: str
) -> None:
    ours = dict(unpacked_weights(model_dirs[name]))
    assert read_by_others[name]
    for tensor, weight in read_by_others[name].items():
        torch.testing.assert_close(weight, ours[tensor], rtol=HALF_ROUNDING, atol=1e-7, msg=tensor)
