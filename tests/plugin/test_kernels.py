"""The kernels for CPUs multiply with the weights that the checkpoint stands for."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.environments import ENVIRONMENT, HOST, OFFLINE
from pipeline.core.process import run_program
from pipeline.serving.server import SERVED_NAME, Server, chosen_port, launch, local_session
from pipeline.serving.vllm import described_by_log
from tests.packed_models import tiny_packed
from tests.support import ROOT, serve_python
from tests.vllm_programs import KERNEL_ERRORS

HERE = Path(__file__).parent
BFLOAT16_ERROR = 0.006  # 8 significant bits, in the activations and in the scales
FLOAT16_ERROR = 0.001
# The shapes of the layers of 8 bits.
EIGHT_BITS = {(256, 80), (256, 96), (256, 112)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[None, "avx2"])
def rows(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Errors on this machine's instructions, and on those of a CPU without AVX-512."""
    environment = {} if request.param is None else {"ATEN_CPU_CAPABILITY": request.param}
    return kernel_errors(environment, tmp_path_factory.mktemp("kernels") / "log")


def kernel_errors(environment: dict[str, str], log_path: Path) -> list[dict[str, Any]]:
    # PyTorch asks once in a process which instructions to use: where that changes, not in a fork.
    changed = "ATEN_CPU_CAPABILITY" in environment
    program = [HERE / "kernel_errors.py"] if changed else ["-m", KERNEL_ERRORS]
    run_program(
        [serve_python(), *program],
        log_path=log_path,
        environment={"PYTHONPATH": str(ROOT), **environment},
    )
    rows: list[dict[str, Any]] = json.loads(log_path.read_text().splitlines()[-1])
    return rows


def test_every_layout_is_multiplied_right(rows: list[dict[str, Any]]) -> None:
    """Outputs are float16; only PyTorch's operator rounds more than them."""
    for row in rows:
        limit = BFLOAT16_ERROR if row["kernel"] == "Int4CpuLinearKernel" else FLOAT16_ERROR
        assert math.isnan(row["error"]) or row["error"] < limit, row


def test_only_shapes_that_a_kernel_cannot_take_are_refused(rows: list[dict[str, Any]]) -> None:
    refused: dict[str, set[tuple[int, int]]] = {}
    for row in rows:
        shapes = refused.setdefault(row["kernel"], set())
        if math.isnan(row["error"]):
            shapes.add(tuple(row["case"][:2]))
    assert refused == {
        # Outputs that fill no block of 64.
        "NativeCpuLinearKernel": {(192, 48), (128, 40), *EIGHT_BITS},
        "Int4CpuLinearKernel": {(128, 40), *EIGHT_BITS},  # and groups of 16
        "DenseCpuLinearKernel": set(),
    }


def test_without_a_compiler_the_other_kernels_are_used(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    rows = kernel_errors(environment, tmp_path / "log")
    native = [row["error"] for row in rows if row["kernel"] == "NativeCpuLinearKernel"]
    assert all(map(math.isnan, native))
    assert any(row["error"] < BFLOAT16_ERROR for row in rows)


@pytest.mark.parametrize(
    ("format_name", "group_size", "dtype", "kernel"),
    [
        ("awq", 128, "float32", "native 4-bit CPU kernel, float32, 8 layers"),
        # Layouts and types are covered one by one above.
        pytest.param(
            *("gptq", 32, "auto", "native 4-bit CPU kernel, float32, 8 layers"),
            marks=pytest.mark.full,
        ),
    ],
)
def test_vllm_without_avx512_serves_packed_weights(
    tmp_path: Path, format_name: str, group_size: int, dtype: str, kernel: str
) -> None:
    model_dir = tiny_packed(tmp_path / "model", format_name, group_size=group_size)
    port = chosen_port(None)
    command = [serve_python(), HERE / "serve_without_avx512.py", f"--model={model_dir}"]
    flags = [f"--served-model-name={SERVED_NAME}", f"--host={HOST}", f"--port={port}"]
    flags += [f"--dtype={dtype}"]
    server = Server("vLLM", f"http://{HOST}:{port}", "vllm", "0", (), tmp_path / "server.log")
    with launch(
        server,
        [*command, *flags, "--enforce-eager", f"--kv-cache-memory-bytes={1 << 30}"],
        # vLLM would compile how it ranks the tokens of a prompt, in every server anew.
        environment=OFFLINE | ENVIRONMENT | {"TORCH_COMPILE_DISABLE": "1"},
        timeout_s=300,
        read_log=described_by_log,
    ) as answer:
        ids = tokenizer_of(model_dir).encode("the baker sells bread near the river " * 4)
        served = prompt_logprobs(answer.result().url, ids)
    assert answer.result().kernel == kernel
    exact = exact_logprobs(model_dir, ids)
    errors = [abs(a - b) for a, b in zip(served, exact, strict=True)]
    assert sum(errors) / len(errors) < 0.01
    assert max(errors) < 0.1


def prompt_logprobs(url: str, ids: list[int]) -> list[float]:
    """The log-probability of every token after the first, as the server sees it."""
    body = {"model": SERVED_NAME, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
    answer = local_session().post(f"{url}/v1/completions", json=body, timeout=60).json()
    entries = answer["choices"][0]["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for entry, token in zip(entries, ids[1:], strict=True)]


def exact_logprobs(model_dir: Path, ids: list[int]) -> list[float]:
    """The same in float32 on the weights that the packed file stands for."""
    model = unpacked_model(model_dir)
    with torch.inference_mode():
        rows = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [rows[position, token].item() for position, token in enumerate(ids[1:])]
