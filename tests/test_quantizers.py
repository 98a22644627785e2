"""The benchmark of quantizers: its tables can be run, and its figures follow from its outcomes."""

import numpy as np
import pytest

from benchmarks.quantizer_recipes import (
    BUDGETS,
    CPU_SETS,
    GGUF,
    GGUF_TYPES,
    KL_RATIOS,
    OURS,
    PEERS,
)
from benchmarks.quantizer_runs import IMPORTS, Measurement
from benchmarks.quantizers import GROUP_SIZES, Outcome, ratio_row, raw_rows, recipes_for


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
    for ours_of_key, peers in CPU_SETS.values():
        assert {*ours_of_key, *peers} <= set(known)
    assert {recipe["backend"] for recipe in PEERS.values()} == set(IMPORTS)


def test_rows_are_medians_between_the_extremes() -> None:
    measurements = [
        Measurement(
            kl=kl,
            window_kls=(kl / 2, 1.5 * kl),
            other_window_kls=(),
            top1=0.9,
            perplexity=2,
            cpu_s=1,
            wall_s=1,
            peak_gib=1,
            date="d",
            commit="c",
        )
        for kl in (0.3, 0.1, 0.2)
    ]
    rows = {row.key: row for row in raw_rows("demo", {"x": Outcome(measurements, cached=False)})}
    row = rows["kl_x_demo"]
    assert (row.low, row.value, row.high) == (0.1, 0.2, 0.3)
    means = Outcome(measurements, cached=False).window_kls()
    assert means.tolist() == pytest.approx([0.1, 0.3])


def test_a_ratio_is_to_the_best_of_the_others_with_its_interval() -> None:
    draw = np.random.default_rng(0)
    better = draw.uniform(0.5, 1.5, 40)
    ours = better * draw.uniform(0.4, 0.6, 40)
    row = ratio_row("kl", ours, [2 * better, better])
    assert row.value == pytest.approx(ours.mean() / better.mean())
    assert row.low is not None
    assert row.high is not None
    assert 0.4 < row.low < row.value < row.high < 0.6
