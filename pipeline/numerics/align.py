"""Alignment: change the integers of a whole model so that its output approaches the base's.

The other algorithms work on one linear at a time. They ignore how errors add up along the model,
and which outputs of a linear matter. Here the objective is that of the evaluation,

    L = mean over tokens of KL(base ‖ variant),

whose second derivative by one weight matrix is about S ⊗ G (K-FAC, Martens and Grosse, arXiv
1503.05671). G is the second moment of the linear's input. S is the second moment of the gradient at
its output, S = E[g gᵀ] over the tokens of the first step, where g is the gradient of a random
direction of the output's Fisher metric.

W are the target weights, and Ŵ the weights that the integers stand for. `two_sided` finds integers
from R = S (W − Ŵ) G. A step moves W against the gradient at the rounded model, by
η S⁻¹ (∂L/∂Ŵ) G⁻¹, which turns R into R − η ∂L/∂Ŵ, and finds integers again. So W, which is never
stored, accumulates the rounding error, as latent weights do in quantization-aware training. Grids
and tensors that are not quantized do not change. YAQA (Tseng et al., arXiv 2505.22988) rounds
towards such a Hessian once, without gradients. Both models must fit in memory whole, in float32.

benchmarks/quantizers measures the gain and the cost. These trials did not help: scales and norms
trained by Adam on the same tokens; eigenvalues of the Hessian measured one by one (EKFAC: for a
single token S ⊗ G is right; its error is that matrices repeat each other's step); momentum; a
falling step size; one layer after the other; a step that solves for all tokens of a batch at once;
S of more steps. S of the gradients of L itself did as well on babyllama and made two of three
random models worse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.errors import InputError
from pipeline.numerics.gram import dampened
from pipeline.numerics.grid import Grid
from pipeline.numerics.two_sided import descend
from pipeline.params.variants import ALIGN_BATCH_TOKENS

# As a share of the step that minimises L, by its slope and curvature along the first step. This
# is less than a hundredth of the full step, because all matrices respond to the same error.
STEP_SHARE = 1.5
# The curvature is estimated from the KL after this share of a step; of a tenth of it where that KL,
# in nats, is too large to be of second order, and so on.
TRIAL, SMALLEST_TRIAL = 0.01, 1e-7
LARGEST_TRIAL_KL = 0.1
# A token whose KL is this many times the mean has half the weight.
OUTLIER = 8.0
SMALLEST_KL = 1e-12  # smaller values are the noise of float32
# Shares of the mean diagonal that are added to the diagonals of S and G.
OUTPUT_DAMPENING, INPUT_DAMPENING = 0.3, 0.01
SEED = 0
# Weights that are moved together: for small matrices the calls cost more than the arithmetic.
STACKED_WEIGHTS = 2**20


@dataclass(frozen=True)
class AlignedLinear:
    """A quantized linear: its target weight (float32, out × in), G, its integers and grid."""

    target: Tensor
    gram: Tensor
    integers: Tensor
    grid: Grid


class _Stack:
    """Linears of one shape and kind of grid, stacked along a new first dimension; S of each."""

    def __init__(
        self, names: Sequence[str], linears: Sequence[AlignedLinear], curvatures: Sequence[Tensor]
    ) -> None:
        self.names = names
        self._grid = replace(
            linears[0].grid,
            scale=torch.cat([linear.grid.scale for linear in linears]),
            zero=torch.cat([linear.grid.zero for linear in linears]),
        )
        self.integers = torch.stack([linear.integers for linear in linears])
        self._inputs = torch.stack([dampened(linear.gram, INPUT_DAMPENING) for linear in linears])
        self._outputs = torch.stack([dampened(matrix, OUTPUT_DAMPENING) for matrix in curvatures])
        error = torch.stack([linear.target for linear in linears]).sub_(self.values)
        self._residual = self._outputs @ error @ self._inputs

    @property
    def values(self) -> Tensor:
        """The weights that the integers stand for, shaped like `integers`."""
        return self._grid.values(self.integers.flatten(0, 1)).view_as(self.integers)

    def direction(self, gradient: Tensor) -> Tensor:
        """Compute S⁻¹ (∂L/∂Ŵ) G⁻¹."""
        outputs, inputs = map(torch.linalg.cholesky, (self._outputs, self._inputs))
        half = torch.cholesky_solve(gradient, outputs)
        return torch.cholesky_solve(half.mT, inputs).mT

    def move(self, step: Tensor) -> None:
        """Subtract `step` from R and find integers for the new R."""
        self._residual.sub_(step)
        descend(
            self._residual, self.integers, self._grid, outputs=self._outputs, inputs=self._inputs
        )


class Aligner:
    """Moves the integers of linears, and with them the weights of `student`.

    `student` and `teacher` return logits for token ids. The first step empties `linears`, which has
    the linears by module name, and keeps its own copies, so that memory holds them once.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, linears: dict[str, AlignedLinear]
    ) -> None:
        self._student, self._teacher = student, teacher
        student.requires_grad_(False)
        self._weights = {
            name: student.get_parameter(f"{name}.weight").requires_grad_() for name in linears
        }
        self._linears = linears
        self._stacks: list[_Stack] = []
        self._step_size: float | None = None

    @property
    def integers(self) -> dict[str, Tensor]:
        """The integers after the last step, by module name, float32, out × in."""
        return {
            name: integers
            for stack in self._stacks
            for name, integers in zip(stack.names, stack.integers, strict=True)
        }

    def step(self, token_ids: Tensor) -> float:
        """Make one step on `token_ids` (int64, samples × tokens).

        Returns L on these tokens before the step, in nats. Raises InputError for a model whose
        gradients are not finite.
        """
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

    @torch.no_grad()
    def loss(self, token_ids: Tensor) -> float:
        """Compute L on `token_ids` with the present integers, in nats per token."""
        total = 0.0
        for batch in _batches(token_ids):
            wanted = _log_probabilities(self._teacher, batch)
            total += _kl(wanted, _log_probabilities(self._student, batch)).sum().item()
        return total / token_ids.numel()

    def _curvatures(self, token_ids: Tensor) -> dict[str, Tensor]:
        """Estimate S by module name, float32, out × out.

        Backpropagating √p ∘ ε, with random signs ε, through the log-probabilities gives the
        direction √p ∘ ε − p (√p · ε) of the logits. Its second moment is their Fisher matrix
        diag(p) − p pᵀ, and its variance is less than that of the usual p − (a sampled token).
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
            signs = torch.randint(0, 2, found.shape, generator=random, dtype=torch.int8)
            signs = signs.mul_(2).sub_(1).to(found.device)
            directions = (found.detach() / 2).exp() * signs
            gradients = torch.autograd.grad(found, list(outputs.values()), directions)
            for name, gradient in zip(outputs, gradients, strict=True):
                rows = gradient.flatten(0, -2)
                moments[name].addmm_(rows.T, rows, alpha=1 / token_ids.numel())
        for handle in handles:
            handle.remove()
        for name, moment in moments.items():
            if not moment.isfinite().all():
                raise InputError(
                    f"{name}: the gradient at its output is not finite, so the model cannot be "
                    "aligned; set align_samples to 0"
                )
        return moments

    def _backward(self, token_ids: Tensor) -> float:
        """Backpropagate the sum of the weighted KL of all tokens; return the sum without weights.

        The gradients are left in the `grad` of the student's weights.
        """
        loss = 0.0
        for batch in _batches(token_ids):
            with torch.no_grad():
                wanted = _log_probabilities(self._teacher, batch)
            by_token = _kl(wanted, _log_probabilities(self._student, batch))
            torch.autograd.backward((by_token * _token_weights(by_token.detach())).sum())
            loss += by_token.sum().item()
        return loss

    def _gradient(self, stack: _Stack) -> Tensor:
        """Collect the gradient of the sum over tokens, shaped like `stack.integers`."""
        gradients = [self._weights[name].grad for name in stack.names]
        return torch.stack([gradient for gradient in gradients if gradient is not None])

    def _measured_step_size(self, token_ids: Tensor) -> float:
        """Compute η from slope and curvature of L along the step d.

        KL(Ŵ ‖ Ŵ + ε d) is about ε² dᵀ F d / 2. The student's weights are left at Ŵ + ε d.
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
        trial = TRIAL
        by_token = _kl(before, _log_probabilities(self._student, batch))
        while not by_token.mean() < LARGEST_TRIAL_KL and trial > SMALLEST_TRIAL:
            trial /= 10
            for stack in self._stacks:
                for name, value in zip(stack.names, stack.values, strict=True):
                    self._weights[name].lerp_(value, 0.9)
            by_token = _kl(before, _log_probabilities(self._student, batch))
        curvature = 2 * float((by_token * _token_weights(by_token)).mean()) / trial**2
        return STEP_SHARE * slope / curvature if curvature > 0 else 0.0


def _stacked(linears: dict[str, AlignedLinear], curvatures: dict[str, Tensor]) -> Iterator[_Stack]:
    """Stack linears of one shape and kind of grid, up to STACKED_WEIGHTS weights in each stack.

    Empties both dicts.
    """
    names_of: dict[tuple[torch.Size, int, int, int], list[str]] = {}
    for name, linear in linears.items():
        grid = linear.grid
        kind = (linear.integers.shape, grid.group_size, grid.num_bits, grid.lowest)
        names_of.setdefault(kind, []).append(name)
    for (shape, *_), names in names_of.items():
        num_linears = max(1, STACKED_WEIGHTS // shape.numel())
        for start in range(0, len(names), num_linears):
            members = names[start : start + num_linears]
            yield _Stack(
                members,
                [linears.pop(name) for name in members],
                [curvatures.pop(name) for name in members],
            )


def _batches(token_ids: Tensor) -> Iterator[Tensor]:
    """Split samples × tokens into batches of at most ALIGN_BATCH_TOKENS tokens."""
    yield from torch.split(token_ids, max(1, ALIGN_BATCH_TOKENS // token_ids.shape[1]))


def _log_probabilities(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Compute the log-probabilities of the next token, positions × vocabulary, float32."""
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    return logits.flatten(0, 1).float().log_softmax(-1)


def _kl(wanted: Tensor, found: Tensor) -> Tensor:
    """Compute KL(wanted ‖ found) at each position from log-probabilities, in nats."""
    return functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)


def _token_weights(by_token: Tensor) -> Tensor:
    """Weight tokens by their KL, so that the few far above the mean do not dominate a step."""
    return 1 / (1 + by_token / (OUTLIER * by_token.mean()).clamp(min=SMALLEST_KL))
