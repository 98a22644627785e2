"""Account for every tensor of a checkpoint, and find values that are no numbers."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.conversion_mapping import get_model_conversion_mapping

from pipeline.architectures.folds import LAYER_NAME
from pipeline.checkpoint.checks import FULL_PRECISION, USE_ANOTHER
from pipeline.checkpoint.layered_model import empty_model
from pipeline.checkpoint.model_parts import sources_by_parameter
from pipeline.checkpoint.reading import read_tensors
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import InputError, printable, short_repr
from pipeline.core.progress import track
from pipeline.intake.text_part import text_part, text_tensors
from pipeline.records.base import TextPart
from pipeline.records.intake import Finding

CHECKED_VALUES = 1 << 24  # at a time
PREDICTION_HEAD = re.compile(r"(^|\.)(mtp|nextn|eagle|medusa)[._]")
BUFFER = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|masked_bias|attention\.bias)$")


@dataclass(frozen=True)
class Accounting:
    """How the tensors of the files and the parameters of the model go together.

    `unused` are the tensors that the text model does not read, sorted; they stay in every packed
    release as they are. `text_part` is None where the whole model is of text.
    """

    unused: tuple[str, ...]
    text_part: TextPart | None
    findings: tuple[Finding, ...]


def account_for_tensors(directory: Path, tensors: Mapping[str, tuple[int, ...]]) -> Accounting:
    """Match tensors, shapes by name, with the parameters of transformers' model of config.json.

    Raises InputError for an architecture that cannot be built, and for a parameter that no tensor
    fills or that has another shape.
    """
    model = empty_model(directory)
    sources = sources_by_parameter(model, tuple(tensors))
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    # Of several parameters that are cut from one tensor, only the first is known.
    are_cut = any(
        len(getattr(rule, "target_patterns", ())) > 1
        for rule in get_model_conversion_mapping(model)
    )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        made_from = sources.get(name, ())
        if not made_from and name not in tied and not are_cut:
            raise InputError(
                f"{name}: no tensor of the files fills it, though config.json says that the model "
                f"has it; {USE_ANOTHER}"
            )
        if made_from == (name,) and tensors[name] != tuple(parameter.shape):
            raise InputError(
                f"{name}: shape {tensors[name]}, expected {tuple(parameter.shape)} by "
                f"config.json; {USE_ANOTHER}"
            )
    read = text_tensors(model, sources)
    unused = tuple(sorted(name for name in tensors if name not in read))
    part = text_part(model, tuple(tensors))
    num_layers = model.config.get_text_config().num_hidden_layers
    return Accounting(unused, part, tuple(_unused_findings(unused, part, num_layers=num_layers)))


def _unused_findings(
    unused: Collection[str], part: TextPart | None, *, num_layers: int
) -> Iterator[Finding]:
    """Say by kind what tensors are there that the text model does not read."""
    if part:
        beside = [name for name in unused if part.is_of_other_part(name)]
        unused = sorted(set(unused) - set(beside))
        yield Finding(
            file="weights",
            found=f"{len(beside)} tensors of parts beside the text model: "
            f"{printable(', '.join(part.other_parts))}",
            done="kept as they are in packed variants, and not measured; a GGUF file has the text "
            "model alone: no mmproj file is made",
        )
    kinds: dict[str, list[str]] = {}
    for name in unused:
        layer = LAYER_NAME.match(name)
        if PREDICTION_HEAD.search(name):
            kind = "prediction heads, for speculative decoding"
        elif layer and int(layer[2]) >= num_layers:
            kind = f"layers beyond num_hidden_layers = {num_layers}"
        elif BUFFER.search(name):
            kind = "buffers that a model computes by itself"
        else:
            kind = "tensors that the model has no parameter for"
        kinds.setdefault(kind, []).append(name)
    for kind, names in kinds.items():
        yield Finding(
            file="weights",
            found=f"{len(names)} {kind}, such as {printable(names[0])}",
            done="kept as they are in packed variants; a GGUF file has those that llama.cpp knows",
        )


def require_finite(directory: Path, files: Collection[str]) -> None:
    """Raise InputError, naming the tensor, where a weight is infinite or not a number."""
    for file in track(files, "fetch: files with checked values", total=len(files)):
        path = directory / file
        for name, info in read_header(path).items():
            if info.dtype not in FULL_PRECISION:
                continue
            values = read_tensors(path, [name], remedy="get the file again")[name].flatten()
            if not all(torch.isfinite(part).all() for part in torch.split(values, CHECKED_VALUES)):
                raise InputError(
                    f"{file}: tensor {short_repr(name)} has values that are infinite or no "
                    f"numbers; {USE_ANOTHER}"
                )
