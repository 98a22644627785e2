"""Find the decoder layers of a transformers model, and the tensors its parameters are made from.

transformers renames and merges tensors while it loads a checkpoint; experts become one parameter.
The names here come from its own conversion tables. No weight is read.
"""

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from pipeline.architectures.folds import split_layer_name
from pipeline.checkpoint.model_config import has_several_parts, text_architecture
from pipeline.core.errors import InputError
from pipeline.records.base import TextPart, first_name


def text_body(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Return the text model without its output projection, and its name in the whole model."""
    body = model.get_decoder() if has_several_parts(model.config) else model.base_model
    return next((name, module) for name, module in model.named_modules() if module is body)


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
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
    model: PreTrainedModel, tensors: Sequence[str]
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


def module_names(model: PreTrainedModel, stored: Sequence[str]) -> dict[str, str]:
    """Map linears by their name in the files to their name in the model of several parts."""
    if not has_several_parts(model.config):
        return {name: name for name in stored}
    sources = sources_by_parameter(model, [f"{name}.weight" for name in stored])
    return {
        tensor.removesuffix(".weight"): parameter.removesuffix(".weight")
        for parameter, tensors in sources.items()
        for tensor in tensors
    }


def text_tensors(model: PreTrainedModel, sources: Mapping[str, tuple[str, ...]]) -> set[str]:
    """List the tensors that the text model reads: those of its body and its output projection.

    `sources` are the tensors of each parameter.
    """
    modules: list[nn.Module] = [model]
    if has_several_parts(model.config):
        _, body = text_body(model)
        head = model.get_output_embeddings()
        modules = [body] if head is None else [body, head]
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    return {
        tensor
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in inside
        for tensor in sources.get(name, ())
    }


def text_part(model: PreTrainedModel, tensors: Sequence[str]) -> TextPart | None:
    """Describe the text part of a model with these tensors; None where the whole is of text."""
    if not has_several_parts(model.config):
        return None
    sources = sources_by_parameter(model, tensors)
    path, _ = text_body(model)
    read = text_tensors(model, sources)
    layers, _ = decoder_layers(model)
    stored = next(
        layer[0]
        for name, made_from in sources.items()
        if name.startswith(f"{layers}.0.") and (layer := split_layer_name(made_from[0]))
    )
    own = {first_name(name) for name in read}
    used = {name for parameter in model.state_dict() for name in sources.get(parameter, ())}
    return TextPart(
        architecture=text_architecture(model.config),
        stored_prefix=stored.removesuffix("layers.0"),
        module_prefix=f"{path}.",
        other_parts=tuple(sorted({first_name(name) for name in used - read} - own)),
    )
