"""Distillation moves scales and vectors down the gradient, and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.numerics.distill import Distiller, RescalableWeight
from pipeline.numerics.grid import range_grid

VOCABULARY, HIDDEN, GROUP_SIZE = 32, 64, 16


class Predictor(nn.Module):
    """The smallest model with what training touches: a norm, a linear, logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        hidden = functional.silu(self.linear(self.norm(self.embedding(input_ids))))
        return SimpleNamespace(logits=self.head(hidden))


def rounded() -> tuple[Predictor, RescalableWeight]:
    """The model with its linear rounded to 3 bits, and that weight taken apart."""
    model = Predictor()
    weight = model.linear.weight.data
    grid = range_grid(weight, num_bits=3, group_size=GROUP_SIZE, symmetric=False)
    model.linear.weight.data = grid.values(grid.round(weight))
    return model, RescalableWeight.of(model.linear.weight.data, grid.scale)


def test_a_weight_is_taken_apart_exactly() -> None:
    weight = Predictor().linear.weight.data
    grid = range_grid(weight, num_bits=4, group_size=GROUP_SIZE, symmetric=False)
    integers = grid.round(weight)
    apart = RescalableWeight.of(grid.values(integers), grid.scale)
    zero = grid.zero.repeat_interleave(GROUP_SIZE, dim=1)
    assert torch.equal(apart.integers.float(), integers - zero)


def test_the_gradient_of_a_scale_is_that_of_the_dense_product() -> None:
    student, weight = rounded()
    ids = torch.arange(VOCABULARY).view(2, -1)
    scale = weight.scale.clone().requires_grad_()
    by_group = weight.integers.view(*scale.shape, -1) * scale.unsqueeze(-1)
    dense = {"linear.weight": by_group.view(HIDDEN, HIDDEN)}
    found = torch.func.functional_call(student, dense, (ids, False)).logits.log_softmax(-1)
    wanted = Predictor()(ids, False).logits.log_softmax(-1).detach()
    loss = functional.kl_div(found, wanted, log_target=True, reduction="sum") / ids.numel()
    (expected,) = torch.autograd.grad(loss, scale)

    distiller = Distiller(student, Predictor(), {"linear": weight}, num_steps=1)
    parameter = student.linear.scale
    seen: list[Tensor] = []
    parameter.register_hook(seen.append)
    assert distiller.step(ids) == pytest.approx(loss.item(), rel=1e-4)
    assert torch.allclose(seen[0], expected, rtol=1e-4, atol=1e-7)


def test_training_brings_the_student_nearer_and_keeps_the_integers() -> None:
    student, weight = rounded()
    ids = torch.arange(VOCABULARY).view(2, -1)
    distiller = Distiller(student, Predictor(), {"linear": weight}, num_steps=200)
    losses = [distiller.step(ids) for _ in range(200)]
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(student.linear.integers, weight.integers)
    scales = distiller.scales()["linear"]
    assert torch.equal(scales, scales.to(torch.float16).float())
    assert torch.equal(scales, scales.to(torch.bfloat16).float())
    assert set(distiller.vectors()) == {"norm.weight", "norm.bias", "linear.bias"}
    untouched = {name: it for name, it in Predictor().named_parameters() if it.ndim == 2}
    assert torch.equal(student.head.weight, untouched["head.weight"])
    assert torch.equal(student.embedding.weight, untouched["embedding.weight"])
