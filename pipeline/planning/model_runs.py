"""Predictions of what a recipe adds to quantize where it runs the model.

Quantized inputs, alignment and budgets do so. Memory is that beside the process.
"""

from math import ceil

from pipeline.architectures.shapes import ModelShape
from pipeline.params.gguf_variants import BUDGET_BATCH_TOKENS, BUDGET_SAMPLES
from pipeline.params.params import GgufParams, PackedVariant, Params
from pipeline.params.variants import ALIGN_BATCH_TOKENS, ALIGN_STEP_TOKENS, CompressedTensorsParams
from pipeline.planning.source import Source
from pipeline.planning.stage_needs import (
    FLOAT32,
    StageNeed,
    calibrate_need,
    gram_entries,
    inputs_of,
)

# Copies in alignment: of the inputs and outputs of linears, of the logits, and of each matrix (the
# base's and the variant's weights, gradient, residual and integers).
LINEAR_COPIES, LOGITS_COPIES, ALIGNED_COPIES = 2, 6, 5
# Forward passes over all samples for quantized inputs: of the base, and before and after rounding.
INPUT_PASSES = 3
# Operations for one weight in one step of alignment.
ALIGN_STEP_OPERATIONS = 25_000


def has_budget(recipe: PackedVariant | GgufParams) -> bool:
    """Tell whether a budget decides the bits of each matrix."""
    return isinstance(recipe, GgufParams | CompressedTensorsParams) and recipe.budget is not None


def runs_need(source: Source, params: Params, recipe: PackedVariant | GgufParams) -> StageNeed:
    """Predict what the runs of the model for a recipe need; nothing where it has none."""
    needs = [StageNeed("no run")]
    if recipe.quantized_inputs:
        needs.append(_inputs_need(source, params))
    if recipe.align_samples:
        needs.append(_aligning_need(source.shape, params, recipe.align_samples))
    if has_budget(recipe):
        needs.append(_sensitivities_need(source, params))
    return StageNeed(
        "runs",
        gpu_memory=max(need.gpu_memory for need in needs),
        disk_temporary=max(need.disk_temporary for need in needs),
        operations=sum(need.operations for need in needs),
    )


def _sensitivities_need(source: Source, params: Params) -> StageNeed:
    """Predict what a budget adds: two passes forward and one backward, of twice the work.

    The head with a batch of logits, or a layer with the activations for its gradient, is in memory.
    States and gradients of all layers are on disk. Each matrix is rounded to every type in part.
    """
    shape, length = source.shape, params.calibration.max_seq_length
    tokens = BUDGET_SAMPLES * length
    head = shape.vocab_size * shape.hidden_size
    batch = max(BUDGET_BATCH_TOKENS, length)
    activations = max(
        sum(LINEAR_COPIES * (linear.width + linear.rows) for linear in layer.inputs)
        for layer in shape.layers
    )
    holding = FLOAT32 * max(
        head + batch * LOGITS_COPIES * shape.vocab_size,
        max(layer.num_weights for layer in shape.layers) + batch * activations,
    )
    return StageNeed(
        "sensitivities",
        gpu_memory=holding,
        disk_temporary=2 * FLOAT32 * tokens * shape.hidden_size * (len(shape.layers) + 1),
        operations=4 * 2.0 * tokens * (shape.num_linear_weights + head),
    )


def _inputs_need(source: Source, params: Params) -> StageNeed:
    """Predict what measuring quantized inputs adds: passes, moments of a layer, and states."""
    reading = calibrate_need(source, params)
    moments = max(sum(map(gram_entries, layer.inputs)) for layer in source.shape.layers)
    return StageNeed(
        "inputs",
        gpu_memory=reading.gpu_memory + 2 * FLOAT32 * moments,
        disk_temporary=2 * reading.disk_temporary,
        operations=INPUT_PASSES * reading.operations,
    )


def _aligning_need(shape: ModelShape, params: Params, num_samples: int) -> StageNeed:
    """Predict what aligning by `num_samples` samples adds.

    The work is a forward pass of the base; a forward and a backward pass, of twice the work, of the
    variant; and the steps. All linears and one batch's activations for its gradient are in memory.
    """
    length = params.calibration.max_seq_length
    batch_tokens = max(ALIGN_BATCH_TOKENS, length)
    activations = moments = 0
    for linear in inputs_of(shape):
        activations += LINEAR_COPIES * linear.num_copies * (linear.width + linear.rows)
        # Second moments of the input and of the outputs; linears that share an input count as one.
        moments += linear.num_copies * (linear.width**2 + linear.rows**2)
    unquantized = shape.num_weights - shape.num_linear_weights
    matrices = ALIGNED_COPIES * shape.num_linear_weights + 2 * unquantized
    batch = batch_tokens * (activations + LOGITS_COPIES * shape.vocab_size)
    head = shape.vocab_size * shape.hidden_size
    passes = 4 * 2.0 * num_samples * length * (shape.num_linear_weights + head)
    num_steps = ceil(num_samples * length / ALIGN_STEP_TOKENS)
    return StageNeed(
        "alignment",
        gpu_memory=FLOAT32 * (matrices + moments + batch),
        operations=passes + num_steps * ALIGN_STEP_OPERATIONS * shape.num_linear_weights,
    )
