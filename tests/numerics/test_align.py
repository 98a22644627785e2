"""Alignment moves the integers of a model towards what the base says, and nothing else."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.errors import InputError
from pipeline.numerics.align import AlignedLinear, Aligner
from pipeline.numerics.grid import range_grid
from pipeline.params.linear_recipe import GroupScheme

VOCABULARY, HIDDEN, GROUP_SIZE = 64, 32, 16
NAMES = ("first", "second")


class Predictor(nn.Module):
    """The smallest model with linears that answer to each other's errors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.first = nn.Linear(HIDDEN, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        hidden = self.embedding(input_ids)
        hidden = hidden + functional.silu(self.first(hidden))
        hidden = hidden + functional.silu(self.second(hidden))
        return SimpleNamespace(logits=4 * self.head(hidden))


def token_ids() -> Tensor:
    return torch.randint(0, VOCABULARY, (8, 64), generator=torch.Generator().manual_seed(1))


def rounded(base: Predictor) -> tuple[Predictor, dict[str, AlignedLinear]]:
    """The model with its linears rounded to 3 bits, and what is to be aligned."""
    student, linears, seen = copy.deepcopy(base), {}, {}
    for name in NAMES:
        base.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].flatten(0, 1)})
        )
    with torch.no_grad():
        base(token_ids(), False)
        for name in NAMES:
            weight = base.get_submodule(name).weight
            grid = range_grid(
                weight, GroupScheme(num_bits=3, group_size=GROUP_SIZE, symmetric=False)
            )
            integers = grid.round(weight)
            gram = seen[name].T @ seen[name] / len(seen[name])
            linears[name] = AlignedLinear(weight.clone(), gram, integers, grid)
            student.get_submodule(name).weight.copy_(grid.values(integers))
    return student, linears


def divergence(student: Predictor, base: Predictor) -> float:
    with torch.no_grad():
        wanted, found = (it(token_ids(), False).logits.log_softmax(-1) for it in (base, student))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_the_student_comes_nearer_and_only_integers_move() -> None:
    base = Predictor()
    student, linears = rounded(base)
    before = copy.deepcopy(student)
    grids = {name: it.grid for name, it in linears.items()}
    aligner = Aligner(student, base, linears)
    first = aligner.step(token_ids())
    assert first == pytest.approx(divergence(before, base), rel=1e-4)
    for _ in range(7):
        aligner.step(token_ids())
    assert divergence(student, base) < 0.7 * first
    assert aligner.integers.keys() == grids.keys()
    for name, integers in aligner.integers.items():
        assert torch.equal(integers, integers.round())
        assert torch.equal(student.get_submodule(name).weight, grids[name].values(integers))
    for name, parameter in before.named_parameters():
        if name not in {f"{it}.weight" for it in NAMES}:
            assert torch.equal(student.get_parameter(name), parameter)


def test_a_student_that_is_the_base_stays_as_it_is() -> None:
    base = Predictor()
    student, linears = rounded(base)
    base.load_state_dict(student.state_dict())
    for name, linear in linears.items():
        linear.target.copy_(base.get_submodule(name).weight.detach())
    Aligner(student, base, linears).step(token_ids())
    assert divergence(student, base) < 1e-9


def test_alignment_repeats_to_the_last_integer() -> None:
    ends = []
    for _ in range(2):
        base = Predictor()
        student, linears = rounded(base)
        aligner = Aligner(student, base, linears)
        for _ in range(3):
            aligner.step(token_ids())
        ends.append(aligner.integers)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in NAMES)


def test_a_model_whose_gradients_are_no_numbers_is_one_line() -> None:
    base = Predictor()
    student, linears = rounded(base)
    student.head.weight.data[0, 0] = torch.inf
    expected = r"^first: the gradient at its output is not finite, .*; set align_samples to 0$"
    with pytest.raises(InputError, match=expected):
        Aligner(student, base, linears).step(token_ids())
