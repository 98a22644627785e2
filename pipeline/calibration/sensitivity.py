"""Measure how sensitive the output of a model is to errors of each weight matrix.

To second order, the KL of a variant is half of the mean of δᵀ F δ over tokens, with δ the change of
the logits and F = diag(p) − p pᵀ the Fisher matrix of the base's probabilities p. For a change ΔW
of one linear that is tr(S ΔW G ΔWᵀ) / 2, with G the second moment of its input and S = E[g gᵀ] of
the gradient g at its output, which a random direction of F gives: √p ∘ ε − p (√p · ε) (K-FAC,
Martens and Grosse, arXiv 1503.05671; as in `pipeline.numerics.align`). Only the diagonal of S is
measured.

The gradients come from one backward pass, layer by layer, with one decoder layer in memory. The
states that enter each layer, and the gradients that leave it, are on disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.activations import linear_modules
from pipeline.calibration.hidden_states import HiddenStates, token_batches
from pipeline.checkpoint.layered_model import LayeredModel, LayerModule
from pipeline.core.errors import InputError
from pipeline.core.progress import track
from pipeline.params.gguf_variants import BUDGET_BATCH_TOKENS

SEED = 0


@dataclass(frozen=True)
class Sensitivities:
    """The sensitivities of all matrices of a model, float32, in nats per squared change.

    `linears` has the diagonal of S of each linear by name, out_features, and `head` is that of the
    output head, vocabulary. `embedding` is the mean square of the gradient at each column of the
    embeddings, hidden, and `token_share` is how often each row is looked up, vocabulary.
    """

    linears: Mapping[str, Tensor]
    head: Tensor
    embedding: Tensor
    token_share: Tensor


def measure_sensitivities(
    model_dir: Path, windows: Sequence[Sequence[int]], device: torch.device, work_dir: Path
) -> Sensitivities:
    """Run the model of `model_dir` forward and backward on `windows` of token ids, equally long.

    `work_dir` gets the states and gradients; the caller removes it. Raises InputError for an
    architecture that cannot be run layer by layer, and for gradients that are not finite.
    """
    batches = token_batches(windows, num_tokens=BUDGET_BATCH_TOKENS)
    num_tokens = sum(batch.numel() for batch in batches)
    model = LayeredModel(model_dir, device)
    num_layers = len(model.layers)
    states, gradients = (
        HiddenStates(work_dir / name, batches, num_layers=num_layers + 1)
        for name in ("states", "gradients")
    )
    with torch.no_grad():
        states.write(0, map(model.embed, batches))
        for index in range(num_layers):
            with model.loaded(index):
                states.write(index + 1, (model.run(index, it) for it in states.read(index)))
    head = _Head(model, num_tokens)
    with model.head_loaded():
        gradients.write(num_layers, map(head.gradient, states.read(num_layers)))
    linears: dict[str, Tensor] = {}
    layers = track(reversed(range(num_layers)), "sensitivities", total=num_layers)
    for index in layers:
        with model.loaded(index) as layer, _recorded_outputs(layer) as outputs:
            pairs = zip(states.read(index), gradients.read(index + 1), strict=True)
            gradients.write(
                index,
                (
                    _backward(model, index, state, gradient, outputs, linears)
                    for state, gradient in pairs
                ),
            )
        states.drop(index + 1)
        gradients.drop(index + 1)
    table = model.embedding_table
    embedding = torch.zeros(table.shape[1])
    for ids, state, gradient in zip(batches, states.read(0), gradients.read(0), strict=True):
        scale = state.norm() / table[ids].float().norm()  # some models multiply what they look up
        embedding += gradient.flatten(0, -2).mul_(scale).square_().sum(0)
    ids = torch.cat([batch.flatten() for batch in batches])
    found = Sensitivities(
        linears={name: squares.cpu() / num_tokens for name, squares in linears.items()},
        head=head.sensitivity.cpu(),
        embedding=embedding / num_tokens,
        token_share=torch.bincount(ids, minlength=len(table)) / num_tokens,
    )
    for name, values in {**found.linears, "the embeddings": found.embedding}.items():
        if not values.isfinite().all():
            raise InputError(
                f"{name}: the gradient at its output is not finite, so bits cannot be assigned by "
                "sensitivity; state a type instead of a budget"
            )
    return found


class _Head:
    """The final norm and the output head: what they are sensitive to, and their gradients."""

    def __init__(self, model: LayeredModel, num_tokens: int) -> None:
        self._model, self._num_tokens = model, num_tokens
        self._random = torch.Generator().manual_seed(SEED)
        self.sensitivity = torch.zeros(())  # until the vocabulary is known

    def gradient(self, states: Tensor) -> Tensor:
        """Compute the gradient at states that leave the last layer, for one direction of F."""
        states = states.to(self._model.device).requires_grad_()
        logits = self._model.logits(states)
        log_probabilities = logits.flatten(0, 1).float().log_softmax(-1)
        probabilities = log_probabilities.detach().exp()
        variance = probabilities.mul(1 - probabilities).sum(0) / self._num_tokens
        self.sensitivity = self.sensitivity.to(variance.device) + variance
        signs = torch.randint(0, 2, logits.shape, generator=self._random, dtype=torch.int8)
        signs = signs.flatten(0, 1).mul_(2).sub_(1).to(probabilities.device)
        directions = probabilities.sqrt_().mul_(signs)
        (gradient,) = torch.autograd.grad(log_probabilities, states, directions)
        return gradient


def _backward(
    model: LayeredModel,
    index: int,
    states: Tensor,
    gradient: Tensor,
    outputs: dict[str, Tensor],
    squares: dict[str, Tensor],
) -> Tensor:
    """Backpropagate through layer `index`; return the gradient at the states that enter it.

    Adds the squares of the gradients at the outputs of linears, out_features, to `squares`.
    """
    states = states.to(model.device).requires_grad_()
    made = model.run(index, states)
    names = list(outputs)
    below, *at_outputs = torch.autograd.grad(
        made, [states, *outputs.values()], gradient.to(model.device)
    )
    outputs.clear()
    for name, rows in zip(names, at_outputs, strict=True):
        of_batch = rows.flatten(0, -2).square().sum(0)
        squares[name] = squares[name] + of_batch if name in squares else of_batch
    return below


@contextmanager
def _recorded_outputs(layer: LayerModule) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the layer's linears, by name, while the block runs the layer."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _, __, output, name=names[0]: outputs.update({name: output})
        )
        for module, names in linear_modules(layer)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
