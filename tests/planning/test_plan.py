"""Predictions for known models: published sizes, what must not shrink, and every refusal."""

import json
import re

import pytest

from pipeline.architectures.shapes import model_shape
from pipeline.core.workspace import PARAMS_FILE
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.planning.plan import (
    Capacity,
    disk_needed,
    memory_refusal,
    predict,
    refusal,
    table,
    time_text,
)
from pipeline.planning.source import Source, Speed
from pipeline.planning.stage_needs import StageNeed, statistics_bytes, variant_bytes
from tests.shapes import Shapes, llama_3_8b, mixtral_8x7b
from tests.support import ROOT

GIB = 1 << 30
PLENTY = Capacity(memory=10**15, gpu_memory=None, disk=10**15, written=0)
SPEED = Speed(operations=1e11, memory_bytes=2e10)


def source(shapes: Shapes, *, experts_per_token: int | None = None) -> Source:
    shape = model_shape(shapes)
    return Source(
        "LlamaForCausalLM",
        shape,
        file_bytes=2 * shape.num_weights,
        experts_per_token=experts_per_token,
        tensors=shapes,
    )


def params(**changes: dict[str, object]) -> Params:
    values = read_params(ROOT / PARAMS_FILE).model_dump(mode="json")
    for section, keys in changes.items():
        values[section] |= keys
    return Params.model_validate_json(json.dumps(values), strict=True)


SCENARIO = params().serve.scenarios["text"].model_dump(mode="json")


def needs_of(
    shapes: Shapes, *, experts_per_token: int | None = None, **changes: dict[str, object]
) -> dict[str, StageNeed]:
    found = predict(
        source(shapes, experts_per_token=experts_per_token), params(**changes), suite_tokens=10**6
    )
    return {need.stage: need for need in found}


@pytest.fixture(scope="module")
def llama() -> dict[str, StageNeed]:
    return needs_of(llama_3_8b())


def test_every_stage_is_there_once(llama: dict[str, StageNeed]) -> None:
    variants = list(params().variants)
    assert list(llama) == [
        "fetch",
        "calibrate",
        *(f"quantize {name}" for name in variants),
        *(f"evaluate {name}" for name in ("base", *variants)),
        *("select", "benchmark", "package", "publish", "report"),
    ]


def test_sizes_on_disk_are_those_of_published_files() -> None:
    shape = model_shape(llama_3_8b())
    recipes = params().variants
    # hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4 and llama.cpp's table for the same model.
    assert variant_bytes(shape, recipes["awq-w4-g128"]) == pytest.approx(5.73e9, rel=0.02)
    assert variant_bytes(shape, recipes["gguf-q4-k-m"]) == pytest.approx(4.58 * GIB, rel=0.01)
    assert variant_bytes(shape, recipes["gguf-q8-0"]) == pytest.approx(7.95 * GIB, rel=0.01)
    # 32 layers of three 4096 × 4096 triangles and one of 14336 × 14336, and the head, float32.
    layers = 32 * 4 * (3 * 4096 * 4097 + 14336 * 14337) // 2
    assert statistics_bytes(shape) == layers + 4 * 4096 * 4097 // 2


def test_memory_follows_what_each_stage_holds(llama: dict[str, StageNeed]) -> None:
    whole = 4 * 8_030_261_248
    assert llama["evaluate base"].memory > whole
    assert llama["evaluate awq-w4-g128"].memory > 2 * whole
    assert llama["evaluate awq-w4-g128"].memory > llama["evaluate gguf-q4-k-m"].memory
    # What one layer was seen to take (benchmarks/engine), and not twice as much.
    for name, seen in (("calibrate", 2.55 * GIB), ("quantize awq-w4-g128", 4.4 * GIB)):
        assert seen < llama[name].memory < 2 * seen


def test_calibrating_and_quantizing_take_the_same_memory_at_any_depth() -> None:
    shallow, deep = needs_of(llama_3_8b(layers=4)), needs_of(llama_3_8b(layers=64))
    for name in ("calibrate", *(f"quantize {it}" for it in params().variants)):
        assert shallow[name].memory == deep[name].memory
        assert 10 * shallow[name].operations < deep[name].operations


def test_aligning_takes_all_at_once_and_is_refused_with_the_numbers() -> None:
    plain = params().variants["awq-w4-g128"].model_dump(mode="json")
    aligned = {"awq-w4-g128": plain | {"align_samples": 4}}
    need = needs_of(llama_3_8b(), variants=aligned)["quantize awq-w4-g128"]
    assert 5 * 4 * 6_979_321_856 < need.memory < 320 * GIB
    line = memory_refusal((need,), 24 * GIB)
    assert line is not None
    assert re.match(
        r"quantize awq-w4-g128 needs 2\d\d\.\d GiB of memory, 24\.0 GiB are available", line
    )


@pytest.mark.parametrize("name", ["awq-w4-g128", "gguf-q4-k-m"])
def test_quantized_inputs_take_passes_and_states_but_no_model(name: str) -> None:
    plain = params().variants[name].model_dump(mode="json")
    corrected = {name: plain | {"quantized_inputs": True}}
    for layers in (4, 64):
        shapes = llama_3_8b(layers=layers)
        before, after = (
            needs_of(shapes, variants=it)[f"quantize {name}"] for it in ({name: plain}, corrected)
        )
        reading = needs_of(shapes)["calibrate"]
        assert after.operations == before.operations + 3 * reading.operations
        assert after.disk_temporary == before.disk_temporary + 2 * reading.disk_temporary
        assert before.memory <= after.memory < 9 * GIB


def test_a_budget_is_the_size_and_needs_no_whole_model() -> None:
    plain = params().variants["gguf-q4-k-m"].model_dump(mode="json")
    mixed = {"gguf-q4-k-m": plain | {"type": None, "budget": {"size": "4.2 GB"}}}
    for layers in (4, 64):
        shapes = llama_3_8b(layers=layers)
        need = needs_of(shapes, variants=mixed)["quantize gguf-q4-k-m"]
        assert need.disk_kept == 4_200_000_000
        assert need.memory < 9 * GIB
        states = 2 * 4 * 4096 * 16 * params().calibration.max_seq_length * (layers + 1)
        assert need.disk_temporary > states


def test_aligning_a_gguf_file_takes_what_aligning_takes() -> None:
    variants = params().variants
    needs = {
        name: needs_of(
            llama_3_8b(), variants={name: variants[name].model_dump() | {"align_samples": 4}}
        )[f"quantize {name}"]
        for name in ("awq-w4-g128", "gguf-q4-k-m")
    }
    assert needs["gguf-q4-k-m"].memory == needs["awq-w4-g128"].memory
    assert needs["gguf-q4-k-m"].operations > needs["awq-w4-g128"].operations / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": {"num_calibration_samples": 256}},
        {"calibration": {"max_seq_length": 8192}},
        {"evaluate": {"num_windows": 500}},
        {"evaluate": {"window_tokens": 4096}},
        {"serve": {"scenarios": {"text": SCENARIO | {"concurrency": [1, 8, 64]}}}},
        {"serve": {"scenarios": {"text": SCENARIO | {"output_tokens": 900}}}},
    ],
)
def test_more_work_never_needs_less(
    llama: dict[str, StageNeed], changes: dict[str, dict[str, object]]
) -> None:
    larger = needs_of(llama_3_8b(), **changes)
    for name, need in llama.items():
        assert larger[name].memory >= need.memory
        assert larger[name].disk_kept + larger[name].disk_temporary >= (
            need.disk_kept + need.disk_temporary
        )
        assert larger[name].duration(SPEED) >= need.duration(SPEED)
    total = sum(it.duration(SPEED) for it in llama.values())
    assert sum(it.duration(SPEED) for it in larger.values()) > total


def test_a_faster_machine_is_faster_and_needs_no_less(llama: dict[str, StageNeed]) -> None:
    fast = Speed(operations=1e14, memory_bytes=4e12)
    need = llama["calibrate"]
    assert need.seconds < need.duration(fast) < need.duration(SPEED) / 100


def test_a_mixture_computes_what_its_router_sends_and_holds_all_of_it() -> None:
    sparse = needs_of(mixtral_8x7b(), experts_per_token=2)
    dense = needs_of(mixtral_8x7b())
    assert sparse["evaluate base"].operations < 0.4 * dense["evaluate base"].operations
    assert sparse["evaluate base"].memory == dense["evaluate base"].memory > 4 * 46_000_000_000
    stack = 8 * 4096 * 14336  # all experts of a layer are one tensor of a GGUF file
    assert 3 * 4 * stack < sparse["quantize gguf-q8-0"].memory < 3 * 4 * stack + 2 * GIB


def test_disk_counts_what_is_kept_and_the_largest_of_what_goes_away() -> None:
    needs = (
        StageNeed("a", disk_kept=10, disk_temporary=90),
        StageNeed("b", disk_kept=20, disk_temporary=75),
        StageNeed("c", disk_kept=1),
    )
    assert disk_needed(needs) == 105


def test_disk_counts_the_logits_that_the_score_cache_keeps() -> None:
    """Of the base in transformers and in llama.cpp; none where they are too many to keep."""
    few = needs_of(llama_3_8b(), evaluate={"window_tokens": 16, "num_windows": 4})
    assert few["evaluate base"].disk_kept == 2 * 4 * 16 * 128_256 * 4
    assert few["evaluate awq-w4-g128"].disk_kept == 0
    assert needs_of(llama_3_8b())["evaluate base"].disk_kept == 0


def test_a_run_that_fits_is_not_refused(llama: dict[str, StageNeed]) -> None:
    assert refusal(tuple(llama.values()), PLENTY) is None


@pytest.mark.parametrize(
    ("capacity", "line"),
    [
        (
            Capacity(memory=3 * GIB, gpu_memory=None, disk=10**15, written=0),
            "evaluate x needs 3.5 GiB of memory, 3.0 GiB are available; use a machine with more, "
            "or a smaller model",
        ),
        (
            Capacity(memory=4 * GIB, gpu_memory=2 * GIB, disk=10**15, written=0),
            "evaluate x needs 3.0 GiB of GPU memory, 2.0 GiB are available; use a machine with "
            "more, or a smaller model",
        ),
        (
            Capacity(memory=4 * GIB, gpu_memory=None, disk=5 * GIB, written=0),
            "7.0 GiB more of disk needed under artifacts, 5.0 GiB free; free some space, or make "
            "fewer variants",
        ),
        (Capacity(memory=4 * GIB, gpu_memory=3 * GIB, disk=5 * GIB, written=2 * GIB), None),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(capacity: Capacity, line: str | None) -> None:
    needs = (
        StageNeed("quantize x", memory=2 * GIB, disk_kept=7 * GIB),
        StageNeed("evaluate x", memory=3 * GIB + GIB // 2, gpu_memory=3 * GIB),
    )
    assert refusal(needs, capacity) == line


def test_the_table_has_a_line_for_each_stage_and_the_sum(llama: dict[str, StageNeed]) -> None:
    lines = table(tuple(llama.values()), SPEED)
    assert len(lines) == len(llama) + 2
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:2] == ["stage", "memory"]
    assert lines[-1].startswith("whole run")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (75, "75 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_times_are_rounded_for_people(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
