"""Distillation: scales and vectors of a quantized model, trained to say what the base says.

The other algorithms look at one linear at a time and know nothing of how errors add up along the
model. Here the integers stay as they are, and the scale of every group and every vector of the
model (norms, biases) are moved down the gradient of

    L = mean over tokens of KL(base ‖ variant).

Training step sizes end to end on fixed integers is the second phase of EfficientQAT (Chen et al.,
arXiv 2407.11062); the base's own distribution as the target is LLM-QAT's (Liu et al., arXiv
2305.17888). Needs both models whole in memory, in float32; files are not touched here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.numerics.grid import storable

# The first step's, in units of the mean magnitude of what is trained; it falls to zero.
LEARNING_RATE = 0.002
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class RescalableWeight:
    """A quantized weight: centred integers (q − zero, int8, out × in) and scales, out × groups."""

    integers: Tensor
    scale: Tensor

    @staticmethod
    def of(weight: Tensor, scale: Tensor) -> "RescalableWeight":
        """Taken apart again: `weight` is what the integers stand for at `scale`."""
        by_group = weight.view(*scale.shape, -1) / scale.unsqueeze(-1)
        return RescalableWeight(by_group.round().to(torch.int8).view_as(weight), scale)


class Distiller:
    """Trains `student` in place towards `teacher`; both give logits for token ids.

    `weights` are the student's quantized linears by module name. Gradients flow to their scales and
    to the student's vectors alone.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weights: Mapping[str, RescalableWeight],
        *,
        num_steps: int,
    ) -> None:
        self._student, self._teacher = student, teacher
        student.requires_grad_(False)
        self._linears = {name: _replaced(student, name, it) for name, it in weights.items()}
        self._vectors = {
            name: it.requires_grad_() for name, it in student.named_parameters() if it.ndim == 1
        }
        trained = [*(it.scale for it in self._linears.values()), *self._vectors.values()]
        self._optimizer = torch.optim.Adam(
            [
                {"params": [it], "lr": LEARNING_RATE * it.detach().abs().mean().item()}
                for it in trained
            ],
            betas=BETAS,
        )
        self._schedule = torch.optim.lr_scheduler.LinearLR(
            self._optimizer, start_factor=1.0, end_factor=0.0, total_iters=num_steps
        )

    def step(self, token_ids: Tensor) -> float:
        """One step on `token_ids`, samples × tokens; returns L on them before it, in nats."""
        with torch.no_grad():
            wanted = _log_probabilities(self._teacher, token_ids)
        found = _log_probabilities(self._student, token_ids)
        loss = functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        return loss.item()

    def scales(self) -> dict[str, Tensor]:
        """The scales by module name, out × groups, as files hold them."""
        return {name: storable(it.scale.detach()) for name, it in self._linears.items()}

    def vectors(self) -> dict[str, Tensor]:
        """The vectors by parameter name, float32."""
        return {name: it.detach() for name, it in self._vectors.items()}


class _RescaledLinear(nn.Module):
    """A linear whose weight is fixed integers times scales."""

    def __init__(self, weight: RescalableWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.integers = weight.integers
        self.scale = nn.Parameter(weight.scale.clone())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, _rescaled(self.integers, self.scale), self.bias)


class _Rescale(torch.autograd.Function):
    """integers · scale by group; keeps the integers alone for the way back, one byte each."""

    @staticmethod
    def forward(ctx: Any, integers: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(integers)
        by_group = integers.view(*scale.shape, -1)
        ctx.shape = by_group.shape
        return (by_group * scale.unsqueeze(-1)).view_as(integers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (integers,) = ctx.saved_tensors
        return None, (gradients[0].view(ctx.shape) * integers.view(ctx.shape)).sum(-1)


_rescaled: Callable[[Tensor, Tensor], Tensor] = _Rescale.apply


def _replaced(model: nn.Module, name: str, weight: RescalableWeight) -> _RescaledLinear:
    parent, _, child = name.rpartition(".")
    linear = model.get_submodule(name)
    bias = linear.bias
    rescaled = _RescaledLinear(weight, bias if isinstance(bias, nn.Parameter) else None)
    setattr(model.get_submodule(parent), child, rescaled)
    return rescaled


def _log_probabilities(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Natural log-probabilities of the next token, positions × vocabulary, float32."""
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    return logits.flatten(0, 1).float().log_softmax(-1)
