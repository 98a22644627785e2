"""What a server's log says about its kernels is read; what it does not say is unknown."""

import json

import pytest

from pipeline.serving import llama_cpp, vllm

START = (
    "INFO 11-28 [core.py:134] Initializing a V1 LLM engine (v0.32.0) with config: model='/x', "
    "dtype=torch.bfloat16, quantization={}, enforce_eager=True\n"
)


MIXED = "Using MarlinKernel for mixed-precision linear\n"


@pytest.mark.parametrize(
    ("log", "kernel"),
    [
        (START.format(None), "dense"),
        (
            START.format("awq") + MIXED * 2,
            "MarlinKernel",
        ),
        (
            START.format("awq") + "quantline: int4 kernel, bfloat16, 8 layers\n",
            "int4 kernel, bfloat16, 8 layers",
        ),
        (START.format("awq") + "Selected NewKernel for something\n", "unknown"),
        ("another format of the same line", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_kernel_of_vllm_is_dense_only_where_the_log_says_so(log: str, kernel: str) -> None:
    assert vllm.kernel_of(log) == kernel


FACTS = json.dumps({"version": "0.2", "system": "CPU : AVX2 = 1 | FMA = 1 | AMX = 0 |"}) + "\n"


@pytest.mark.parametrize(
    ("log", "kernel"),
    [
        (FACTS, "CPU: AVX2 FMA"),
        ("/lib/x.py:1: FutureWarning: soon\n  import y\n" + FACTS, "CPU: AVX2 FMA"),
        ('{"a": 1}\n' + FACTS + "listening on 127.0.0.1\n", "CPU: AVX2 FMA"),
        ("listening on 127.0.0.1\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_features_of_llama_cpp_are_found_wherever_their_line_is(log: str, kernel: str) -> None:
    assert llama_cpp.kernel_of(log) == kernel
