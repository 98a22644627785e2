"""`quantline plan --fits`: the types that a memory allows, before anything is quantized."""

import re

import pytest

from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from pipeline.params.params import Params
from pipeline.planning.best_types import print_best_types
from pipeline.serving.kv_cache import LLAMA_CPP_BYTES, kv_bytes_of_config
from tests.stages.test_quantize import calibrated, gguf, params_for


@pytest.fixture(scope="module")
def params() -> Params:
    return params_for({"gguf-q8-0": gguf("Q8_0")})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Workspace:
    return calibrated(tmp_path_factory.mktemp("fits"), params, hidden=256, intermediate=512)


@pytest.mark.slow
def test_more_memory_loses_less_and_every_kind_is_named(
    workspace: Workspace, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint(workspace.base_dir)
    num_tokens = params.serve.max_users * params.serve.context_tokens
    cache = kv_bytes_of_config(checkpoint.text_values, num_tokens, bytes_per_value=2.0)
    losses = []
    for share in (0.4, 0.5):  # of the float16 weights
        own = share * checkpoint.weight_bytes
        fits = f"{(LLAMA_CPP_BYTES + cache + own) / 1e6:.3f} MB"
        print_best_types(workspace, params, fits)
        first, *lines = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ").splitlines()
        assert first.startswith(f"{fits}, {params.serve.max_users} users with ")
        found = re.search(r"predicted KL ([\d.e-]+) nats per token$", first)
        assert found is not None
        losses.append(float(found[1]))
        kinds = [line.split()[0] for line in lines[: lines.index("The best for other sizes:")]]
        assert {"token_embd", "ffn_up", "ffn_down", "attn_q", "attn_v"} <= set(kinds)
        assert lines[-1].startswith(f"As a variant: budget: {{fits: {fits}, context_tokens: ")
    assert 0 < losses[1] < losses[0]


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        ("8", "--fits 8: expected a size, such as 4.2 GB or 900 MiB"),
        ("100 MB", "budget = .*: leaves 0.B for the weights, .*; state a larger budget"),
    ],
)
@pytest.mark.slow
def test_a_wrong_memory_is_one_line(
    workspace: Workspace, params: Params, fits: str, expected: str
) -> None:
    with pytest.raises(InputError, match=f"^{expected}$"):
        print_best_types(workspace, params, fits)
