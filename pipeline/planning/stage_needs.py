"""What each stage holds, writes and computes, counted from shapes and parameters.

Memory and disk follow from what the code of a stage keeps; operations are those of its products of
matrices, and what is not a product is counted in constants that were measured with this code on
x86 CPUs. Nothing here looks at a machine or a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.architectures.shapes import InputShape, ModelShape
from pipeline.core.workspace import KEPT_LOGITS_BYTES, SCORES_CACHE_BYTES
from pipeline.params.params import GgufParams, PackedJudge, Params, VariantParams
from pipeline.planning.source import Source, Speed
from pipeline.serving.kv_cache import UNKNOWN_KV_BYTES, VLLM_BYTES

FLOAT32 = 4

# Memory: Python with torch and transformers; with lm-eval's tasks and llama.cpp beside them.
PROCESS_BYTES = 600 << 20
EVALUATOR_BYTES = 750 << 20
# What moves files and records alone, without torch.
LIGHT_BYTES, LIGHT_SECONDS = 150 << 20, 2.0
# The one process of vLLM that scores, with the KV cache of one pass.
VLLM_SCORER_BYTES = 1 << 30
# Activations of one batch: this many tokens, a few times their widest tensor.
BATCH_TOKENS = 4096
ACTIVATION_COPIES = 6
# One batch of logits is at most this, as `pipeline.engines.scorer` cuts batches; copied once.
LOGITS_BYTES = 1 << 29

# Time.
# Starting: models of transformers; a tokenizer, tasks and torch alone; llama.cpp's converter.
START_SECONDS, SCORER_START_SECONDS, CONVERTER_SECONDS = 10.0, 6.0, 8.0
# Log-probabilities and KL, per position and vocabulary entry.
LOG_PROBABILITY_OPERATIONS = 300
DISK_BYTES_PER_SECOND = 200e6
SERVER_START_SECONDS = 90.0
STEP_SECONDS = 0.02

# Bits per weight of llama.cpp's file types, of Llama 3.1 8B:
# https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md
GGUF_BITS = {
    "Q8_0": 8.50, "Q6_K": 6.57, "Q5_K_M": 5.71, "Q5_K_S": 5.58, "Q4_K_M": 4.90, "Q4_K_S": 4.67,
    "Q4_0": 4.67, "IQ4_NL": 4.69, "IQ4_XS": 4.46, "Q3_K_L": 4.30, "Q3_K_M": 4.00, "Q3_K_S": 3.65,
    "IQ3_M": 3.77, "IQ3_S": 3.67, "IQ3_XS": 3.50, "IQ3_XXS": 3.26, "Q2_K": 3.16, "Q2_K_S": 2.97,
    "IQ2_M": 2.93, "IQ2_S": 2.75, "IQ2_XS": 2.59, "IQ2_XXS": 2.39, "IQ1_M": 2.15, "IQ1_S": 2.01,
}  # fmt: skip
# A scale of 16 bits and, where there are zero points, one of the weights' bits.
SCALE_BITS = 16


@dataclass(frozen=True)
class StageNeed:
    """Of one stage: bytes of memory at its peak, bytes of disk, and its work.

    `gpu_memory` is the part of `memory` that moves to a GPU where there is one. `disk_temporary`
    is freed at the end of the stage. Of the work, `seconds` do not depend on the processor's speed;
    `traffic` are bytes read from memory.
    """

    stage: str
    memory: int = LIGHT_BYTES
    gpu_memory: int = 0
    disk_kept: int = 0
    disk_temporary: int = 0
    operations: float = 0.0
    traffic: float = 0.0
    seconds: float = LIGHT_SECONDS

    def duration(self, speed: Speed) -> float:
        """Seconds, within about TIME_FACTOR."""
        return self.seconds + self.operations / speed.operations + self.traffic / speed.memory_bytes


def calibrate_need(source: Source, params: Params) -> StageNeed:
    """One layer in float32, its G and a batch of activations; hidden states are on the disk."""
    shape, calibration = source.shape, params.calibration
    tokens = calibration.num_calibration_samples * calibration.max_seq_length
    batch = min(tokens, max(BATCH_TOKENS, calibration.max_seq_length))
    layer_entries = max(
        layer.num_weights + sum(map(gram_entries, layer.inputs)) for layer in shape.layers
    )
    widest = max(max(it.width, it.rows) for it in inputs_of(shape))
    activations = batch * (ACTIVATION_COPIES * shape.hidden_size + 3 * widest)
    moving = FLOAT32 * (layer_entries + activations)
    operations = 4.0 * tokens * calibration.max_seq_length * shape.hidden_size * len(shape.layers)
    for it in inputs_of(shape):
        share = _share_of_tokens(it, source)
        operations += 2 * tokens * share * (it.num_weights + gram_entries(it))
    return StageNeed(
        "calibrate",
        memory=PROCESS_BYTES + moving,
        gpu_memory=moving,
        disk_kept=statistics_bytes(shape),
        disk_temporary=2 * FLOAT32 * tokens * shape.hidden_size,
        operations=operations,
        seconds=START_SECONDS,
    )


def evaluate_need(source: Source, params: Params, name: str, *, suite_tokens: int) -> StageNeed:
    """The base in float32, and a variant beside it in float32 too; or both as they are in the
    engine that scores the variant, llama.cpp or vLLM.

    With the base it is scored once more, in 16 bits, in every other engine; llama.cpp's has a file
    for it, also when a variant is compared with it.
    """
    shape, evaluate = source.shape, params.evaluate
    whole, half = FLOAT32 * shape.num_weights, 2 * shape.num_weights
    recipe = params.variants.get(name)
    in_vllm = evaluate.packed_judge is PackedJudge.VLLM and not isinstance(recipe, GgufParams)
    num_controls = len(evaluate.controls) + in_vllm if recipe is None else 0
    num_models = 1 + (recipe is not None) + 2 * num_controls
    models, on_gpu = (1 + (recipe is not None)) * whole, (1 + (recipe is not None)) * whole
    if isinstance(recipe, GgufParams):
        models, on_gpu = half + variant_bytes(shape, recipe), 0
    elif in_vllm and recipe is not None:
        models = on_gpu = 2 * VLLM_SCORER_BYTES + half + variant_bytes(shape, recipe)
    elif in_vllm:
        models = on_gpu = whole + VLLM_SCORER_BYTES + half
    elif num_controls:
        models = whole + half
    needs_file = isinstance(recipe, GgufParams) or (recipe is None and bool(evaluate.controls))
    window_logits = evaluate.window_tokens * shape.vocab_size
    batch = min(LOGITS_BYTES, FLOAT32 * evaluate.batch_size * window_logits)
    logits = 4 * batch
    window_tokens = num_models * evaluate.num_windows * evaluate.window_tokens
    logits_bytes = FLOAT32 * evaluate.num_windows * window_logits
    kept = (1 + num_controls) * logits_bytes if logits_bytes <= KEPT_LOGITS_BYTES else 0
    active = sum(it.num_weights * _share_of_tokens(it, source) for it in inputs_of(shape))
    head = shape.vocab_size * shape.hidden_size
    operations = 2.0 * (window_tokens + (1 + num_controls) * suite_tokens) * (active + head)
    operations += LOG_PROBABILITY_OPERATIONS * window_tokens * shape.vocab_size
    return StageNeed(
        f"evaluate {name}",
        memory=EVALUATOR_BYTES + models + logits,
        gpu_memory=on_gpu + batch,
        # Variants are compared with logits that the score cache keeps of the base.
        disk_kept=min(kept, SCORES_CACHE_BYTES) if recipe is None else 0,
        disk_temporary=half if needs_file else 0,
        operations=operations,
        seconds=(SCORER_START_SECONDS if isinstance(recipe, GgufParams) else START_SECONDS)
        + in_vllm * (1 + (recipe is not None)) * SERVER_START_SECONDS
        + num_models * moving_seconds(whole) / 2,
    )


def benchmark_need(source: Source, params: Params) -> StageNeed:
    """First the reference texts by the evaluator, then the server, model after model.

    Servers are kept up together only where memory is left.
    """
    shape, serve = source.shape, params.serve
    served = [2 * shape.num_weights]
    served += [variant_bytes(shape, it) for it in params.variants.values()]
    largest = max(FLOAT32 * shape.num_weights, VLLM_BYTES + UNKNOWN_KV_BYTES + max(served))
    steps = tokens = 0
    for it in serve.scenarios.values():
        requests = sum(it.concurrency) * serve.requests_per_user * serve.max_rounds
        tokens += requests * it.context_tokens
        steps += len(it.concurrency) * serve.requests_per_user * serve.max_rounds * it.output_tokens
    return StageNeed(
        "benchmark",
        memory=EVALUATOR_BYTES + largest,
        gpu_memory=largest,
        operations=2.0 * len(served) * tokens * shape.num_weights,
        traffic=float(steps * sum(served)),
        seconds=START_SECONDS + len(served) * (SERVER_START_SECONDS + steps * STEP_SECONDS),
    )


def variant_bytes(shape: ModelShape, recipe: VariantParams) -> int:
    """The size of a variant's weights; the vocabulary's matrices stay in 16 bits when packed."""
    if isinstance(recipe, GgufParams):
        return round(shape.num_weights * GGUF_BITS[recipe.type.value] / 8)
    packed = 0.0
    for it in inputs_of(shape):
        group_size = recipe.group_size or it.width
        per_group = SCALE_BITS + (0 if recipe.symmetric else recipe.num_bits)
        packed += it.num_weights * (recipe.num_bits + per_group / group_size) / 8
    return round(packed + 2 * (shape.num_weights - shape.num_linear_weights))


def statistics_bytes(shape: ModelShape) -> int:
    """The upper triangles of every G in float32."""
    return sum(FLOAT32 * it.num_copies * it.width * (it.width + 1) // 2 for it in inputs_of(shape))


def inputs_of(shape: ModelShape) -> Iterator[InputShape]:
    for layer in shape.layers:
        yield from layer.inputs


def gram_entries(linear: InputShape) -> int:
    return linear.num_copies * linear.width**2


def _share_of_tokens(linear: InputShape, source: Source) -> float:
    """The share of tokens that pass one linear: of an expert, what a balanced router sends."""
    if not linear.is_expert or source.experts_per_token is None:
        return 1.0
    layer = next(it for it in source.shape.layers if linear in it.inputs)
    experts = sum(it.num_copies for it in layer.inputs if it.is_expert) / 2
    return min(1.0, source.experts_per_token / max(experts, 1))


def moving_seconds(num_bytes: int) -> float:
    return num_bytes / DISK_BYTES_PER_SECOND
