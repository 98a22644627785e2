"""How a budget spread its bits: the types by kind, their layers, and the sentence."""

import pytest

from pipeline.records.variant import BitAllocation, PredictedLoss, VariantRecord
from pipeline.report.bits import bits_sections, kind_rows, ranges


def row(
    name: str, scheme: str, shape: tuple[int, ...] = (64, 64)
) -> tuple[str, tuple[int, ...], str]:
    return name, shape, scheme


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([0, 1, 2, 7], "0–2, 7"), ([9, 3, 1, 2], "1–3, 9"), ([0, 2], "0, 2")],
)
def test_layers_are_written_as_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_types_are_listed_by_kind_the_largest_first() -> None:
    coverage = [row(f"blk.{layer}.ffn_up.weight", "Q4_K", (128, 64)) for layer in range(3)]
    coverage += [row(f"blk.{layer}.attn_q.weight", "Q6_K") for layer in (0, 2)]
    coverage += [row("blk.1.attn_q.weight", "Q4_K"), row("blk.1.attn_norm.weight", "F32", (64,))]
    coverage += [row("token_embd.weight", "Q5_0", (1000, 64))]
    assert [(it.kind, it.num_weights, it.types) for it in kind_rows(coverage)] == [
        ("token_embd", "64,000", ("Q5_0",)),
        ("ffn_up", "24,576", ("Q4_K",)),
        ("attn_q", "12,288", ("Q4_K in layer 1", "Q6_K in layers 0, 2")),
    ]


def test_linears_of_a_checkpoint_are_listed_by_kind() -> None:
    coverage = [
        row("model.layers.0.mlp.up_proj.weight", "W4A16 symmetric g64"),
        row("model.layers.1.mlp.up_proj.weight", "W8A16 symmetric per channel"),
        row("model.embed_tokens.weight", "float16", (1000, 64)),
    ]
    assert [(it.kind, it.types) for it in kind_rows(coverage)] == [
        ("model.embed_tokens", ("float16",)),
        (
            "mlp.up_proj",
            ("W4A16 symmetric g64 in layer 0", "W8A16 symmetric per channel in layer 1"),
        ),
    ]


def test_a_section_says_what_is_used_what_is_lost_and_how_far_from_the_best() -> None:
    points = [PredictedLoss(num_bytes=size << 20, predicted_kl=0.4 / size) for size in (2, 4, 8)]
    allocation = BitAllocation(
        budget=5 << 20, chosen=points[1], least_kl=0.099, curve=tuple(points)
    )
    plain, mixed = (
        VariantRecord.model_construct(allocation=it, coverage=()) for it in (None, allocation)
    )
    (section,) = bits_sections({"plain": plain, "mixed": mixed})
    assert section.name == "mixed"
    text = section.sentence.replace("\N{NO-BREAK SPACE}", " ")
    assert "take 4.0 MiB of the 5.0 MiB that the budget leaves for them" in text
    assert "is 0.100 nats per token" in text
    assert "lose less than 0.0990." in text
    assert section.chart.startswith("<svg")
    assert "best for a size" in section.chart
