"""Find the decoder layers of a transformers model, and the tensors its parameters are made from.

transformers renames and merges tensors while it loads a checkpoint; experts become one parameter.
The names here come from its own conversion tables. No weight is read.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from pipeline.checkpoint.model_config import has_several_parts
from pipeline.core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_body(model: "PreTrainedModel") -> tuple[str, nn.Module]:
    """Return the text model without its output projection, and its name in the whole model."""
    body = model.get_decoder() if has_several_parts(model.config) else model.base_model
    return next((name, module) for name, module in model.named_modules() if module is body)


def decoder_layers(model: "PreTrainedModel") -> tuple[str, nn.ModuleList]:
    """Find the list of decoder layers of the text model, and its name in the whole model.

    Raises InputError unless there is exactly one.
    """
    path, body = text_body(model)
    lists = [
        (f"{path}.{name}".removeprefix("."), module)
        for name, module in body.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "layers"
    ]
    if len(lists) != 1:
        raise InputError(
            f"{type(model).__name__}: has {len(lists)} lists of layers, expected one; this "
            "architecture cannot be calibrated"
        )
    return lists[0]


def sources_by_parameter(
    model: "PreTrainedModel", tensors: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Map each parameter to the tensors of a checkpoint that it is made from.

    Where several parameters are cut from one tensor, only the first of them is listed.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [rule for rule in transforms if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in transforms if isinstance(rule, WeightConverter)]
    parameters, prefix = model.state_dict(), model.base_model_prefix
    sources: dict[str, tuple[str, ...]] = {}
    for name in tensors:
        parameter, _ = rename_source_key(name, renamings, converters, prefix, parameters)
        if parameter not in parameters and name in parameters:
            parameter = name
        sources[parameter] = (*sources.get(parameter, ()), name)
    return sources


def module_names(model: "PreTrainedModel", stored: Sequence[str]) -> dict[str, str]:
    """Map linears by their name in the files to their name in the model of several parts."""
    if not has_several_parts(model.config):
        return {name: name for name in stored}
    sources = sources_by_parameter(model, [f"{name}.weight" for name in stored])
    return {
        tensor.removesuffix(".weight"): parameter.removesuffix(".weight")
        for parameter, tensors in sources.items()
        for tensor in tensors
    }
