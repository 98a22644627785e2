"""Reading and validation of `params.yaml` and the price list."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline.core.environments import installed_vllm
from pipeline.core.errors import InputError
from pipeline.core.machine import has_cuda
from pipeline.core.record import Record, first_problem, problem_keys
from pipeline.core.workspace import Workspace
from pipeline.core.yaml_files import read_yaml
from pipeline.params.other_quantizers import CUDA_ONLY, NATIVE
from pipeline.params.params import PackedJudge, Params, VariantParams
from pipeline.params.prices import PriceList

PRESETS: Final = "presets"
MERGE_KEY: Final = "<<"  # https://yaml.org/type/merge.html

AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_params(path: Path) -> Params:
    """Read and validate `params.yaml`.

    Its section `presets` has values that variants share: they take them by YAML's merge keys.
    Raises InputError that names the first wrong value and its line.
    """
    values = read_yaml(path)
    if isinstance(values, dict):
        values.pop(PRESETS, None)
    return _validated(Params, values, path)


def read_prices(path: Path) -> PriceList:
    """Read and validate the price list. Raises InputError that names the first wrong value."""
    return _validated(PriceList, read_yaml(path), path)


def _validated(kind: type[AnyRecord], values: object, path: Path) -> AnyRecord:
    try:
        # Through JSON: its strict mode takes lists for tuples and strings for enums, nothing else.
        data = json.dumps(values, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path.name}: expected plain keys and values; found a key that is no text, or a value "
            "that contains itself"
        ) from error
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        line = _line_of(problem_keys(error, values), path)
        where = f"{path.name}, line {line}" if line else path.name
        raise InputError(f"{where}: {first_problem(error, values)}") from error


def _line_of(keys: Sequence[str], path: Path) -> int | None:
    """Find the line, counted from 1, of the deepest of the nested `keys` that a YAML file has.

    The line of a merged value is that of the preset. None when not even the first key is there.
    """
    node = YAML(typ="safe", pure=True).compose(path.read_text(encoding="utf-8"))
    line = None
    for key in keys:
        found = _entry(node, key)
        if found is None:
            break
        written, node = found
        line = written.start_mark.line + 1
    return line


def _entry(node: Node, key: str) -> tuple[Node, Node] | None:
    """Find the node that an entry begins with and the node of its value; None if there is none."""
    if isinstance(node, SequenceNode):
        value = node.value[int(key)]
        return value, value
    entries = node.value if isinstance(node, MappingNode) else []
    for written, value in entries:
        if written.value == key:
            return written, value
    for written, value in entries:
        if written.value == MERGE_KEY:
            for merged in value.value if isinstance(value, SequenceNode) else [value]:
                if found := _entry(merged, key):
                    return found
    return None


def require_runnable(variants: Mapping[str, VariantParams]) -> None:
    """Raise InputError for the first variant whose backend cannot run on this machine."""
    for name, recipe in variants.items():
        backend = getattr(recipe, "backend", NATIVE)
        if backend in CUDA_ONLY and not has_cuda():
            raise InputError(
                f"variants.{name}.backend = {backend}: runs on an NVIDIA GPU alone, and this "
                f"machine has none; use {CUDA_ONLY[backend]}, which writes the same format, or "
                "remove the variant"
            )


def require_judge(judge: PackedJudge) -> None:
    """Raise InputError when `judge` is vLLM and vLLM is not installed."""
    if judge is PackedJudge.VLLM:
        try:
            installed_vllm()
        except InputError as error:
            raise InputError(
                f"evaluate.packed_judge = {judge}: {error}, or set it to {PackedJudge.TRANSFORMERS}"
            ) from error


def chosen_judge(judge: PackedJudge) -> PackedJudge:
    """Replace `auto` by the engine that it means on this machine."""
    if judge is not PackedJudge.AUTO:
        return judge
    return PackedJudge.VLLM if has_cuda() else PackedJudge.TRANSFORMERS


def read_workspace(workspace: Workspace) -> Params:
    """Read the parameters of a workspace and check them against its files and this machine.

    Raises InputError for a wrong value, a text that is missing, or an engine that cannot run here.
    """
    params = read_params(workspace.params_path)
    require_runnable(params.variants)
    require_judge(params.evaluate.packed_judge)
    _require(workspace, "evaluate.text", params.evaluate.text)
    if params.calibration.dataset is None:  # else fetch brings it
        _require(workspace, "calibration.text", params.calibration.text)
    return params


def _require(workspace: Workspace, key: str, value: str) -> None:
    if not (workspace.root / value).exists():
        raise InputError(
            f"{key} = {value}: no such file; correct the path (it is relative to params.yaml) or "
            "put the text there"
        )
