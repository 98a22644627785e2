"""Choose the type of each tensor of a GGUF file for a budget of bytes.

The loss of a tensor in a type is predicted from the error of some of its rows, rounded by llama.cpp
to that type, and from the sensitivity of the model's output to it
(`pipeline.calibration.sensitivity`): half of Σᵢ Sᵢᵢ (ΔW G ΔWᵀ)ᵢᵢ. Rows are drawn with a probability
in proportion to Sᵢᵢ, so that the mean of their errors estimates the sum. Embeddings that are looked
up cause half of Σᵥ shareᵥ Σⱼ Dⱼ ΔEᵥⱼ², with D the sensitivity of their columns. All losses are in
nats per token; they add up as if the errors of matrices were independent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.sensitivity import Sensitivities, measure_sensitivities
from pipeline.calibration.statistics import HEAD, Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.progress import note, track
from pipeline.gguf import files as gguf
from pipeline.gguf.row_rounding import divides, rounded_rows, row_bytes
from pipeline.params.budgets import BitsBudget, Budget, MemoryBudget, largest_bytes
from pipeline.params.gguf_variants import BUDGET_SAMPLES
from pipeline.quantization.bit_allocation import Choice, allocate, curve_of
from pipeline.quantization.gguf_rounding import row_order
from pipeline.records.variant import BitAllocation, PredictedLoss
from pipeline.serving.kv_cache import LLAMA_CPP_BYTES, kv_bytes_of_config

# The types that are tried, by the number of weights that rows must divide by.
TYPES = {
    256: ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    32: ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
}
NUM_ROWS = 256
CURVE_POINTS = 12
KV_BYTES_PER_VALUE = 2.0  # llama.cpp's default is float16


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
    choices = choices_of(source, full_path, linears_of, gram_of, statistics)
    tensors = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    kept = [tensor for name, tensor in tensors.items() if name not in choices]
    num_weights = sum(prod(tensor.shape) for tensor in tensors.values())
    header_bytes = full_path.stat().st_size - sum(tensor.num_bytes for tensor in tensors.values())
    num_bytes = weight_bytes(
        budget, num_weights=num_weights, header_bytes=header_bytes, config=source.text_values
    ) - sum(tensor.num_bytes for tensor in kept)
    allocation = allocate(choices, num_bytes, what=f"budget = {budget.model_dump(mode='json')}")
    note(
        f"quantize: {allocation.num_bytes / num_bytes:.1%} of the budget is used; predicted KL "
        f"{allocation.loss:.4f} nats per token"
    )
    types = {name: choice.type for name, choice in allocation.chosen.items()}
    record = BitAllocation(
        budget=num_bytes,
        chosen=PredictedLoss(num_bytes=allocation.num_bytes, predicted_kl=allocation.loss),
        least_kl=allocation.least_loss,
        curve=tuple(
            PredictedLoss(num_bytes=point.num_bytes, predicted_kl=point.loss)
            for point in curve_of(choices, num_points=CURVE_POINTS)
        ),
    )
    return types, record


def weight_bytes(
    budget: Budget, *, num_weights: int, header_bytes: int, config: Mapping[str, object]
) -> int:
    """Compute the bytes that a budget leaves for the tensors of a file.

    `header_bytes` are those of the file beside its tensors, and `config` has the values of
    config.json.
    """
    most = largest_bytes(budget, num_weights)
    if isinstance(budget, BitsBudget):
        return most
    if isinstance(budget, MemoryBudget):
        num_tokens = budget.context_tokens * budget.users
        most -= kv_bytes_of_config(config, num_tokens, bytes_per_value=KV_BYTES_PER_VALUE)
        most -= LLAMA_CPP_BYTES
    return most - header_bytes


def choices_of(
    source: Checkpoint,
    full_path: Path,
    linears_of: Mapping[str, Sequence[str]],
    gram_of: Callable[[str], Tensor],
    statistics: Statistics,
) -> dict[str, list[Choice]]:
    """List the types that each matrix of the F16 file of `source` can have, with bytes and losses.

    Sensitivities are measured first. A tensor whose rows no block divides is left out.
    """
    tensors = {tensor.name: tensor for tensor in gguf.read_tensors(full_path)}
    windows = statistics.token_ids()[:BUDGET_SAMPLES]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sensitivities = measure_sensitivities(source.directory, windows, device, full_path.parent)
    order_of = {
        name: row_order(tensors[name].values(), source.tensor(f"{linear}.weight"), what=name)
        for name, (linear,) in linears_of.items()
    }
    chosen = [
        tensor
        for tensor in tensors.values()
        if (tensor.name in linears_of or tensor.name in (gguf.EMBEDDINGS, gguf.HEAD))
        and divides("Q8_0", tensor.shape[-1])
    ]
    choices = {}
    for tensor in track(chosen, "types", total=len(chosen)):
        values = tensor.values()
        terms = list(_terms(tensor.name, tensors, linears_of, gram_of, order_of, sensitivities))
        choices[tensor.name] = [
            Choice(
                kind,
                len(values) * row_bytes(kind, tensor.shape[-1]),
                sum(_loss(kind, values, weights, metric) for weights, metric in terms),
            )
            for kind in TYPES[256 if divides("Q4_K", tensor.shape[-1]) else 32]
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


def _loss(kind: str, values: Tensor, weights: Tensor, metric: Tensor) -> float:
    """Predict the loss of rounding `values`, rows × width, to a type.

    `weights` are of the rows, and may be fewer where the file pads the vocabulary. `metric` is
    width × width, or its diagonal.
    """
    rows = values[_drawn_rows(weights)]
    importance = metric if metric.ndim == 1 else metric.diagonal()
    error = rounded_rows(kind, rows, importance.contiguous()) - rows
    moved = error * metric if metric.ndim == 1 else error @ metric
    return float(weights.sum()) * float((moved * error).sum(1).mean()) / 2


def _drawn_rows(weights: Tensor) -> Tensor:
    """Draw rows evenly along the sum of their weights."""
    ends = weights.double().cumsum(0)
    places = (torch.arange(NUM_ROWS, dtype=torch.float64) + 0.5) / NUM_ROWS * ends[-1]
    return torch.searchsorted(ends, places).clamp_(max=len(weights) - 1)
