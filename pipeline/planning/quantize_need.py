"""Predictions of the memory, disk and work of quantize, by the kind of recipe."""

from math import ceil

from pipeline.architectures.shapes import InputShape, ModelShape
from pipeline.params.gguf_variants import (
    BUDGET_BATCH_TOKENS,
    BUDGET_SAMPLES,
    GGUF_REFINE_SWEEPS,
    GgufRounding,
)
from pipeline.params.other_quantizers import BackendParams, BackendWeights
from pipeline.params.params import GgufParams, PackedVariant, Params, Rounding
from pipeline.params.variants import ALIGN_BATCH_TOKENS, ALIGN_STEP_TOKENS
from pipeline.planning.source import Source
from pipeline.planning.stage_needs import (
    ACTIVATION_COPIES,
    CONVERTER_SECONDS,
    FLOAT32,
    PROCESS_BYTES,
    START_SECONDS,
    TORCH_BYTES,
    StageNeed,
    calibrate_need,
    disk_seconds,
    gram_entries,
    inputs_of,
    variant_bytes,
)

# Copies of a layer while it is quantized: its weights, a scaled copy or integers, and a candidate
# of the searches.
LAYER_COPIES = 3
# Copies of G in GPTQ: in order, its Cholesky factor and the inverse.
GRAM_COPIES = 3
# Copies in alignment: of the inputs and outputs of linears, of the logits, and of each matrix (the
# base's and the variant's weights, gradient, residual and integers).
LINEAR_COPIES, LOGITS_COPIES, ALIGNED_COPIES = 2, 6, 5
# Copies of a matrix while its error is computed: before and after, their difference and two
# products; and in llama.cpp, which quantizes it from float32.
MATRIX_COPIES, LLAMA_CPP_COPIES = 5, 3

# Forward passes over all samples for quantized inputs: of the base, and before and after rounding.
INPUT_PASSES = 3
# Forward passes over all samples in another quantizer: about 25 in AWQ's search, fewer in GPTQ,
# more in AutoRound.
BACKEND_PASSES = 25

GRID_SEARCH_STEPS = 20
# The start of a process that runs no model.
LIGHT_START_SECONDS = 5.0
# Rounding and coordinate descent on one column: Python and small operations.
COLUMN_SECONDS = 4e-5
# Products of one layer reach half the speed of those that measure a machine, which are larger.
PRODUCT_COST = 2.0
# Operations for one weight in one step of a grid search, and in one step of alignment.
GRID_OPERATIONS, ALIGN_STEP_OPERATIONS = 60, 25_000
# Operations of llama.cpp for one weight of a K-quant with an importance matrix.
GGUF_OPERATIONS = 4000


def quantize_need(source: Source, params: Params, name: str) -> StageNeed:
    """Predict the needs of quantizing the variant `name`.

    quantline's own recipes hold one layer or one matrix in memory. Alignment and other quantizers
    hold the whole model.
    """
    recipe, stage = params.variants[name], f"quantize {name}"
    if isinstance(recipe, GgufParams):
        return _gguf_need(stage, source, params, recipe)
    if isinstance(recipe, BackendWeights):
        return _backend_need(stage, source.shape, params, recipe)
    return _packed_need(stage, source, params, recipe)


def _gguf_need(stage: str, source: Source, params: Params, recipe: GgufParams) -> StageNeed:
    """Predict the needs of a GGUF variant.

    The largest object in memory is a scaled layer, a matrix in llama.cpp, one whose error is
    computed, llama.cpp's converter with a matrix, which runs beside quantline, the quantized inputs
    of a layer, what sensitivities need, or two models in alignment.
    """
    shape = source.shape
    linears = list(inputs_of(shape))
    compared = max(MATRIX_COPIES * one.width * one.rows + one.width**2 for one in linears)
    # A GGUF file stacks the experts of a layer into three tensors.
    stacked = (
        sum(linear.num_weights for linear in layer.inputs if linear.is_expert) // 3
        for layer in shape.layers
    )
    largest = max(shape.largest_matrix, *stacked)
    holding = max(
        FLOAT32 * max(compared, LLAMA_CPP_COPIES * largest), TORCH_BYTES + 2 * FLOAT32 * largest
    )
    if recipe.scale_search:
        holding = max(holding, _layer_bytes(shape))
    full = 2 * shape.num_weights
    operations, columns = float(GGUF_OPERATIONS * shape.num_weights), 0
    for linear in linears:
        operations += 4.0 * gram_entries(linear) * linear.rows  # the errors that are reported
        if recipe.scale_search:
            operations += linear.num_copies * _scale_search_operations(linear)
        if recipe.rounding is GgufRounding.GPTQ:
            operations += linear.num_copies * _rounding_again_operations(linear)
            columns += linear.num_copies * (1 + GGUF_REFINE_SWEEPS) * linear.width
    disk_temporary = full * (2 if recipe.scale_search else 1)
    if recipe.quantized_inputs:
        inputs = _inputs_need(source, params)
        operations += inputs.operations
        holding = max(holding, inputs.gpu_memory)
        disk_temporary += inputs.disk_temporary
    if recipe.align_samples:
        operations += _aligning_operations(shape, params, recipe.align_samples)
        holding = max(holding, _aligning_bytes(shape, params))
    if recipe.budget:
        sensitivities = _sensitivities_need(source, params)
        operations += sensitivities.operations
        holding = max(holding, sensitivities.gpu_memory)
        disk_temporary += sensitivities.disk_temporary
    runs_model = recipe.quantized_inputs or recipe.align_samples or recipe.budget
    return StageNeed(
        stage,
        memory=(PROCESS_BYTES if runs_model else TORCH_BYTES) + holding,
        disk_kept=variant_bytes(shape, recipe),
        disk_temporary=disk_temporary,
        operations=operations,
        seconds=LIGHT_START_SECONDS
        + CONVERTER_SECONDS
        + 2 * disk_seconds(full)
        + columns * COLUMN_SECONDS,
    )


def _backend_need(
    stage: str, shape: ModelShape, params: Params, recipe: BackendParams
) -> StageNeed:
    """Predict the needs of another quantizer: the model in float32 and all samples' activations."""
    calibration, kept = params.calibration, variant_bytes(shape, recipe)
    tokens = calibration.num_calibration_samples * calibration.max_seq_length
    holding = FLOAT32 * (shape.num_weights + ACTIVATION_COPIES * tokens * shape.hidden_size)
    return StageNeed(
        stage,
        memory=PROCESS_BYTES + holding,
        gpu_memory=holding,
        disk_kept=kept,
        disk_temporary=FLOAT32 * shape.num_weights,
        operations=2.0 * BACKEND_PASSES * tokens * shape.num_weights,
        seconds=2 * START_SECONDS + 2 * disk_seconds(kept),
    )


def _packed_need(stage: str, source: Source, params: Params, recipe: PackedVariant) -> StageNeed:
    """Predict the needs of a packed variant: one layer in memory, or two models in alignment."""
    shape = source.shape
    kept = variant_bytes(shape, recipe)
    # Refinement and GPTQ go through the columns of a matrix one by one.
    column_passes = recipe.refine_sweeps + (recipe.rounding is Rounding.GPTQ)
    operations, columns = 0.0, 0
    for linear in inputs_of(shape):
        operations += linear.num_copies * _rounding_operations(linear, recipe)
        columns += linear.num_copies * column_passes * linear.width
    holding = _layer_bytes(shape)
    runs_model = recipe.quantized_inputs or recipe.align_samples
    start = START_SECONDS if runs_model else LIGHT_START_SECONDS
    disk_temporary = 0
    if recipe.quantized_inputs:
        inputs = _inputs_need(source, params)
        operations += inputs.operations
        holding = max(holding, inputs.gpu_memory)
        disk_temporary = inputs.disk_temporary
    if recipe.align_samples:
        operations += _aligning_operations(shape, params, recipe.align_samples)
        holding = max(holding, _aligning_bytes(shape, params))
    return StageNeed(
        stage,
        memory=(PROCESS_BYTES if runs_model else TORCH_BYTES) + holding,
        gpu_memory=holding,
        disk_kept=kept,
        disk_temporary=disk_temporary,
        operations=operations,
        seconds=start + 2 * disk_seconds(kept) + columns * COLUMN_SECONDS,
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
        reading.stage,
        memory=0,
        gpu_memory=reading.gpu_memory + 2 * FLOAT32 * moments,
        disk_kept=0,
        disk_temporary=2 * reading.disk_temporary,
        operations=INPUT_PASSES * reading.operations,
        seconds=0.0,
    )


def _layer_bytes(shape: ModelShape) -> int:
    """Return the bytes of the largest layer with the second moments of its inputs."""
    return FLOAT32 * max(
        LAYER_COPIES * layer.num_weights
        + sum(map(gram_entries, layer.inputs))
        + GRAM_COPIES * max(linear.width**2 for linear in layer.inputs)
        for layer in shape.layers
    )


def _aligning_operations(shape: ModelShape, params: Params, num_samples: int) -> float:
    """Count the operations of aligning by `num_samples` samples.

    They are a forward pass of the base; a forward and a backward pass, of twice the work, of the
    variant; and the steps.
    """
    tokens = num_samples * params.calibration.max_seq_length
    head = shape.vocab_size * shape.hidden_size
    passes = 4 * 2.0 * tokens * (shape.num_linear_weights + head)
    num_steps = ceil(tokens / ALIGN_STEP_TOKENS)
    return passes + num_steps * ALIGN_STEP_OPERATIONS * shape.num_linear_weights


def _aligning_bytes(shape: ModelShape, params: Params) -> int:
    """Return the bytes of all linears together and of one batch's activations for its gradient."""
    tokens = max(ALIGN_BATCH_TOKENS, params.calibration.max_seq_length)
    activations = moments = 0
    for linear in inputs_of(shape):
        activations += LINEAR_COPIES * linear.num_copies * (linear.width + linear.rows)
        # Second moments of the input and of the outputs; linears that share an input count as one.
        moments += linear.num_copies * (linear.width**2 + linear.rows**2)
    unquantized = shape.num_weights - shape.num_linear_weights
    matrices = ALIGNED_COPIES * shape.num_linear_weights + 2 * unquantized
    batch = tokens * (activations + LOGITS_COPIES * shape.vocab_size)
    return FLOAT32 * (matrices + moments + batch)


def _rounding_operations(linear: InputShape, recipe: PackedVariant) -> float:
    """Count the operations of the searches, GPTQ, refinement and the error that is reported."""
    product = _product_operations(linear)
    grid = GRID_OPERATIONS * linear.rows * linear.width
    operations = 2 * product
    if recipe.scale_search:
        operations += _scale_search_operations(linear)
    if recipe.clip_search:
        blocks = 2.0 * linear.rows * linear.width * (recipe.group_size or linear.width)
        operations += GRID_SEARCH_STEPS * (blocks + grid)
    if recipe.rounding is Rounding.GPTQ:
        operations += product / 2 + linear.width**3
    return operations + (1 + recipe.refine_sweeps) * product


def _rounding_again_operations(linear: InputShape) -> float:
    """Count the operations of GPTQ and refinement inside blocks, and of both errors.

    A sweep refits the scales too, by products inside of blocks.
    """
    product = _product_operations(linear)
    grid = GRID_OPERATIONS * linear.rows * linear.width
    return (
        product / 2
        + linear.width**3
        + (3 + GGUF_REFINE_SWEEPS) * product
        + (2 * GGUF_REFINE_SWEEPS * grid)
    )


def _scale_search_operations(linear: InputShape) -> float:
    grid = GRID_OPERATIONS * linear.rows * linear.width
    return GRID_SEARCH_STEPS * (_product_operations(linear) + grid)


def _product_operations(linear: InputShape) -> float:
    """Count the operations of one ΔW G."""
    return PRODUCT_COST * 2 * linear.rows * linear.width**2
