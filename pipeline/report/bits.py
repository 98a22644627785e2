"""Say how a budget spread its bits: the types of each kind of matrix, and size against loss."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from markupsafe import Markup

from pipeline.core.formatting import bytes_text, significant, unit_of
from pipeline.records.variant import BitAllocation, VariantRecord
from pipeline.report.svg_charts import Line, lines

SMALLEST_KL = 1e-9  # a logarithmic axis has no zero
LAYER = re.compile(r"(?:blk|.*\blayers|.*\bh)\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class KindRow:
    """The types of one kind of matrix: each with its layers, or alone where there is one matrix."""

    kind: str
    num_weights: str
    types: tuple[str, ...]


@dataclass(frozen=True)
class BitsSection:
    """How the bits of one variant were spread; `chart` has its sizes against predicted KL."""

    name: str
    sentence: str
    kinds: tuple[KindRow, ...]
    chart: Markup


def bits_sections(variants: Mapping[str, VariantRecord]) -> tuple[BitsSection, ...]:
    """Describe every variant whose types a budget chose."""
    return tuple(
        BitsSection(
            name=name,
            sentence=_sentence(record.allocation),
            kinds=kind_rows((row.name, row.shape, row.scheme) for row in record.coverage),
            chart=_chart(name, record.allocation),
        )
        for name, record in variants.items()
        if record.allocation is not None
    )


def kind_rows(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> tuple[KindRow, ...]:
    """List the types of each kind of matrix of a model, the largest kinds first.

    `tensors` have a name, a shape and a type; vectors are left out.
    """
    layers: dict[str, dict[str, list[int]]] = {}
    num_weights: dict[str, int] = {}
    for name, shape, stored_type in tensors:
        if len(shape) < 2:
            continue
        place = LAYER.fullmatch(name)
        kind = place[2] if place else name.removesuffix(".weight")
        of_type = layers.setdefault(kind, {}).setdefault(stored_type, [])
        of_type += [int(place[1])] if place else []
        num_weights[kind] = num_weights.get(kind, 0) + prod(shape)
    return tuple(
        KindRow(
            kind,
            f"{num_weights[kind]:,}",
            tuple(
                scheme + (f" in {layers_text(numbers)}" if len(types) > 1 and numbers else "")
                for scheme, numbers in sorted(types.items())
            ),
        )
        for kind, types in sorted(layers.items(), key=lambda item: -num_weights[item[0]])
    )


def layers_text(numbers: Sequence[int]) -> str:
    """Write the numbers of layers: `layer 3`, or `layers 0–2, 7`."""
    return f"layer{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def ranges(numbers: Sequence[int]) -> str:
    """Write whole numbers as ranges: 0, 1, 2 and 7 are `0–2, 7`."""
    ordered = sorted(numbers)
    ends = [left for left, right in pairwise(ordered) if right > left + 1] + ordered[-1:]
    starts = ordered[:1] + [right for left, right in pairwise(ordered) if right > left + 1]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{start}–{end}" if end > start else str(start) for start, end in pairs)


def _sentence(allocation: BitAllocation) -> str:
    chosen = allocation.chosen
    return (
        f"Its matrices take {bytes_text(chosen.num_bytes)} of the {bytes_text(allocation.budget)} "
        "that the budget leaves for them. The KL divergence that is predicted for them, without "
        f"folded scales, is {significant(chosen.predicted_kl)} nats per token. No choice of types "
        f"that fits is predicted to lose less than {significant(allocation.least_kl)}."
    )


def _chart(name: str, allocation: BitAllocation) -> Markup:
    unit, unit_bytes = unit_of(max(point.num_bytes for point in allocation.curve))

    def place(num_bytes: int, kl: float) -> tuple[float, float]:
        return num_bytes / unit_bytes, max(kl, SMALLEST_KL)

    # Where every matrix stays as it is, nothing is lost, and the axis has no place for that.
    lossy = [point for point in allocation.curve if point.predicted_kl > 0] or allocation.curve
    curve = tuple(place(point.num_bytes, point.predicted_kl) for point in lossy)
    chosen = place(allocation.chosen.num_bytes, allocation.chosen.predicted_kl)
    return lines(
        [Line(label="best for a size", points=curve), Line(label=name, points=(chosen,))],
        title=f"{name}: size of the matrices and predicted KL divergence",
        x_label=unit,
        y_label="predicted KL divergence",
        logarithmic=True,
    )
