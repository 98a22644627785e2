"""Alignment: integers of a whole model, moved until it says what the base says.

The other algorithms look at one linear at a time and know nothing of how errors add up along the
model, nor which outputs of a linear matter. Here the objective is that of the evaluation,

    L = mean over tokens of KL(base ‖ variant),

whose second derivative by one weight matrix is about S ⊗ G (K-FAC, Martens and Grosse, arXiv
1503.05671): G the second moment of what the linear reads, S that of the gradient at what it gives,
S = E[g gᵀ] with g the gradient of a random direction of the output's Fisher metric, over the tokens
of the first step.

W being the weights that the integers are to stand for and Ŵ what they stand for, `two_sided` finds
integers by R = S (W − Ŵ) G. A step moves W against the gradient at the rounded model, by
η S⁻¹ (∂L/∂Ŵ) G⁻¹, which is R − η ∂L/∂Ŵ, and finds integers again. So W, which is never needed
itself, collects what rounding loses again and again, as the latent weights of quantization-aware
training do; grids and everything that is not quantized stay. Rounding towards such a Hessian, once
and without gradients, is YAQA's (Tseng et al., arXiv 2505.22988). Needs both models whole in
memory, in float32.

What it gains and costs is measured in benchmarks/quantizers. What did not help in trials: scales
and norms trained by Adam on the same tokens, eigenvalues of the Hessian measured one by one (EKFAC:
token by token S ⊗ G is right; what it misses is that matrices repeat each other's step), momentum,
steps that fall, layers in turn, a step that solves for all tokens of a batch at once, S of more
steps. S of the gradients of L itself did as well on babyllama and made two of three random models
worse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.numerics.gptq import dampened
from pipeline.numerics.grid import Grid
from pipeline.numerics.two_sided import descend
from pipeline.params.variants import ALIGN_BATCH_TOKENS

# Of the step after which L would be least, by its slope and curvature along the first step. That
# is less than a hundredth of the whole step, as the matrices all answer to the same error.
STEP_SHARE = 1.5
# The curvature is taken from the KL that this part of a step makes.
TRIAL = 0.01
# A token whose KL is so many times the mean counts half.
OUTLIER = 8.0
SMALLEST_KL = 1e-12  # what is below it is the noise of float32
# Shares of the mean diagonal that are added to S and G.
OUTPUT_DAMPENING, INPUT_DAMPENING = 0.3, 0.01
SEED = 0
# So many weights are moved together: a small matrix costs little more than the calls for it.
STACKED_WEIGHTS = 2**20


@dataclass(frozen=True)
class AlignedLinear:
    """A quantized linear: what it is to stand for (float32, out × in), G, its integers and grid."""

    target: Tensor
    gram: Tensor
    integers: Tensor
    grid: Grid


class _Stack:
    """Linears of one shape and group size, one behind the other, with S of each."""

    def __init__(
        self, names: Sequence[str], linears: Sequence[AlignedLinear], curvatures: Sequence[Tensor]
    ) -> None:
        first = linears[0].grid
        self.names = names
        self._grid = Grid(
            scale=torch.cat([it.grid.scale for it in linears]),
            zero=torch.cat([it.grid.zero for it in linears]),
            num_bits=first.num_bits,
            group_size=first.group_size,
        )
        self.integers = torch.stack([it.integers for it in linears])
        self._inputs = torch.stack([dampened(it.gram, INPUT_DAMPENING) for it in linears])
        self._outputs = torch.stack([dampened(it, OUTPUT_DAMPENING) for it in curvatures])
        error = torch.stack([it.target for it in linears]).sub_(self.values)
        self._residual = self._outputs @ error @ self._inputs

    @property
    def values(self) -> Tensor:
        """What the integers stand for, like `integers`."""
        return self._grid.values(self.integers.flatten(0, 1)).view_as(self.integers)

    def direction(self, gradient: Tensor) -> Tensor:
        """S⁻¹ (∂L/∂Ŵ) G⁻¹."""
        outputs, inputs = (torch.linalg.cholesky(it) for it in (self._outputs, self._inputs))
        half = torch.cholesky_solve(gradient, outputs)
        return torch.cholesky_solve(half.mT, inputs).mT

    def move(self, step: Tensor) -> None:
        """Take `step` from R and find integers for it."""
        self._residual.sub_(step)
        descend(
            self._residual, self.integers, self._grid, outputs=self._outputs, inputs=self._inputs
        )


class Aligner:
    """Moves the integers of linears, and with them the weights of `student`.

    `student` and `teacher` give logits for token ids. `linears`, by module name, is emptied by the
    first step: what is worked with takes its place in memory.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, linears: dict[str, AlignedLinear]
    ) -> None:
        self._student, self._teacher = student, teacher
        student.requires_grad_(False)
        self._weights = {name: _weight(student, name).requires_grad_() for name in linears}
        self._linears = linears
        self._stacks: list[_Stack] = []
        self._step_size: float | None = None

    @property
    def integers(self) -> dict[str, Tensor]:
        """After a step: by module name, float32, out × in."""
        return {
            name: integers
            for stack in self._stacks
            for name, integers in zip(stack.names, stack.integers, strict=True)
        }

    def step(self, token_ids: Tensor) -> float:
        """One step on `token_ids`, samples × tokens; returns L on them before it, in nats."""
        if not self._stacks:
            self._stacks = list(_stacked(self._linears, self._curvatures(token_ids)))
        loss = self._backward(token_ids)
        with torch.no_grad():
            if self._step_size is None:
                self._step_size = self._measured_step_size(token_ids)
            for stack in self._stacks:
                stack.move(self._gradient(stack).mul_(self._step_size / token_ids.numel()))
                for name, value in zip(stack.names, stack.values, strict=True):
                    self._weights[name].copy_(value)
                    self._weights[name].grad = None
        return loss / token_ids.numel()

    def _curvatures(self, token_ids: Tensor) -> dict[str, Tensor]:
        """S by module name.

        √p ∘ ε with signs ε, led back through the log-probabilities, is the direction
        √p ∘ ε − p (√p · ε) of the logits. Its second moment is their Fisher matrix diag(p) − p pᵀ,
        and it varies less than the usual p − (a drawn token).
        """
        moments = {
            name: weight.new_zeros(len(weight), len(weight))
            for name, weight in self._weights.items()
        }
        handles = [
            self._student.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: outputs.update({name: output})
            )
            for name in self._weights
        ]
        random = torch.Generator().manual_seed(SEED)
        for batch in _batches(token_ids):
            outputs: dict[str, Tensor] = {}
            found = _log_probabilities(self._student, batch)
            signs = _signs(found.shape, random).to(found.device)
            directions = (found.detach() / 2).exp() * signs
            gradients = torch.autograd.grad(found, list(outputs.values()), directions)
            for name, gradient in zip(outputs, gradients, strict=True):
                rows = gradient.flatten(0, -2)
                moments[name].addmm_(rows.T, rows, alpha=1 / token_ids.numel())
        for handle in handles:
            handle.remove()
        return moments

    def _backward(self, token_ids: Tensor) -> float:
        """Leave the gradient of the sum of the KL of all tokens; returns that sum."""
        loss = 0.0
        for batch in _batches(token_ids):
            with torch.no_grad():
                wanted = _log_probabilities(self._teacher, batch)
            by_token = _kl(wanted, _log_probabilities(self._student, batch))
            torch.autograd.backward((by_token * _tempered(by_token.detach())).sum())
            loss += by_token.sum().item()
        return loss

    def _gradient(self, stack: _Stack) -> Tensor:
        """Of the sum over tokens; like `stack.integers`."""
        gradients = [self._weights[name].grad for name in stack.names]
        return torch.stack([it for it in gradients if it is not None])

    def _measured_step_size(self, token_ids: Tensor) -> float:
        """From slope and curvature of L along the step: KL(Ŵ ‖ Ŵ + ε d) is about ε² dᵀ F d / 2.

        Leaves the student a little way along the step.
        """
        batch = next(_batches(token_ids))
        before = _log_probabilities(self._student, batch)
        slope = 0.0
        for stack in self._stacks:
            gradient = self._gradient(stack).div_(token_ids.numel())
            direction = stack.direction(gradient)
            slope += float((gradient * direction).sum())
            for name, step in zip(stack.names, direction, strict=True):
                self._weights[name].sub_(step, alpha=TRIAL)
        by_token = _kl(before, _log_probabilities(self._student, batch))
        curvature = 2 * float((by_token * _tempered(by_token)).mean()) / TRIAL**2
        return STEP_SHARE * slope / curvature if curvature > 0 else 0.0


def _stacked(linears: dict[str, AlignedLinear], curvatures: dict[str, Tensor]) -> Iterator[_Stack]:
    """What is alike goes together, up to a size. Empties both."""
    alike: dict[tuple[torch.Size, int], list[str]] = {}
    for name, linear in linears.items():
        alike.setdefault((linear.integers.shape, linear.grid.group_size), []).append(name)
    for (shape, _), names in alike.items():
        height = max(1, STACKED_WEIGHTS // shape.numel())
        for start in range(0, len(names), height):
            some = names[start : start + height]
            yield _Stack(
                some, [linears.pop(it) for it in some], [curvatures.pop(it) for it in some]
            )


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _batches(token_ids: Tensor) -> Iterator[Tensor]:
    yield from torch.split(token_ids, max(1, ALIGN_BATCH_TOKENS // token_ids.shape[1]))


def _log_probabilities(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Positions × vocabulary, float32."""
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    return logits.flatten(0, 1).float().log_softmax(-1)


def _signs(shape: torch.Size, random: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=random, dtype=torch.int8).mul_(2).sub_(1)


def _kl(wanted: Tensor, found: Tensor) -> Tensor:
    """KL by position of two distributions, given as log-probabilities."""
    return functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)


def _tempered(by_token: Tensor) -> Tensor:
    """Weights of tokens, so that the few with far more KL than the mean do not rule a step."""
    return 1 / (1 + by_token / (OUTLIER * by_token.mean()).clamp(min=SMALLEST_KL))
