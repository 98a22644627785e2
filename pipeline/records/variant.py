"""The records of quantize: `variant.json`, with the stored type and the error of every tensor."""

from collections.abc import Sequence
from math import prod

from pipeline.core.file_records import FileRecord, Sha256
from pipeline.core.record import Record
from pipeline.params.params import VariantParams


class TensorCoverage(Record):
    """The stored type and the error of one tensor.

    `scheme` is the stored type (`W4A16 asymmetric g128`, `Q4_K`, `float16`). `relative_error` is
    tr(ΔW G ΔWᵀ) / tr(W G Wᵀ), where G is known. `error_ratio` is tr(ΔW G ΔWᵀ) divided by that of
    plain rounding: to nearest with the range of each group, where there are groups, or in GGUF by
    llama.cpp. `reason` says why a tensor was not quantized, or has another type than the recipe's,
    or other rounding.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    bits_per_weight: float
    relative_error: float | None
    error_ratio: float | None
    reason: str | None


class LayerCoverage(Record):
    """The rows of one decoder layer, written when the layer is finished."""

    rows: tuple[TensorCoverage, ...]


class PredictedLoss(Record):
    """The bytes of all matrices with types of their own, and the KL predicted for their rounding.

    The KL is in nats per token.
    """

    num_bytes: int
    predicted_kl: float


class BitAllocation(Record):
    """The choice of a type for each matrix under a budget of bytes.

    No other choice has a predicted KL below `least_kl`. `curve` has the best choices for other
    budgets, by their size.
    """

    budget: int
    chosen: PredictedLoss
    least_kl: float
    curve: tuple[PredictedLoss, ...]


class VariantRecord(Record):
    """One quantized variant: its recipe, the digests of its inputs, and its files.

    `tools` are the versions of programs by name; the first one found the integers. `allocation` is
    of a recipe with a budget.
    """

    name: str
    recipe: VariantParams
    base_digest: Sha256
    statistics_digest: Sha256
    tools: dict[str, str]
    files: tuple[FileRecord, ...]
    digest: Sha256
    bits_per_weight: float
    coverage: tuple[TensorCoverage, ...]
    allocation: BitAllocation | None

    @property
    def quantizer(self) -> str:
        """The program that found the integers, and its version."""
        name, version = next(iter(self.tools.items()))
        return f"{name} {version}"

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weight_bytes(self) -> int:
        return sum(f.size for f in self.files if f.path.endswith((".safetensors", ".gguf")))


FULL_PRECISION_TYPES = ("F32", "F16", "BF16", "float32", "float16", "bfloat16")


def bits_per_weight(coverage: Sequence[TensorCoverage]) -> float:
    """Compute the mean bits per weight over all weights of the model."""
    weights = [prod(row.shape) for row in coverage]
    bits = sum(row.bits_per_weight * n for row, n in zip(coverage, weights, strict=True))
    return bits / sum(weights)


def quantized_bits(coverage: Sequence[TensorCoverage]) -> float:
    """Compute the mean bits per weight over the quantized weights, or over all where none is."""
    quantized = [row for row in coverage if row.scheme not in FULL_PRECISION_TYPES]
    return bits_per_weight(quantized or coverage)
