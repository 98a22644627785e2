"""The launcher of vLLM: its processes are forks, with the threads that vLLM wants for them."""

import json
import os
from pathlib import Path

import pytest

from pipeline.core.environments import ENVIRONMENT, OFFLINE
from pipeline.core.process import run_program
from tests.models import tiny_llama
from tests.support import serve_python

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_forked_worker_has_the_cores_and_threads_that_vllm_gave_it(tmp_path: Path) -> None:
    model_dir = tiny_llama(tmp_path / "model")
    core = min(os.sched_getaffinity(0))
    answer = tmp_path / "answer.json"
    run_program(
        [serve_python(), HERE / "fork_worker.py", model_dir, str(core), answer],
        log_path=tmp_path / "log",
        environment={**OFFLINE, **ENVIRONMENT},
    )
    found = json.loads(answer.read_text())
    assert found["method"] == "fork"
    assert found["worker"] == {"cores": [core], "threads": 1}
    assert found["parent_cores"] == sorted(os.sched_getaffinity(0))
