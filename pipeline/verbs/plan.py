"""Plan a run: predict its memory, disk and time on this machine, and refuse what cannot fit.

The prediction comes from the model's configuration and headers, the number of tokens in the suite
and a measurement of one second of how fast this machine multiplies. The held-out text is tokenized,
to find one that is too short.
"""

from collections.abc import Iterator

from pipeline.architectures.folds import require_folds
from pipeline.calibration.sample import require_documents
from pipeline.checkpoint.names import CONFIG_FILE
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.environments import installed_vllm
from pipeline.core.errors import InputError
from pipeline.core.formatting import NBSP, bytes_text
from pipeline.core.workspace import Workspace
from pipeline.engines.vllm_models import Support, vllm_support
from pipeline.evaluation.held_out import read_held_out
from pipeline.gguf.files import require_convertible
from pipeline.licensing.licenses import data_rule, require_data_allowed
from pipeline.licensing.reading import read_data_license
from pipeline.licensing.rules import license_rules
from pipeline.params.params import (
    LLAMA_CPP,
    GgufParams,
    PackedJudge,
    PackedVariant,
    Params,
)
from pipeline.params.reading import chosen_judge
from pipeline.planning.capacity import capacity, measured_speed
from pipeline.planning.model_source import ExaminedBase, examined_base
from pipeline.planning.plan import TIME_FACTOR, Capacity, predict, refusal, table
from pipeline.planning.source import Source, Speed
from pipeline.quantization.coverage import implied_by_packing
from pipeline.quantization.grouping import (
    plan_groups,
    require_divisible,
    require_no_experts,
    require_text_alone,
)
from pipeline.records.intake import Finding
from pipeline.tasks.texts import suite_tokens


def run(workspace: Workspace, params: Params, fits: str = "") -> None:
    """Print the plan, or for `fits` the best types of a GGUF file for this memory.

    Raises InputError after that when memory or disk cannot hold the run. Raises it before that for
    an architecture that cannot be quantized as the recipes say, for a held-out text that is too
    short, and for calibration data that cannot be read, or whose license is unknown or forbids the
    release.
    """
    if fits:
        # Imported only where it is needed: it loads transformers, which takes seconds.
        from pipeline.planning.best_types import print_best_types

        print_best_types(workspace, params, fits)
        return
    rules = license_rules()
    data_license = read_data_license(workspace, params.calibration.license, rules)
    require_data_allowed(data_rule(data_license, rules), params.release)
    evaluate = params.evaluate
    with examined_base(workspace, params.model) as base:
        source, findings = base.source, [*base.findings]
        require_folds(source.architecture, params.variants.values())
        require_groups(source, params)
        tokenizer = tokenizer_of(base.directory)
        read_held_out(workspace.root, evaluate, tokenizer)
        if params.calibration.dataset is None:
            require_documents(workspace, params.calibration, tokenizer)
        findings += llama_cpp_findings(base, params)
        findings += vllm_findings(source.architecture, params)
    tokens = suite_tokens(workspace.root, evaluate.suite, max_documents=evaluate.max_documents)
    needs = predict(source, params, suite_tokens=tokens)
    speed, free = measured_speed(), capacity(workspace)
    lines = [*table(needs, speed), "", *assumptions(source, tokens, speed, free)]
    lines += [f"Found: {finding}." for finding in findings]
    print("\n".join(lines), flush=True)
    if reason := refusal(needs, free):
        raise InputError(reason)


def llama_cpp_findings(base: ExaminedBase, params: Params) -> Iterator[Finding]:
    """Ask llama.cpp's converter about the model. Raises InputError where a variant needs it."""
    if LLAMA_CPP not in params.evaluate.controls:
        return
    try:
        require_convertible(
            base.directory,
            pre_tokenizer=params.model.gguf_pre_tokenizer,
            tensor_names=tuple(base.source.tensors),
        )
    except InputError as error:
        if params.makes_gguf:
            raise
        yield Finding(
            file=CONFIG_FILE,
            found=str(error).partition(";")[0],
            done="the base is not scored in llama.cpp, which no variant needs",
        )


def vllm_findings(architecture: str, params: Params) -> Iterator[Finding]:
    """Ask the installed vLLM about the model. Raises InputError where packed variants need it."""
    support = vllm_support(architecture)
    if support in (None, Support.OWN):
        return
    engine = f"vLLM {installed_vllm().version}"
    if support is Support.BY_TRANSFORMERS:
        yield Finding(
            file=CONFIG_FILE,
            found=f"{engine} has no class of its own for {architecture}",
            done="it runs transformers' class, which may be slower",
        )
        return
    packed = [name for name, recipe in params.variants.items() if recipe.format != "gguf"]
    if packed and chosen_judge(params.evaluate.packed_judge) is PackedJudge.VLLM:
        raise InputError(
            f"variants.{packed[0]}: {engine} does not have {architecture}, so it cannot score "
            f"packed files; set evaluate.packed_judge to {PackedJudge.TRANSFORMERS}"
        )
    yield Finding(
        file=CONFIG_FILE,
        found=f"{engine} does not have {architecture}",
        done="benchmark skips what vLLM would serve: the base and packed variants",
    )


def require_groups(source: Source, params: Params) -> None:
    """Raise InputError, naming the variant, where its groups do not divide a linear."""
    linears = {
        name.removesuffix(".weight"): shape
        for name, shape in source.tensors.items()
        if len(shape) == 2 and implied_by_packing(name, shape)
    }
    for name, recipe in params.variants.items():
        try:
            if isinstance(recipe, PackedVariant):
                plan_groups(recipe, linears)
            elif isinstance(recipe, GgufParams):
                require_no_experts(recipe, linears)
            else:
                require_text_alone(recipe, source.text_part)
                require_divisible(recipe, {linear: shape[1] for linear, shape in linears.items()})
        except InputError as error:
            raise InputError(f"variants.{name}: {error}") from error


def assumptions(source: Source, suite_size: int, speed: Speed, free: Capacity) -> list[str]:
    """Return the lines that state what the table is based on."""
    shape = source.shape
    gpu = f", {_bytes(free.gpu_memory)} of GPU memory" if free.gpu_memory is not None else ""
    kept = f", {shape.num_kept_weights:,} kept beside them" if shape.num_kept_weights else ""
    return [
        f"Model: {shape.num_weights:,} weights in {len(shape.layers)} layers{kept}, vocabulary "
        f"{shape.vocab_size:,}, {_bytes(source.file_bytes)} of files.",
        f"Machine: {_bytes(free.memory)} of memory available{gpu}, {_bytes(free.disk)} of disk "
        f"free, {_bytes(free.written)} written by earlier runs.",
        f"Measured: {speed.operations / 1e9:.0f} billion float32 operations a second, "
        f"{speed.memory_bytes / 1e9:.0f} GB a second from memory.",
        f"Assumed: every variant is approved; the suite has about {suite_size:,} tokens; text that "
        "tasks let models write is not counted; the disk moves 200 MB a second and a download is "
        "as fast.",
        f"Times are estimates, right within about a factor of {TIME_FACTOR} on an idle machine.",
    ]


def _bytes(count: int) -> str:
    return bytes_text(count).replace(NBSP, " ")
