"""Choose the type of each tensor of a GGUF file for a budget of bytes.

The loss of a tensor in a type (`pipeline.quantization.predicted_loss`) is predicted from the error
of some of its rows, rounded by llama.cpp to that type.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.sensitivity import Sensitivities, measure_sensitivities
from pipeline.calibration.statistics import HEAD, Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.progress import track
from pipeline.gguf import files as gguf
from pipeline.gguf.row_rounding import divides, rounded_rows, row_bytes
from pipeline.params.budgets import Budget
from pipeline.params.gguf_variants import BUDGET_SAMPLES
from pipeline.quantization.bit_allocation import (
    Choice,
    allocate,
    allocation_record,
    require_possible,
    weight_bytes,
)
from pipeline.quantization.gguf_rounding import row_order
from pipeline.quantization.predicted_loss import predicted_loss
from pipeline.records.variant import BitAllocation
from pipeline.serving.kv_cache import LLAMA_CPP_BYTES

# The types that are tried, by the number of weights that rows must divide by.
TYPES = {
    256: ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    32: ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
}


def types_for_budget(
    budget: Budget,
    source: Checkpoint,
    full_path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
    statistics: Statistics,
) -> tuple[dict[str, str], BitAllocation]:
    """Choose the GGML type of each matrix of the F16 file of `source` for a budget.

    `linears_of` has the one linear of each tensor; `gram_of` loads G of a linear, and of HEAD.
    Raises InputError for a budget that the smallest types exceed.
    """
    tensors = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    sizes = sizes_of(tensors.values(), linears_of)
    kept = [tensor for name, tensor in tensors.items() if name not in sizes]
    num_weights = sum(prod(tensor.shape) for tensor in tensors.values())
    header_bytes = full_path.stat().st_size - sum(tensor.num_bytes for tensor in tensors.values())
    num_bytes = weight_bytes(
        budget,
        num_weights=num_weights,
        header_bytes=header_bytes,
        engine_bytes=LLAMA_CPP_BYTES,
        config=source.text_values,
    ) - sum(tensor.num_bytes for tensor in kept)
    what = f"budget = {budget.model_dump(mode='json')}"
    require_possible({name: own.values() for name, own in sizes.items()}, num_bytes, what=what)
    choices = choices_of(source, full_path, linears_of, gram_of, statistics)
    allocation = allocate(choices, num_bytes, what=what)
    types = {name: choice.type for name, choice in allocation.chosen.items()}
    return types, allocation_record(allocation, choices, num_bytes)


def sizes_of(
    tensors: Iterable[gguf.GgufTensor], linears_of: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, int]]:
    """List the bytes of each matrix in the types that it can have.

    A tensor whose rows no block divides is left out.
    """
    return {
        tensor.name: {
            kind: prod(tensor.shape[:-1]) * row_bytes(kind, tensor.shape[-1])
            for kind in TYPES[256 if divides("Q4_K", tensor.shape[-1]) else 32]
        }
        for tensor in tensors
        if (tensor.name in linears_of or tensor.name in (gguf.EMBEDDINGS, gguf.HEAD))
        and divides("Q8_0", tensor.shape[-1])
    }


def choices_of(
    source: Checkpoint,
    full_path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
    statistics: Statistics,
) -> dict[str, list[Choice]]:
    """List the types that each matrix of the F16 file of `source` can have, with bytes and losses.

    Sensitivities are measured first.
    """
    tensors = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    windows = statistics.token_ids()[:BUDGET_SAMPLES]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sensitivities = measure_sensitivities(source.directory, windows, device, full_path.parent)
    order_of = {
        name: row_order(tensors[name].values(), source.tensor(f"{linear}.weight"), what=name)
        for name, (linear,) in linears_of.items()
    }
    choices = {}
    sizes = sizes_of(tensors.values(), linears_of)
    for name, of_kind in track(sizes.items(), "types", total=len(sizes)):
        values = tensors[name].values()
        terms = list(_terms(name, tensors, linears_of, gram_of, order_of, sensitivities))
        choices[name] = [
            Choice(
                kind,
                num_bytes,
                sum(
                    predicted_loss(values, weights, metric, _rounding(kind, metric))
                    for weights, metric in terms
                ),
            )
            for kind, num_bytes in of_kind.items()
        ]
    return choices


def _terms(
    name: str,
    tensors: Mapping[str, gguf.GgufTensor],
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
    order_of: Mapping[str, Tensor],
    sensitivities: Sensitivities,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights of a tensor's rows, and the metric of its columns: a matrix or a diagonal.

    `order_of` has for each row of a tensor which row of its linear it is.
    Embeddings that are the output head too have two such terms.
    """
    if name in linears_of:
        (linear,) = linears_of[name]
        yield sensitivities.linears[linear][order_of[name]], gram_of(linear)
    if name == gguf.EMBEDDINGS:
        yield sensitivities.token_share, sensitivities.embedding
    if name == gguf.HEAD or (name == gguf.EMBEDDINGS and gguf.HEAD not in tensors):
        yield sensitivities.head, gram_of(HEAD)


def _rounding(kind: str, metric: Tensor) -> Callable[[Tensor], Tensor]:
    """Round rows by llama.cpp to a type, with the importance of the columns."""
    importance = metric if metric.ndim == 1 else metric.diagonal()
    return partial(rounded_rows, kind, importance=importance.contiguous())
