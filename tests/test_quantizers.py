"""The benchmark of quantizers: its tables can be run, and its figures follow from its outcomes."""

import pytest

from benchmarks.quantizer_recipes import (
    BUDGETS,
    CPU_PEERS,
    CPU_SETS,
    GGUF,
    GGUF_TYPES,
    KL_RATIOS,
    OURS,
    PEERS,
)
from benchmarks.quantizer_runs import IMPORTS, Measurement
from benchmarks.quantizers import GROUP_SIZES, Outcome, raw_rows, recipes_for


@pytest.mark.parametrize("model", GROUP_SIZES)
def test_every_recipe_can_be_expressed(model: str) -> None:
    notes: list[str] = []
    recipes = recipes_for(model, None, notes)
    assert notes == []
    assert set(OURS | PEERS) <= set(recipes)
    kinds = {recipe["type"] for name, recipe in recipes.items() if name in GGUF}
    assert kinds == set(GGUF_TYPES.get(model, ()))


def test_a_recipe_that_cannot_be_expressed_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OURS, "ours-5bit", {"format": "gptq", "num_bits": 5})
    notes: list[str] = []
    assert "ours-5bit" not in recipes_for("babyllama", None, notes)
    assert [note for note in notes if note.startswith("babyllama: ours-5bit left out: ")] == notes


def test_what_is_compared_is_in_the_tables() -> None:
    known = OURS | PEERS | GGUF | {it: None for own in BUDGETS.values() for it in own}
    for ours, others in KL_RATIOS.values():
        assert {ours, *others} <= set(known)
    assert {*CPU_PEERS, *(name for names in CPU_SETS.values() for name in names)} <= set(known)
    assert {recipe["backend"] for recipe in PEERS.values()} == set(IMPORTS)


def test_rows_are_medians_between_the_extremes() -> None:
    measurements = [
        Measurement(
            kl=kl, top1=0.9, perplexity=2, cpu_s=1, wall_s=1, peak_gib=1, date="d", commit="c"
        )
        for kl in (0.3, 0.1, 0.2)
    ]
    rows = {row.key: row for row in raw_rows("demo", {"x": Outcome(measurements, cached=False)})}
    row = rows["kl_x_demo"]
    assert (row.low, row.value, row.high) == (0.1, 0.2, 0.3)
