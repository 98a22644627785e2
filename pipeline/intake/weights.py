"""Account for every tensor of a checkpoint, and find values that are no numbers."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from pipeline.architectures.folds import LAYER_NAME
from pipeline.checkpoint.checks import FULL_PRECISION, USE_ANOTHER
from pipeline.checkpoint.empty_model import empty_model
from pipeline.checkpoint.model_parts import sources_by_parameter
from pipeline.checkpoint.names import INDEX_FILE, WEIGHTS_FILE
from pipeline.checkpoint.reading import read_tensors
from pipeline.checkpoint.safetensors_header import TensorInfo, read_header
from pipeline.core.errors import InputError, printable, short_repr
from pipeline.core.progress import track
from pipeline.intake.heads import TIED_KEY, TiedHead, require_own_head
from pipeline.intake.text_part import text_part, text_tensors
from pipeline.records.base import TextPart
from pipeline.records.intake import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_FLOAT16 = torch.finfo(torch.float16).max
CHECKED_VALUES = 1 << 24  # at a time
PREDICTION_HEAD = re.compile(r"(^|\.)(mtp|nextn|eagle|medusa)[._]")
BUFFER = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|masked_bias|attention\.bias)$")


@dataclass(frozen=True)
class Accounting:
    """How the tensors of the files and the parameters of the model go together.

    `architecture` is transformers' class of the text model. `unused` are the tensors that it does
    not read, sorted; they stay in every packed release as they are. `tied` are heads that are in
    the files though config.json ties them. `text_part` is None where the whole model is of text.
    """

    architecture: str
    unused: tuple[str, ...]
    tied: tuple[TiedHead, ...]
    text_part: TextPart | None
    findings: tuple[Finding, ...]


def examine_index(
    headers: Mapping[str, Mapping[str, TensorInfo]], shards: Mapping[str, Collection[str]] | None
) -> tuple[Finding, ...]:
    """Compare the index with the headers of the shards, which decide where a tensor is.

    `shards` has the tensors that the index lists for each file, None without an index. A finding
    asks for a new index. Raises InputError for a tensor that is listed and in no file.
    """
    if shards is None:
        if WEIGHTS_FILE in headers:
            return ()
        found = "is not there, though the weights are in shards"
    else:
        there = {name for header in headers.values() for name in header}
        for file, listed in shards.items():
            for name in sorted(set(listed) - there):
                raise InputError(
                    f"{file}: tensor {short_repr(name)} is missing, though listed in "
                    f"{INDEX_FILE}; {USE_ANOTHER}"
                )
        elsewhere = [
            name for file in headers for name in headers[file] if name not in shards.get(file, ())
        ]
        if not elsewhere:
            return ()
        found = (
            f"does not say where {len(elsewhere)} tensors are, such as {printable(elsewhere[0])}"
        )
    return (Finding(file=INDEX_FILE, found=found, done="made from the headers of the shards"),)


def require_full_precision(tensors: Mapping[str, TensorInfo], unused: Collection[str]) -> None:
    """Raise InputError, naming the tensor, where one that the model reads is in whole numbers."""
    for name in sorted(tensors.keys() - set(unused)):
        if tensors[name].dtype not in FULL_PRECISION:
            raise InputError(
                f"{short_repr(name)}: has dtype {tensors[name].dtype}, expected floating point, so "
                "the model is quantized already; use the full-precision model it was made from"
            )


def account_for_tensors(directory: Path, tensors: Mapping[str, tuple[int, ...]]) -> Accounting:
    """Match tensors, shapes by name, with the parameters of transformers' model of config.json.

    Raises InputError for an architecture that cannot be built, for a parameter that no tensor
    fills or that has another shape, and for a head that vLLM would not read.
    """
    model = empty_model(directory)
    sources = sources_by_parameter(model, tuple(tensors))
    tied: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    heads = _head_names(model)
    rules = get_model_conversion_mapping(model)
    # Of several parameters of a layer that are cut from one tensor, only the first is known.
    are_cut = any(len(getattr(rule, "target_patterns", ())) > 1 for rule in rules)
    are_converted = any(isinstance(rule, WeightConverter) for rule in rules)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        made_from = sources.get(name, ())
        if not made_from and name not in tied and not (are_cut and LAYER_NAME.match(name)):
            raise InputError(
                f"{name}: no tensor of the files fills it, though config.json says that the model "
                f"has it; {USE_ANOTHER}"
                + (f", or one whose config.json has {TIED_KEY} = true" if name in heads else "")
            )
        is_whole = made_from == (name,) or (len(made_from) == 1 and not are_converted)
        if is_whole and tensors[made_from[0]] != tuple(parameter.shape):
            raise InputError(
                f"{made_from[0]}: shape {tensors[made_from[0]]}, expected "
                f"{tuple(parameter.shape)} by "
                f"config.json; {USE_ANOTHER}"
            )
    read = text_tensors(model, sources)
    unused = tuple(sorted(name for name in tensors if name not in read))
    part = text_part(model, tuple(tensors))
    architecture = part.architecture if part else type(model).__name__
    if not heads & tied.keys():
        for name in heads:
            require_own_head(name, architecture)
    num_layers = model.config.get_text_config().num_hidden_layers
    return Accounting(
        architecture,
        unused,
        tuple(
            TiedHead(own, other)
            for name, tied_to in tied.items()
            if name in heads
            for own in sources.get(name, ())
            for other in sources.get(tied_to, ())
        ),
        part,
        tuple(_unused_findings(unused, part, num_layers=num_layers)),
    )


def _head_names(model: "PreTrainedModel") -> set[str]:
    """Return the names of the parameter that makes logits; the embedding's is one if it is tied."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if parameter is weight}


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


def require_storable(directory: Path, files: Collection[str]) -> None:
    """Raise InputError, naming the tensor, where a weight is infinite or not a number.

    It is also raised for a matrix with values beyond float16's. The files of variants hold float16:
    packed ones their scales, and the GGUF file that llama.cpp quantizes all matrices.
    """
    for file in track(files, "fetch: files with checked values", total=len(files)):
        path = directory / file
        for name, info in read_header(path).items():
            if info.dtype not in FULL_PRECISION:
                continue
            values = read_tensors(path, [name], remedy="get the file again")[name]
            is_matrix = values.ndim > 1 and name.endswith(".weight")  # and no mask
            parts = torch.split(values.flatten(), CHECKED_VALUES) if values.numel() else ()
            for low, high in map(torch.aminmax, parts):
                largest = torch.maximum(-low, high)
                if not largest.isfinite():
                    problem = "values that are infinite or no numbers"
                elif is_matrix and largest > LARGEST_FLOAT16:
                    problem = f"values beyond {LARGEST_FLOAT16:.0f}, the largest of float16"
                else:
                    continue
                raise InputError(f"{file}: tensor {short_repr(name)} has {problem}; {USE_ANOTHER}")
