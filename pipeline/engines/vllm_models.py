"""Ask the installed vLLM whether it has a model, without starting it.

Importing vLLM takes several seconds of processor time. Its registry is a file of tables from the
names of architectures to modules, which is read here as Python syntax and never run.
"""

import ast
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import transformers

from pipeline.core.environments import SERVE_ENVIRONMENT
from pipeline.core.errors import InputError

REGISTRY = "lib/python*/site-packages/vllm/model_executor/models/registry.py"
# https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/registry.py
OWN_TABLES = frozenset({"_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS"})
BY_TRANSFORMERS_TABLE = "_TRANSFORMERS_SUPPORTED_MODELS"


class Support(StrEnum):
    """List how vLLM runs an architecture: by its own class, by transformers' class, or not."""

    OWN = "own"
    BY_TRANSFORMERS = "by transformers"
    NONE = "none"


def vllm_support(architecture: str) -> Support | None:
    """Return how the installed vLLM runs an architecture; None where there is no vLLM.

    An architecture that vLLM does not name runs by transformers' class, where that class lets vLLM
    replace its attention. Raises InputError for a vLLM whose registry has another form.
    """
    models = known_models()
    if models is None:
        return None
    own, by_transformers = models
    if architecture in own:
        return Support.OWN
    model_class: Any = getattr(transformers, architecture, None)
    is_model = isinstance(model_class, type) and issubclass(
        model_class, transformers.PreTrainedModel
    )
    if architecture in by_transformers or (is_model and model_class.is_backend_compatible()):
        return Support.BY_TRANSFORMERS
    return Support.NONE


def known_models() -> tuple[frozenset[str], frozenset[str]] | None:
    """Return the architectures with a class of vLLM's, and those that it leaves to transformers.

    Returns None where there is no vLLM. Raises InputError as `vllm_support` does.
    """
    path = next(SERVE_ENVIRONMENT.glob(REGISTRY), None)
    if path is None:
        return None
    tables = dict(_tables(path))
    missing = {*OWN_TABLES, BY_TRANSFORMERS_TABLE} - tables.keys()
    if missing:
        raise InputError(f"{path}: has no {min(missing)}; run `make setup` for the pinned vLLM")
    own = frozenset().union(*(tables[name] for name in OWN_TABLES))
    return own, tables[BY_TRANSFORMERS_TABLE]


def _tables(path: Path) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the keys of every dictionary of strings that the module assigns to a name."""
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            keys = frozenset(
                key.value
                for key in statement.value.keys
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
            yield from (
                (target.id, keys) for target in statement.targets if isinstance(target, ast.Name)
            )
