"""Describe what another quantizer did to every tensor, from the files that it wrote.

The errors are measured on the unpacked weights, against those of the base. What a library reports
about itself is not used.
"""

from collections import Counter
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_weights
from pipeline.core.errors import FailureError
from pipeline.numerics.gram import output_error
from pipeline.numerics.grid import range_grid
from pipeline.params.linear_recipe import GroupScheme
from pipeline.params.other_quantizers import BackendParams
from pipeline.quantization.coverage import implied_by_packing, kept_coverage, require_covered
from pipeline.records.variant import TensorCoverage

BALANCE_STEPS = 4
OUTPUT_STEPS = 2
OUTPUT_DAMPENING = 1e-4
HALF_PRECISION = 2.0**-7  # relative; further apart than any rounding to bfloat16 or float16


def measured_coverage(
    base_dir: Path, model_dir: Path, recipe: BackendParams, statistics: Statistics
) -> tuple[TensorCoverage, ...]:
    """Describe each tensor of the base as it is stored in `model_dir`, sorted by name.

    Raises FailureError for a tensor that is missing or has another shape, and when less is
    quantized than the recipe implies: every matrix in a decoder layer.
    """
    base, stored = Checkpoint(base_dir), Checkpoint(model_dir)
    num_bytes: Counter[str] = Counter()  # by module, biases apart
    for name in stored.names:
        module, _, suffix = name.rpartition(".")
        if suffix != "bias":
            num_bytes[module] += stored.tensor(name).nbytes
    rows: list[TensorCoverage] = []
    for name, weight in unpacked_weights(model_dir):
        if name not in base.names:
            continue  # for instance an output matrix written beside the embedding it is tied to
        original = base.tensor(name)
        if original.shape != weight.shape:
            raise FailureError(
                f"{recipe.backend}: {name} is {list(weight.shape)}, in the base "
                f"{list(original.shape)}; nothing was kept"
            )
        linear = name.removesuffix(".weight")
        if name in stored.names:
            kept = stored.tensor(name)
            unchanged = torch.allclose(original.float(), kept.float(), rtol=HALF_PRECISION)
            row = kept_coverage(
                name,
                shape=tuple(original.shape),
                dtype=str(kept.dtype).removeprefix("torch."),
                num_bytes=kept.nbytes,
                folded=not unchanged,
                reason=None,
            )
            rows.append(row)
        else:
            gram = statistics.gram(linear) if linear in statistics.linears else None
            rows.append(_packed_row(name, original, weight, gram, recipe, num_bytes[linear]))
    missing = sorted(set(base.names) - {row.name for row in rows})
    if missing:
        raise FailureError(f"{recipe.backend}: its checkpoint lacks {missing[0]}; nothing was kept")
    implied = {row.name for row in rows if implied_by_packing(row.name, row.shape)}
    require_covered(rows, implied=implied, kept=())
    return tuple(sorted(rows, key=lambda row: row.name))


def _packed_row(
    name: str,
    original: Tensor,
    weight: Tensor,
    gram: Tensor | None,
    recipe: BackendParams,
    num_bytes: int,
) -> TensorCoverage:
    """Describe a quantized linear, with its errors as in `TensorCoverage` where G is known."""
    scheme = GroupScheme(
        num_bits=recipe.num_bits, group_size=recipe.group_size, symmetric=recipe.symmetric
    )
    relative_error = error_ratio = None
    if gram is not None:
        original = original.float()
        if recipe.folds_scales:
            weight = _without_folded_scales(original, weight, gram)
        plain = range_grid(original, scheme)
        error = float(output_error(weight - original, gram))
        power = float(output_error(original, gram))
        plain_error = float(output_error(plain.values(plain.round(original)) - original, gram))
        relative_error = error / power if power > 0 else 0.0
        error_ratio = error / plain_error if plain_error > 0 else 1.0
    zero_points = "symmetric" if recipe.symmetric else "asymmetric"
    return TensorCoverage(
        name=name,
        shape=tuple(original.shape),
        scheme=f"W{recipe.num_bits}A16 {zero_points} g{recipe.group_size}",
        bits_per_weight=8 * num_bytes / prod(original.shape),
        relative_error=relative_error,
        error_ratio=error_ratio,
        reason=None,
    )


def _without_folded_scales(original: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """Remove AWQ's scales from a weight, so that it can be compared with that of the base.

    AWQ multiplies the columns of a linear by scales and divides the previous operation by them. A
    linear that is itself a previous operation has its outputs divided as well. The file stores
    neither vector. They are estimated as the diagonal matrices A and B for which A · weight · B
    has the least output error: first by least squares on the weights alone, then on the outputs.
    The change b of B's diagonal solves (EᵀE ∘ G) b = diag(Eᵀ (W − E) G), with E the weight so far.
    A and B have one number for a whole row or column, so they undo little of the rounding error,
    and less in larger matrices.
    """
    effective = weight
    ones = torch.ones((), dtype=weight.dtype)
    for _ in range(BALANCE_STEPS):
        for dimension in (0, 1):
            power = (effective * effective).sum(dimension, keepdim=True)
            product = (effective * original).sum(dimension, keepdim=True)
            effective = effective * torch.where(power > 0, product / power, ones)
    for _ in range(OUTPUT_STEPS):
        metric = (effective.T @ effective) * gram
        metric.diagonal().add_(metric.diagonal().mean() * OUTPUT_DAMPENING)
        wanted = (effective * ((original - effective) @ gram)).sum(0)
        effective = effective * (1 + torch.linalg.solve(metric, wanted))
        by_input = effective @ gram
        power = (effective * by_input).sum(1, keepdim=True)
        product = (original * by_input).sum(1, keepdim=True)
        effective = effective * torch.where(power > 0, product / power, ones)
    return effective
