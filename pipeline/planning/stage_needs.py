"""Predictions of the memory, disk and work of each stage, from shapes and parameters alone.

Memory and disk follow from what the code of a stage keeps. Operations are those of its matrix
products; other work is counted in constants that were measured with this code on x86 CPUs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from pipeline.architectures.shapes import InputShape, ModelShape
from pipeline.core.workspace import KEPT_LOGITS_BYTES, SCORES_CACHE_BYTES
from pipeline.params.budgets import largest_bytes
from pipeline.params.params import GgufParams, GgufType, PackedJudge, Params, VariantParams
from pipeline.params.variants import CompressedTensorsParams
from pipeline.planning.source import Source, Speed
from pipeline.serving.kv_cache import UNKNOWN_KV_BYTES, VLLM_BYTES

FLOAT32 = 4

# Memory of Python with torch, with transformers too, and with lm-eval's tasks and llama.cpp too.
TORCH_BYTES, PROCESS_BYTES, EVALUATOR_BYTES = 350 << 20, 600 << 20, 750 << 20
# A stage that handles files and records alone, without torch.
LIGHT_BYTES, LIGHT_SECONDS = 150 << 20, 4.0
# The process of vLLM that scores, with the KV cache of one pass.
VLLM_SCORER_BYTES = 1 << 30
# Activations of one batch: so many tokens, and so many tensors of the hidden size.
BATCH_TOKENS = 4096
ACTIVATION_COPIES = 6
# The largest batch of logits that `pipeline.engines.scorer` makes.
LOGITS_BYTES = 1 << 29

# The start of models of transformers, of a tokenizer, tasks and torch, of llama.cpp's converter;
# and reading a tokenizer in all the ways in which tools read it.
START_SECONDS, SCORER_START_SECONDS, CONVERTER_SECONDS = 12.0, 8.0, 12.0
EXAMINATION_SECONDS = 6.0
# The share of the speed of one large product that a stage reaches over all of its work.
SUSTAINED_SHARE = 0.7
# llama.cpp computes at half the speed of torch's products on CPUs, in 16 and in 8 bits.
LLAMA_CPP_COST = 2.0
# Log-probabilities and KL, per position and vocabulary entry.
LOG_PROBABILITY_OPERATIONS = 300
DISK_BYTES_PER_SECOND = 200e6
# The start of vLLM on a CPU and of llama.cpp's server, the texts that the answers of each are
# compared with, and one step of each.
VLLM_START_SECONDS, LLAMA_CPP_START_SECONDS, TEXTS_SECONDS = 25.0, 3.0, 8.0
STEP_SECONDS = 0.06
# Servers leave a core to those who ask them: on a small machine that is half of its speed.
SERVER_COST = 2.0
LLAMA_CPP_SERVER_BYTES = 400 << 20

# Bits per weight of llama.cpp's file types, for Llama 3.1 8B:
# https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md
GGUF_BITS = {
    "Q8_0": 8.50, "Q6_K": 6.57, "Q5_K_M": 5.71, "Q5_K_S": 5.58, "Q4_K_M": 4.90, "Q4_K_S": 4.67,
    "Q4_0": 4.67, "IQ4_NL": 4.69, "IQ4_XS": 4.46, "Q3_K_L": 4.30, "Q3_K_M": 4.00, "Q3_K_S": 3.65,
    "IQ3_M": 3.77, "IQ3_S": 3.67, "IQ3_XS": 3.50, "IQ3_XXS": 3.26, "Q2_K": 3.16, "Q2_K_S": 2.97,
    "IQ2_M": 2.93, "IQ2_S": 2.75, "IQ2_XS": 2.59, "IQ2_XXS": 2.39, "IQ1_M": 2.15, "IQ1_S": 2.01,
}  # fmt: skip
# In rows that blocks of 256 weights do not divide, llama.cpp uses a type with blocks of 32: Q5_0,
# Q5_1, Q8_0 or IQ4_NL (`tensor_type_fallback` in llama-quant.cpp). By the start of the type's name.
FALLBACK_BITS = {"Q4_K": 5.5, "Q5_K": 6.0, "Q6_K": 8.5}
LOW_FALLBACK_BITS, VOCABULARY_FALLBACK_BITS = 4.5, 8.5
# Bits of the scale of a group; a zero point has as many bits as a weight.
SCALE_BITS = 16


@dataclass(frozen=True)
class StageNeed:
    """The needs of one stage: peak memory and disk in bytes, and its work.

    `gpu_memory` is the part of `memory` that is on the GPU, where there is one. `disk_temporary` is
    freed at the end of the stage. `most_memory` is what the stage takes where so much is left; 0
    where that is `memory`. The work is `operations` of matrix products, `traffic`, the bytes read
    from memory, and `seconds` that do not depend on the speed of the machine. A stage that works in
    `rounds` begins no more of them `budget_s` after the first, which warms up; the second takes
    place in any case. Each takes `round_seconds` at least.
    """

    stage: str
    memory: int = LIGHT_BYTES
    most_memory: int = 0
    gpu_memory: int = 0
    disk_kept: int = 0
    disk_temporary: int = 0
    operations: float = 0.0
    traffic: float = 0.0
    seconds: float = LIGHT_SECONDS
    rounds: int = 1
    round_seconds: float = 0.0
    budget_s: float = inf

    def duration(self, speed: Speed) -> float:
        """Estimate the time in seconds, within about a factor of TIME_FACTOR."""
        work = self.operations / (SUSTAINED_SHARE * speed.operations)
        work += self.traffic / speed.memory_bytes
        work += self.rounds * self.round_seconds
        one_round = work / self.rounds
        return self.seconds + min(work, one_round + max(self.budget_s, one_round))


def fetch_need(source: Source) -> StageNeed:
    """Predict the needs of fetch: it builds the model without weights, and checks all values."""
    return StageNeed(
        "fetch",
        memory=PROCESS_BYTES + FLOAT32 * source.shape.largest_matrix,
        disk_kept=source.file_bytes,
        seconds=START_SECONDS + EXAMINATION_SECONDS + disk_seconds(source.file_bytes),
    )


def calibrate_need(source: Source, params: Params) -> StageNeed:
    """Predict the needs of calibrate.

    One layer in float32, its G and a batch of activations are in memory; hidden states are on disk.
    """
    shape, calibration = source.shape, params.calibration
    tokens = calibration.num_calibration_samples * calibration.max_seq_length
    batch = min(tokens, max(BATCH_TOKENS, calibration.max_seq_length))
    layer_entries = max(
        layer.num_weights + sum(map(gram_entries, layer.inputs)) for layer in shape.layers
    )
    widest = max(max(linear.width, linear.rows) for linear in inputs_of(shape))
    activations = batch * (ACTIVATION_COPIES * shape.hidden_size + 3 * widest)
    moving = FLOAT32 * (layer_entries + activations)
    operations = 4.0 * tokens * calibration.max_seq_length * shape.hidden_size * len(shape.layers)
    for linear in inputs_of(shape):
        share = _share_of_tokens(linear, source)
        operations += 2 * tokens * share * (linear.num_weights + gram_entries(linear))
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
    """Predict the needs of evaluating the variant `name`, or the base for `base`.

    In transformers the base and a variant are in memory together, in float32. In vLLM and llama.cpp
    they have the dtypes of their files. The base is scored once more, in 16 bits, in every other
    engine. llama.cpp reads the base from a temporary GGUF file.
    """
    shape, evaluate = source.shape, params.evaluate
    # In transformers every part of a model is loaded.
    num_weights = shape.num_weights + shape.num_kept_weights
    whole, half = FLOAT32 * num_weights, 2 * num_weights
    recipe = params.variants.get(name)
    in_vllm = evaluate.packed_judge is PackedJudge.VLLM and not isinstance(recipe, GgufParams)
    num_controls = len(evaluate.controls) + in_vllm if recipe is None else 0
    num_judged = 1 if recipe is None else 2
    num_models = num_judged + 2 * num_controls
    models = on_gpu = num_judged * whole
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
    logits_bytes = FLOAT32 * evaluate.num_windows * window_logits
    kept = (1 + num_controls) * logits_bytes if logits_bytes <= KEPT_LOGITS_BYTES else 0
    active = sum(
        linear.num_weights * _share_of_tokens(linear, source) for linear in inputs_of(shape)
    )
    head = shape.vocab_size * shape.hidden_size
    windows = evaluate.num_windows * evaluate.window_tokens
    judged, controlled = num_judged * windows + suite_tokens, 2 * windows + suite_tokens
    tokens = judged + num_controls * controlled
    in_llama_cpp = len(evaluate.controls) * controlled if recipe is None else 0
    if isinstance(recipe, GgufParams):
        in_llama_cpp = judged
    work = tokens + (LLAMA_CPP_COST - 1) * in_llama_cpp
    operations = 2.0 * work * (active + head)
    operations += LOG_PROBABILITY_OPERATIONS * num_models * windows * shape.vocab_size
    return StageNeed(
        f"evaluate {name}",
        memory=EVALUATOR_BYTES + models + logits,
        gpu_memory=on_gpu + batch,
        # Variants are compared with logits that the score cache keeps of the base.
        disk_kept=min(kept, SCORES_CACHE_BYTES) if recipe is None else 0,
        disk_temporary=half if needs_file else 0,
        operations=operations,
        seconds=(SCORER_START_SECONDS if isinstance(recipe, GgufParams) else START_SECONDS)
        + in_vllm * num_judged * VLLM_START_SECONDS
        + num_models * disk_seconds(whole) / 2,
    )


def benchmark_need(source: Source, params: Params) -> StageNeed:
    """Predict the needs of benchmark.

    Reference texts are made first, with the base in float32; then the models are served one after
    the other. Servers run side by side only where memory is left.
    """
    shape, serve = source.shape, params.serve
    num_weights = shape.num_weights + shape.num_kept_weights
    served = [2 * num_weights]
    served += [variant_bytes(shape, recipe) for recipe in params.variants.values()]
    largest = max(FLOAT32 * num_weights, VLLM_BYTES + UNKNOWN_KV_BYTES + max(served))
    steps = tokens = 0
    for scenario in serve.scenarios.values():
        requests = sum(scenario.concurrency) * serve.requests_per_user
        tokens += requests * scenario.context_tokens
        steps += len(scenario.concurrency) * serve.requests_per_user * scenario.output_tokens
    num_gguf = sum(isinstance(recipe, GgufParams) for recipe in params.variants.values())
    num_vllm = len(params.variants) - num_gguf + len(serve.base_dtypes)
    rounds = serve.max_rounds + 1
    servers = num_vllm * VLLM_BYTES + num_gguf * LLAMA_CPP_SERVER_BYTES
    return StageNeed(
        "benchmark",
        memory=EVALUATOR_BYTES + largest,
        most_memory=EVALUATOR_BYTES + max(largest, servers + sum(served)),
        gpu_memory=largest,
        operations=2.0 * SERVER_COST * rounds * len(served) * tokens * shape.num_weights,
        traffic=float(rounds * steps * sum(served)),
        seconds=START_SECONDS
        + num_vllm * VLLM_START_SECONDS
        + num_gguf * LLAMA_CPP_START_SECONDS
        + len(served) * TEXTS_SECONDS,
        rounds=rounds,
        round_seconds=len(served) * steps * STEP_SECONDS,
        budget_s=serve.time_budget_s,
    )


def variant_bytes(shape: ModelShape, recipe: VariantParams) -> int:
    """Predict the bytes of a variant's weights.

    Tensors outside the linears, such as the vocabulary's, stay in 16 bits in packed formats.
    """
    if isinstance(recipe, GgufParams | CompressedTensorsParams) and recipe.budget:
        return largest_bytes(recipe.budget, shape.num_weights)
    if isinstance(recipe, GgufParams):
        assert recipe.type is not None, "a recipe without a budget has one"
        return _gguf_bytes(shape, recipe.type)
    packed = 0.0
    per_group = SCALE_BITS + (0 if recipe.symmetric else recipe.num_bits)
    for linear in inputs_of(shape):
        group_size = recipe.group_size or linear.width
        packed += linear.num_weights * (recipe.num_bits + per_group / group_size) / 8
    unquantized = shape.num_weights - shape.num_linear_weights + shape.num_kept_weights
    return round(packed + 2 * unquantized)


def _gguf_bytes(shape: ModelShape, file_type: GgufType) -> int:
    """Predict the bytes of a GGUF file's weights; rows that no block divides take more bits."""
    usual = GGUF_BITS[file_type.value]
    fallback = FALLBACK_BITS.get(file_type.value[:4], LOW_FALLBACK_BITS)
    outside = shape.num_weights - shape.num_linear_weights
    undivided = shape.hidden_size % file_type.block_weights
    bits = outside * (VOCABULARY_FALLBACK_BITS if undivided else usual)
    for linear in inputs_of(shape):
        undivided = linear.width % file_type.block_weights
        bits += linear.num_weights * (fallback if undivided else usual)
    return round(bits / 8)


def statistics_bytes(shape: ModelShape) -> int:
    """Return the bytes of the upper triangles of every G in float32, that of the head included."""
    widths = [shape.hidden_size]
    widths += [linear.width for linear in inputs_of(shape) for _ in range(linear.num_copies)]
    return sum(FLOAT32 * width * (width + 1) // 2 for width in widths)


def inputs_of(shape: ModelShape) -> Iterator[InputShape]:
    """Yield the linear inputs of all layers in order."""
    for layer in shape.layers:
        yield from layer.inputs


def gram_entries(linear: InputShape) -> int:
    """Return the number of entries of the full G of an input, of all experts of a fused stack."""
    return linear.num_copies * linear.width**2


def _share_of_tokens(linear: InputShape, source: Source) -> float:
    """Return the fraction of all tokens that a linear processes.

    For an expert's linear it is the fraction that a balanced router sends to this expert.
    """
    if not linear.is_expert or source.experts_per_token is None:
        return 1.0
    layer = next(layer for layer in source.shape.layers if linear in layer.inputs)
    experts = sum(shape.num_copies for shape in layer.inputs if shape.is_expert) / 2
    return min(1.0, source.experts_per_token / max(experts, 1))


def disk_seconds(num_bytes: int) -> float:
    """Estimate the seconds of reading or writing so many bytes on a disk."""
    return num_bytes / DISK_BYTES_PER_SECOND
