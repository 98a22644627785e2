"""Reading what people write: `params.yaml` and the price list."""

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
    """The validated parameters. Raises InputError that names the first wrong value.

    What variants share stands in a section `presets`, which reaches them by YAML's merge keys.
    """
    values = read_yaml(path)
    if isinstance(values, dict):
        values.pop(PRESETS, None)
    return _validated(Params, values, path)


def read_prices(path: Path) -> PriceList:
    """The validated price list. Raises InputError that names the first wrong value."""
    return _validated(PriceList, read_yaml(path), path)


def _validated(kind: type[AnyRecord], values: object, path: Path) -> AnyRecord:
    try:
        # Through JSON, whose strict mode takes lists as tuples and strings as enums, nothing else.
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
    """Where the last of nested `keys` that stands in a YAML file was written; lines count from 1.

    A merged value is found where it was written. None when not even the first key is there.
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
    """The node that shows where an entry begins, and that of its value."""
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
    """Raise InputError for the first variant whose backend cannot run here."""
    for name, recipe in variants.items():
        backend = getattr(recipe, "backend", NATIVE)
        if backend in CUDA_ONLY and not has_cuda():
            raise InputError(
                f"variants.{name}.backend = {backend}: runs on an NVIDIA GPU alone, and this "
                f"machine has none; use {CUDA_ONLY[backend]}, which writes the same format, or "
                "remove the variant"
            )


def require_judge(judge: PackedJudge) -> None:
    """Raise InputError for vLLM where it is not installed."""
    if judge is PackedJudge.VLLM:
        try:
            installed_vllm()
        except InputError as error:
            raise InputError(
                f"evaluate.packed_judge = {judge}: {error}, or set it to {PackedJudge.TRANSFORMERS}"
            ) from error


def chosen_judge(judge: PackedJudge) -> PackedJudge:
    """What `auto` means on this machine."""
    if judge is not PackedJudge.AUTO:
        return judge
    return PackedJudge.VLLM if has_cuda() else PackedJudge.TRANSFORMERS


def read_workspace(workspace: Workspace) -> Params:
    """The parameters of a workspace.

    Raises InputError for a file they name that is not there, or an engine that cannot run here.
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
