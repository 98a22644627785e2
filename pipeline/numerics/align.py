"""Alignment: integers of a whole model, moved until it says what the base says.

The other algorithms look at one linear at a time and know nothing of how errors add up along the
model, nor which outputs of a linear matter. Here the objective is that of the evaluation,

    L = mean over tokens of KL(base ‖ variant),

whose second derivative by one weight matrix is about S ⊗ G (K-FAC, Martens and Grosse, arXiv
1503.05671): G the second moment of what the linear reads, S that of the gradient at what it gives,
S = E[g gᵀ] with g the gradient of a random direction of the output's Fisher metric. A step moves
the weights that the integers are to stand for against the gradient at the rounded model, by
S⁻¹ (∂L/∂Ŵ) G⁻¹, and then finds integers for them by `two_sided`. So the weights collect what
rounding loses again and again, as the latent weights of quantization-aware training do; grids and
everything that is not quantized stay. Rounding towards such a Hessian, once and without gradients,
is YAQA's (Tseng et al., arXiv 2505.22988). Needs both models whole in memory, in float32.

128 samples of 256 tokens take the KL of a 4-bit AWQ file of babyllama from 0.0151 to 0.0091
(benchmarks/quantizers). What did not help there in trials: scales and norms trained by Adam on the
same tokens, eigenvalues of the Hessian measured one by one (EKFAC: token by token S ⊗ G is right;
what it misses is that matrices repeat each other's step), momentum.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.domain.variants import ALIGN_BATCH_TOKENS
from pipeline.numerics.gptq import dampened
from pipeline.numerics.grid import Grid
from pipeline.numerics.two_sided import descend

# Of the step after which L would be least, by its slope and curvature along the first step. That
# is about a fiftieth of the whole step, as the matrices all answer to the same error.
STEP_SHARE = 1.5
# The curvature is taken from the KL that this part of a step makes.
TRIAL = 0.01
# A token whose KL is so many times the mean counts half.
OUTLIER = 8.0
SMALLEST_KL = 1e-12  # what is below it is the noise of float32
# S is measured in the first steps.
MEASURED_STEPS = 3
# Shares of the mean diagonal that are added to it, in a step and in rounding. Steps need more: a
# gradient of few tokens says little where S or G are small.
STEP_DAMPENING = {"outputs": 3.0, "inputs": 0.1}
ROUNDING_DAMPENING = {"outputs": 0.1, "inputs": 0.01}
SEED = 0


@dataclass
class AlignedLinear:
    """A quantized linear: what it is to stand for (float32, out × in), G, its integers and grid.

    `target` and `integers` move; `output_moment` is S times the number of tokens it was summed
    over.
    """

    target: Tensor
    gram: Tensor
    integers: Tensor
    grid: Grid
    output_moment: Tensor = field(init=False)

    def __post_init__(self) -> None:
        num_outputs = self.target.shape[0]
        self.output_moment = self.target.new_zeros(num_outputs, num_outputs)


class Aligner:
    """Moves the integers of `linears`, by module name, and with them the weights of `student`.

    `student` and `teacher` give logits for token ids.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, linears: Mapping[str, AlignedLinear]
    ) -> None:
        self._student, self._teacher, self._linears = student, teacher, linears
        student.requires_grad_(False)
        self._weights = {name: _weight(student, name).requires_grad_() for name in linears}
        self._random = torch.Generator().manual_seed(SEED)
        self._measured_steps = self._measured_tokens = 0
        self._step_size: float | None = None

    def step(self, token_ids: Tensor) -> float:
        """One step on `token_ids`, samples × tokens; returns L on them before it, in nats."""
        measures = self._measured_steps < MEASURED_STEPS
        loss = 0.0
        for batch in torch.split(token_ids, max(1, ALIGN_BATCH_TOKENS // token_ids.shape[1])):
            loss += self._backward(batch, measures=measures)
        if measures:
            self._measured_steps += 1
            self._measured_tokens += token_ids.numel()
        with torch.no_grad():
            steps = {name: self._direction(name, token_ids.numel()) for name in self._linears}
            if self._step_size is None:
                self._step_size = self._measured_step_size(token_ids, steps)
            for name, linear in self._linears.items():
                linear.target.sub_(steps.pop(name), alpha=self._step_size)
                self._round(linear, name)
        return loss / token_ids.numel()

    def _backward(self, token_ids: Tensor, *, measures: bool) -> float:
        """Adds the gradient of the summed KL, and to S where it `measures`; returns the sum."""
        with torch.no_grad():
            wanted = _logits(self._teacher, token_ids).log_softmax(-1)
        with self._outputs(token_ids, measures=measures) as outputs:
            logits = _logits(self._student, token_ids)
        if measures:
            directions = _fisher_direction(logits.detach().softmax(-1), self._random)
            gradients = torch.autograd.grad(
                logits, list(outputs.values()), directions, retain_graph=True
            )
            for name, gradient in zip(outputs, gradients, strict=True):
                rows = gradient.flatten(0, -2)
                self._linears[name].output_moment.addmm_(rows.T, rows)
        found = logits.log_softmax(-1)
        by_token = _kl(wanted, found)
        torch.autograd.backward((by_token * _tempered(by_token.detach())).sum())
        return by_token.sum().item()

    @contextmanager
    def _outputs(self, token_ids: Tensor, *, measures: bool) -> Iterator[dict[str, Tensor]]:
        """What each linear gives, filled while the student runs, where it `measures`."""
        outputs: dict[str, Tensor] = {}
        handles = [
            self._student.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: outputs.update({name: output})
            )
            for name in (self._linears if measures else ())
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def _moment(self, name: str) -> Tensor:
        return self._linears[name].output_moment / self._measured_tokens

    def _direction(self, name: str, num_tokens: int) -> Tensor:
        """S⁻¹ (∂L/∂Ŵ) G⁻¹; the gradient is left as that of the mean."""
        gradient = self._weights[name].grad
        assert gradient is not None
        gradient.div_(num_tokens)
        half = _solved(self._moment(name), STEP_DAMPENING["outputs"], gradient)
        return _solved(self._linears[name].gram, STEP_DAMPENING["inputs"], half.T).T

    def _measured_step_size(self, token_ids: Tensor, steps: Mapping[str, Tensor]) -> float:
        """From slope and curvature of L along the step: KL(Ŵ ‖ Ŵ + ε d) is about ε² dᵀ F d / 2."""
        batch = token_ids[: max(1, ALIGN_BATCH_TOKENS // token_ids.shape[1])]
        before = _logits(self._student, batch).log_softmax(-1)
        slope = 0.0
        for name, weight in self._weights.items():
            assert weight.grad is not None
            slope += float((weight.grad * steps[name]).sum())
            weight.sub_(steps[name], alpha=TRIAL)
        after = _logits(self._student, batch).log_softmax(-1)
        by_token = _kl(before, after)
        curvature = 2 * float((by_token * _tempered(by_token)).mean()) / TRIAL**2
        return STEP_SHARE * slope / curvature if curvature > 0 else 0.0

    def _round(self, linear: AlignedLinear, name: str) -> None:
        linear.integers = descend(
            linear.target,
            linear.integers,
            linear.grid,
            outputs=dampened(self._moment(name), ROUNDING_DAMPENING["outputs"]),
            inputs=dampened(linear.gram, ROUNDING_DAMPENING["inputs"]),
        )
        weight = self._weights[name]
        weight.copy_(linear.grid.values(linear.integers))
        weight.grad = None


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _logits(model: nn.Module, token_ids: Tensor) -> Tensor:
    """Positions × vocabulary, float32."""
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    return logits.flatten(0, 1).float()


def _fisher_direction(probabilities: Tensor, random: torch.Generator) -> Tensor:
    """Random rows whose second moment is the Fisher matrix diag(p) − p pᵀ of each row of logits.

    With signs ε it is √p ∘ ε − p (√p · ε), which varies less than the usual p − (a drawn token).
    """
    signs = torch.randint(0, 2, probabilities.shape, generator=random, dtype=torch.int8)
    drawn = probabilities.sqrt() * (2 * signs - 1).to(probabilities.device)
    return drawn - probabilities * drawn.sum(-1, keepdim=True)


def _kl(wanted: Tensor, found: Tensor) -> Tensor:
    """KL by position of two distributions, given as log-probabilities."""
    return functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)


def _tempered(by_token: Tensor) -> Tensor:
    """Weights of tokens, so that the few with far more KL than the mean do not rule a step."""
    return 1 / (1 + by_token / (OUTLIER * by_token.mean()).clamp(min=SMALLEST_KL))


def _solved(moment: Tensor, dampening_frac: float, right: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(dampened(moment, dampening_frac))
    return torch.cholesky_solve(right, factor)
