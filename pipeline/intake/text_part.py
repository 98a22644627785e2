"""Find the text model inside a model of several parts, and the tensors that it reads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from pipeline.architectures.folds import split_layer_name
from pipeline.checkpoint.model_config import has_several_parts, text_architecture
from pipeline.checkpoint.model_parts import decoder_layers, sources_by_parameter, text_body
from pipeline.records.base import TextPart, first_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_tensors(model: "PreTrainedModel", sources: Mapping[str, tuple[str, ...]]) -> set[str]:
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


def text_part(model: "PreTrainedModel", tensors: Sequence[str]) -> TextPart | None:
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
