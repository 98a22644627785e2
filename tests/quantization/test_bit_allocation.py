"""The allocation of bits: optimal, inside the budget, and refused where nothing fits."""

import itertools
import random

import pytest

from pipeline.core.errors import InputError
from pipeline.params.budgets import BitsBudget, MemoryBudget, SizeBudget
from pipeline.quantization.bit_allocation import LARGEST_GAP, Choice, allocate, weight_bytes


def parts(seed: int, number: int) -> dict[str, list[Choice]]:
    """Parts of random sizes and sensitivities, whose losses fall with the bits, with some noise."""
    draw = random.Random(seed)
    choices = {}
    for part in range(number):
        weights, sensitivity = draw.randint(100, 3000), draw.lognormvariate(0, 2)
        choices[f"part-{part}"] = [
            Choice(name, round(bits * weights), sensitivity * 4**-bits * draw.uniform(0.8, 1.25))
            for name, bits in (("a", 2.6), ("b", 4.5), ("c", 6.6), ("d", 8.5))
        ]
    return choices


@pytest.mark.parametrize("seed", range(8))
def test_no_other_allocation_is_better(seed: int) -> None:
    choices = parts(seed, 6)
    for share in (0.0, 0.3, 0.7, 1.0):
        least, most = (
            sum(end(it.num_bytes for it in of_part) for of_part in choices.values())
            for end in (min, max)
        )
        budget = round(least + share * (most - least))
        found = allocate(choices, budget, what="b")
        best = min(
            sum(choice.loss for choice in taken)
            for taken in itertools.product(*choices.values())
            if sum(choice.num_bytes for choice in taken) <= budget
        )
        assert found.num_bytes <= budget
        assert best <= found.loss * (1 + 1e-9)
        assert found.loss <= best * (1 + LARGEST_GAP)
        assert found.least_loss <= best * (1 + 1e-6)
        assert set(found.chosen) == set(choices)


def test_hundreds_of_parts_take_no_time_and_the_gap_is_known() -> None:
    choices = parts(0, 400)
    budget = sum(of_part[1].num_bytes for of_part in choices.values())
    found = allocate(choices, budget, what="b")
    assert 0.999 * budget < found.num_bytes <= budget
    assert found.loss * (1 - 2 * LARGEST_GAP) <= found.least_loss <= found.loss
    assert found.loss < 0.9 * sum(of_part[1].loss for of_part in choices.values())


def test_a_budget_below_the_smallest_types_is_one_line() -> None:
    choices = {"x": [Choice("a", 2048, 1.0), Choice("b", 4096, 0.5)]}
    expected = (
        r"^budget = 1 GB: leaves 1\.0.KiB for the weights, .* 2\.0.KiB; state a larger budget$"
    )
    with pytest.raises(InputError, match=expected):
        allocate(choices, 1024, what="budget = 1 GB")


def test_what_a_budget_leaves_for_the_weights() -> None:
    config = {"num_attention_heads": 8, "num_hidden_layers": 4, "hidden_size": 512}
    header, engine = 10**6, 10**8

    def left(budget: BitsBudget | SizeBudget | MemoryBudget) -> int:
        return weight_bytes(
            budget,
            num_weights=10**8,
            header_bytes=header,
            engine_bytes=engine,
            config=config,
        )

    assert left(BitsBudget(bits_per_weight=4.5)) == 56_250_000
    assert left(SizeBudget(size="0.1 GB")) == 10**8 - header
    assert left(SizeBudget(size="100 MiB")) == (100 << 20) - header
    cache = 2 * 2 * 4 * 512 * 1024 * 3  # keys and values of float16
    memory = MemoryBudget(fits="1 GB", context_tokens=1024, users=3)
    assert left(memory) == 10**9 - engine - cache - header
