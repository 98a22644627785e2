"""The environments of other quantizers: their lists are whole, and what cannot be is one line."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from pipeline.params.other_quantizers import BackendParams
from tests.support import ROOT

PEERS_DIR = ROOT / "envs" / "peers"
LISTS = sorted(PEERS_DIR.glob("*.txt"))
VERSIONS = {
    "auto-gptq": "0.7.1",
    "auto-round": "0.16.1",
    "autoawq": "0.2.9",
    "gptqmodel": "7.6.0",
    "llmcompressor": "0.14.0.1",
}


def pins_of(path: Path) -> list[str]:
    return re.findall(r"^[a-z0-9-]+==[A-Za-z0-9.]+", path.read_text(), re.MULTILINE)


def set_up(*arguments: str) -> str:
    """The one line with which the set-up refuses."""
    command = [sys.executable, str(ROOT / "envs" / "peer.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_every_backend_has_a_list() -> None:
    union = get_args(get_args(BackendParams)[0])
    backends = {get_args(it.model_fields["backend"].annotation)[0] for it in union}
    assert backends == {path.stem for path in LISTS} == set(VERSIONS)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_a_list_starts_with_its_backend(path: Path) -> None:
    assert pins_of(path)[0] == f"{path.stem}=={VERSIONS[path.stem]}"


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_a_list_brings_no_gpu_packages(path: Path) -> None:
    for pin in pins_of(path):
        # nvidia-ml-py asks the driver for facts, in Python.
        assert pin.startswith("nvidia-ml-py==") or not pin.startswith(("nvidia", "cuda", "triton"))


def test_an_unknown_backend_is_one_line() -> None:
    known = "auto-gptq, auto-round, autoawq, gptqmodel, llmcompressor"
    assert set_up("exllama") == f"setup: exllama: expected one of {known}\n"
    assert set_up() == f"setup: nothing named: expected one of {known}\n"


def test_auto_gptq_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert set_up("auto-gptq") == (
        "setup: auto-gptq: needs an NVIDIA GPU, and `nvidia-smi` finds none\n"
    )
