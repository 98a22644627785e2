"""Predict what quantize holds and computes, by the kind of recipe."""

from math import ceil

from pipeline.architectures.shapes import InputShape, LayerShape, ModelShape
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
    StageNeed,
    calibrate_need,
    gram_entries,
    inputs_of,
    moving_seconds,
    variant_bytes,
)

# Quantizing a layer keeps its weights, a scaled copy or integers, and what searches try.
LAYER_COPIES = 3
# The feedback of GPTQ takes G in order, its Cholesky factor and the inverse.
GRAM_COPIES = 3
# Alignment keeps so many copies of what linears read and give, and of the logits; and of each
# matrix the base's and the variant's weights, gradient, residual and integers.
LINEAR_COPIES, LOGITS_COPIES, ALIGNED_COPIES = 2, 6, 5
# Comparing a matrix with what it became keeps both, their difference and two products; llama.cpp
# keeps one that it quantizes in float32, and what becomes of it.
MATRIX_COPIES, LLAMA_CPP_COPIES = 5, 3

# Forward passes over all samples for quantized inputs: of the base, and before and after rounding.
INPUT_PASSES = 3
# Forward passes over all samples that another quantizer makes: of AWQ's search about so many, GPTQ
# fewer, AutoRound more.
BACKEND_PASSES = 25

GRID_SEARCH_STEPS = 20
# Without what runs a model.
LIGHT_START_SECONDS = 3.0
# Rounding and descent go column by column: Python and small operations, in seconds a column.
COLUMN_SECONDS = 4e-5
# The work on one weight of a grid that is tried, and of a step of alignment, in operations.
GRID_OPERATIONS, ALIGN_STEP_OPERATIONS = 60, 25_000
# What llama.cpp does for one weight of a K-quant with an importance matrix.
GGUF_OPERATIONS = 4000


def quantize_need(source: Source, params: Params, name: str) -> StageNeed:
    """Of one variant: native ones hold a layer or a matrix; aligning and backends the model."""
    recipe, stage = params.variants[name], f"quantize {name}"
    if isinstance(recipe, GgufParams):
        return _gguf_need(stage, source.shape, recipe)
    if isinstance(recipe, BackendWeights):
        return _backend_need(stage, source.shape, params, recipe)
    return _packed_need(stage, source, params, recipe)


def _gguf_need(stage: str, shape: ModelShape, recipe: GgufParams) -> StageNeed:
    """The scaled layer, llama.cpp's matrix or the compared one; a converter runs beside them."""
    compared = max(MATRIX_COPIES * it.width * it.rows + it.width**2 for it in inputs_of(shape))
    largest = max(shape.largest_matrix, *(_stacked_experts(it) for it in shape.layers))
    holding = FLOAT32 * max(compared, LLAMA_CPP_COPIES * largest)
    if recipe.scale_search:
        holding = max(holding, _layer_bytes(shape))
    full = 2 * shape.num_weights
    errors = sum(4.0 * gram_entries(it) * it.rows for it in inputs_of(shape))
    return StageNeed(
        stage,
        memory=2 * PROCESS_BYTES + holding,
        disk_kept=variant_bytes(shape, recipe),
        disk_temporary=full * (2 if recipe.scale_search else 1),
        operations=GGUF_OPERATIONS * shape.num_weights + errors,
        seconds=LIGHT_START_SECONDS + CONVERTER_SECONDS + 2 * moving_seconds(full),
    )


def _stacked_experts(layer: LayerShape) -> int:
    """Weights of one of the three tensors that a GGUF file makes of a layer's experts."""
    return sum(it.num_weights for it in layer.inputs if it.is_expert) // 3


def _backend_need(
    stage: str, shape: ModelShape, params: Params, recipe: BackendParams
) -> StageNeed:
    """The whole model in float32 and the activations of all samples."""
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
        seconds=2 * START_SECONDS + 2 * moving_seconds(kept),
    )


def _packed_need(stage: str, source: Source, params: Params, recipe: PackedVariant) -> StageNeed:
    """One layer; two models where the recipe aligns."""
    shape = source.shape
    kept = variant_bytes(shape, recipe)
    operations, columns = 0.0, 0
    for it in inputs_of(shape):
        operations += it.num_copies * _rounding_operations(it, recipe)
        columns += it.num_copies * _rounding_columns(it, recipe)
    holding = _layer_bytes(shape)
    runs_model = recipe.quantized_inputs or recipe.align_samples
    start = START_SECONDS if runs_model else LIGHT_START_SECONDS
    reading = calibrate_need(source, params)
    if recipe.quantized_inputs:
        operations += INPUT_PASSES * reading.operations
        holding = max(holding, reading.gpu_memory + 2 * _moments_bytes(shape))
    if recipe.align_samples:
        operations += _aligning_operations(shape, recipe.align_samples, params)
        holding = max(holding, _aligning_bytes(shape, params))
    return StageNeed(
        stage,
        memory=PROCESS_BYTES + holding,
        gpu_memory=holding,
        disk_kept=kept,
        disk_temporary=2 * reading.disk_temporary if recipe.quantized_inputs else 0,
        operations=operations,
        seconds=start + 2 * moving_seconds(kept) + columns * COLUMN_SECONDS,
    )


def _layer_bytes(shape: ModelShape) -> int:
    """The largest layer with the second moments of its inputs."""
    return FLOAT32 * max(
        LAYER_COPIES * layer.num_weights
        + sum(map(gram_entries, layer.inputs))
        + GRAM_COPIES * max(it.width**2 for it in layer.inputs)
        for layer in shape.layers
    )


def _moments_bytes(shape: ModelShape) -> int:
    """One matrix for each input of the layer with the largest ones."""
    return FLOAT32 * max(sum(map(gram_entries, layer.inputs)) for layer in shape.layers)


def _aligning_bytes(shape: ModelShape, params: Params) -> int:
    """Everything of every linear at once, and what one batch keeps for the way back."""
    tokens = max(ALIGN_BATCH_TOKENS, params.calibration.max_seq_length)
    inputs = list(inputs_of(shape))
    activations = LINEAR_COPIES * sum(it.num_copies * (it.width + it.rows) for it in inputs)
    # Of inputs, and of outputs as if linears that share an input were one.
    moments = sum(it.num_copies * (it.width**2 + it.rows**2) for it in inputs)
    unquantized = shape.num_weights - shape.num_linear_weights
    matrices = ALIGNED_COPIES * shape.num_linear_weights + 2 * unquantized
    batch = tokens * (activations + LOGITS_COPIES * shape.vocab_size)
    return FLOAT32 * (matrices + moments + batch)


def _aligning_operations(shape: ModelShape, num_samples: int, params: Params) -> float:
    """The base forward, the variant forward and twice back; integers step by step."""
    tokens = num_samples * params.calibration.max_seq_length
    reading = 2.0 * 4 * tokens * (shape.num_linear_weights + shape.vocab_size * shape.hidden_size)
    num_steps = ceil(tokens / ALIGN_STEP_TOKENS)
    return reading + num_steps * ALIGN_STEP_OPERATIONS * shape.num_linear_weights


def _rounding_operations(linear: InputShape, recipe: PackedVariant) -> float:
    """Searching scales and ranges, GPTQ, refinement, and the error that is reported."""
    product = 2.0 * linear.rows * linear.width**2  # one ΔW G
    grid = GRID_OPERATIONS * linear.rows * linear.width
    operations = 2 * product
    if recipe.scale_search:
        operations += GRID_SEARCH_STEPS * (product + grid)
    if recipe.clip_search:
        blocks = 2.0 * linear.rows * linear.width * (recipe.group_size or linear.width)
        operations += GRID_SEARCH_STEPS * (blocks + grid)
    if recipe.rounding is Rounding.GPTQ:
        operations += product / 2 + linear.width**3
    return operations + (1 + recipe.refine_sweeps) * product


def _rounding_columns(linear: InputShape, recipe: PackedVariant) -> int:
    """How many columns are gone through one by one."""
    passes = recipe.refine_sweeps + (recipe.rounding is Rounding.GPTQ)
    return passes * linear.width
