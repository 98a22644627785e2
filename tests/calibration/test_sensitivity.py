"""Sensitivities: the predicted KL of a small error is the real one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.calibration.sensitivity import Sensitivities, measure_sensitivities
from pipeline.calibration.statistics import HEAD, Statistics
from pipeline.checkpoint.unpacked_model import unpacked_model
from tests.architecture_models import calibrated_model, token_windows

CPU = torch.device("cpu")
NAMES = ["llama", "gemma2"]  # tied embeddings; scaled embeddings, capped logits, several norms
ERROR = 1e-3  # of the norm of a matrix: small enough for the second order


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_predicted_kl_of_random_errors_is_the_real_one(tmp_path: Path, name: str) -> None:
    """Of each linear, and of embeddings and head together: of the right size, and in order.

    A metric of single tokens does not see that attention adds up the errors of v_proj over tokens,
    which in a random model, whose attention is flat, are alike.
    """
    workspace = calibrated_model(tmp_path, name, samples=48)
    windows = token_windows(samples=48)
    found = measure_sensitivities(workspace.base_dir, windows, CPU, tmp_path / "work")
    statistics = Statistics(workspace)
    ids = torch.tensor(windows)
    model = unpacked_model(workspace.base_dir)
    base = log_probabilities(model, ids)
    random = torch.Generator().manual_seed(0)
    predicted, real = {}, {}
    for linear in statistics.linears:
        weight = model.get_parameter(f"{linear}.weight")
        change = error_of(weight.detach(), random)
        of_rows = ((change @ statistics.gram(linear)) * change).sum(1)
        predicted[linear] = float((found.linears[linear] * of_rows).sum()) / 2
        real[linear] = kl_with(model, {weight: change}, base, ids)
    head_gram = statistics.gram(HEAD)
    predicted["vocabulary"], changes = vocabulary_loss(model, found, head_gram, random)
    real["vocabulary"] = kl_with(model, changes, base, ids)
    ratios = {linear: predicted[linear] / real[linear] for linear in predicted}
    assert all(0.3 < ratio < 1.6 for ratio in ratios.values()), ratios
    order = sorted(predicted, key=lambda linear: predicted[linear])
    assert spearman([real[linear] for linear in order]) > 0.9


def error_of(weight: Tensor, random: torch.Generator) -> Tensor:
    change = torch.randn(weight.shape, generator=random)
    return change * (ERROR * weight.norm() / change.norm())


def vocabulary_loss(
    model: nn.Module, found: Sensitivities, head_gram: Tensor, random: torch.Generator
) -> tuple[float, dict[Tensor, Tensor]]:
    """The predicted loss of errors in embeddings and head, which may be one matrix."""
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    changes = {matrix: error_of(matrix, random) for matrix in (embeddings, head)}
    changes[embeddings][found.token_share == 0] = 0
    looked_up = found.token_share @ changes[embeddings].square() @ found.embedding
    of_rows = ((changes[head] @ head_gram) * changes[head]).sum(1)
    return float(looked_up + found.head @ of_rows) / 2, changes


def kl_with(model: nn.Module, changes: dict[Tensor, Tensor], base: Tensor, ids: Tensor) -> float:
    with torch.no_grad():
        before = {weight: weight.clone() for weight in changes}
        for weight, change in changes.items():
            weight.add_(change)
        changed = log_probabilities(model, ids)
        for weight, value in before.items():
            weight.copy_(value)
    return float((base.exp() * (base - changed)).sum(-1).mean())


def log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits.double().log_softmax(-1)


def spearman(in_predicted_order: list[float]) -> float:
    """The rank correlation of numbers with their own places."""
    ranks = torch.tensor(in_predicted_order).argsort().argsort().double()
    return float(torch.corrcoef(torch.stack([ranks, torch.arange(len(ranks)).double()]))[0, 1])
