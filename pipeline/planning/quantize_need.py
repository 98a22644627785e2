"""Predictions of the memory, disk and work of quantize, by the kind of recipe."""

from dataclasses import replace

from pipeline.architectures.shapes import InputShape, ModelShape
from pipeline.params.gguf_variants import GGUF_REFINE_SWEEPS, GgufRounding
from pipeline.params.other_quantizers import BackendParams, BackendWeights
from pipeline.params.params import GgufParams, PackedVariant, Params, Rounding
from pipeline.params.variants import BUDGET_ROWS, BUDGET_SCHEMES
from pipeline.planning.model_runs import has_budget, runs_need
from pipeline.planning.source import Source
from pipeline.planning.stage_needs import (
    ACTIVATION_COPIES,
    CONVERTER_SECONDS,
    FLOAT32,
    PROCESS_BYTES,
    START_SECONDS,
    TORCH_BYTES,
    StageNeed,
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
# Copies of a matrix while its error is computed: before and after, their difference and two
# products; and in llama.cpp, which quantizes it from float32.
MATRIX_COPIES, LLAMA_CPP_COPIES = 5, 3

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
# Operations for one weight in one step of a grid search.
GRID_OPERATIONS = 60
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
    runs = runs_need(source, params, recipe)
    return StageNeed(
        stage,
        memory=(PROCESS_BYTES if runs.operations else TORCH_BYTES) + max(holding, runs.gpu_memory),
        disk_kept=variant_bytes(shape, recipe),
        disk_temporary=disk_temporary + runs.disk_temporary,
        operations=operations + runs.operations,
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
    if has_budget(recipe):
        for linear in inputs_of(shape):
            # Some rows are quantized in every way; most of that is the factor of G.
            rows = replace(linear, rows=min(linear.rows, BUDGET_ROWS))
            unrefined = recipe.model_copy(update={"refine_sweeps": 0})
            operations += len(BUDGET_SCHEMES) * _rounding_operations(rows, unrefined)
            columns += len(BUDGET_SCHEMES) * linear.width
    runs = runs_need(source, params, recipe)
    holding = max(_layer_bytes(shape), runs.gpu_memory)
    start = START_SECONDS if runs.operations else LIGHT_START_SECONDS
    return StageNeed(
        stage,
        memory=(PROCESS_BYTES if runs.operations else TORCH_BYTES) + holding,
        gpu_memory=holding,
        disk_kept=kept,
        disk_temporary=runs.disk_temporary,
        operations=operations + runs.operations,
        seconds=start + 2 * disk_seconds(kept) + columns * COLUMN_SECONDS,
    )


def _layer_bytes(shape: ModelShape) -> int:
    """Return the bytes of the largest layer with the second moments of its inputs."""
    return FLOAT32 * max(
        LAYER_COPIES * layer.num_weights
        + sum(map(gram_entries, layer.inputs))
        + GRAM_COPIES * max(linear.width**2 for linear in layer.inputs)
        for layer in shape.layers
    )


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
