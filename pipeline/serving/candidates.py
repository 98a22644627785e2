"""What benchmark serves: the base, the approved variants and the user's endpoints; and how.

A candidate is a file or directory with the engines for it: the one that scored it, and the one that
serves it. A launch is the latter's command, with the memory it will take.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

from pipeline.checkpoint.checks import read_json_object
from pipeline.checkpoint.names import CONFIG_FILE
from pipeline.checkpoint.reading import unpacked_model
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import read_record
from pipeline.core.formatting import NBSP, bytes_text
from pipeline.core.machine import available_memory, memory_for_servers
from pipeline.core.workspace import BASE, Workspace
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.in_vllm import VllmScorer
from pipeline.engines.scorer import Scorer
from pipeline.params.params import GgufParams, PackedJudge
from pipeline.params.serving import Endpoint, ServeParams
from pipeline.records.base import read_base_manifest
from pipeline.records.selection import Approved
from pipeline.records.variant import VariantRecord
from pipeline.serving import endpoint, vllm
from pipeline.serving import llama_cpp as xllamacpp
from pipeline.serving.fleet import Launch
from pipeline.serving.kv_cache import (
    LLAMA_CPP_BYTES,
    UNKNOWN_KV_BYTES,
    VLLM_BYTES,
    kv_cache_bytes,
)

# Random text that is decoded and read again may come out a few tokens longer.
SPARE_TOKENS = 24
# Engines give a sequence its KV cache in blocks; vLLM's are the largest, of 128 tokens on a CPU.
BLOCK_TOKENS = 128
WIDTHS = {"float32": 4}
USUAL_WIDTH = 2


@dataclass(frozen=True)
class Candidate:
    """A model to serve: a checkpoint directory, or one GGUF file of `file_type`.

    Of an `endpoint`, the path and the file type are those of the weights that it is said to serve.
    """

    name: str
    digest: str | None
    path: Path
    file_type: str | None
    endpoint: Endpoint | None = None


def candidates_of(workspace: Workspace, serve: ServeParams) -> list[Candidate]:
    """The base, the approved variants with the files that were approved, and the endpoints."""
    base = read_base_manifest(workspace)
    approved = read_record(Approved, workspace.approved_path, made_by="select")
    candidates = {BASE: Candidate(BASE, base.digest, workspace.base_dir, file_type=None)}
    for name, digest in approved.variants.items():
        path = workspace.variant_path(name)
        variant = read_record(VariantRecord, path, made_by=f"quantize {name}")
        if variant.digest != digest:
            raise InputError(f"{path}: not the files that were approved; run `dvc repro` again")
        candidates[name] = _candidate(workspace, variant)
    return [*candidates.values(), *_endpoints(serve, candidates)]


def _candidate(workspace: Workspace, variant: VariantRecord) -> Candidate:
    model_dir = workspace.model_dir(variant.name)
    if not isinstance(variant.recipe, GgufParams):
        return Candidate(variant.name, variant.digest, model_dir, file_type=None)
    (file,) = (file.path for file in variant.files if file.path.endswith(".gguf"))
    file_type = variant.recipe.type.value
    return Candidate(variant.name, variant.digest, model_dir / file, file_type=file_type)


def _endpoints(serve: ServeParams, candidates: dict[str, Candidate]) -> Iterator[Candidate]:
    for name, it in serve.endpoints.items():
        if it.serves not in candidates:
            raise InputError(
                f"serve.endpoints.{name}.serves = {it.serves}: this variant was not approved; "
                "name the base or an approved one"
            )
        reference = candidates[it.serves]
        yield Candidate(name, None, reference.path, reference.file_type, endpoint=it)


def scorer_of(workspace: Workspace, candidate: Candidate, packed_judge: PackedJudge) -> Scorer:
    """The engine that scored this file, loaded; that of a checkpoint is `packed_judge`.

    Raises FailureError when there is not enough free memory for it: the system would not refuse the
    memory but end this process.
    """
    name, free = candidate.name, memory_for_servers
    if candidate.file_type is not None:
        needed, free = weight_bytes(candidate), available_memory
    elif packed_judge is PackedJudge.VLLM:
        needed = VLLM_BYTES + weight_bytes(candidate)
    else:
        needed = WIDTHS["float32"] * num_weights(workspace.base_dir)
    if (free_bytes := free()) < needed:
        needed_text, free_text = (bytes_text(it).replace(NBSP, " ") for it in (needed, free_bytes))
        raise FailureError(
            f"{name}: the engine that scored it needs {needed_text} of memory, {free_text} are "
            "free; end other programs or use a machine with more"
        )
    if candidate.file_type is not None:
        return LlamaCppScorer(candidate.path, label=name)
    if packed_judge is PackedJudge.VLLM:
        return VllmScorer(candidate.path, label=name)
    return TransformersScorer(unpacked_model(candidate.path), label=name)


def launch_of(
    workspace: Workspace,
    serve: ServeParams,
    candidate: Candidate,
    *,
    port: int | None,
    dtype: str = vllm.AUTO_DTYPE,
) -> Launch:
    """How this file is served to all users of the load at the same time."""
    name = candidate.name if dtype == vllm.AUTO_DTYPE else f"{candidate.name}.{dtype}"
    log_path = workspace.benchmarks_path.with_suffix(".logs") / f"{name}.log"
    context_tokens = serve.context_tokens + SPARE_TOKENS
    if candidate.endpoint is not None:
        start = partial(
            endpoint.serve,
            candidate.name,
            candidate.endpoint,
            timeout_s=serve.startup_timeout_s,
            log_path=log_path,
        )
        return Launch(name, 0, start)
    kv_bytes = kv_bytes_of(workspace, serve, dtype=dtype)
    if candidate.file_type is None:
        factor = WIDTHS.get(dtype, USUAL_WIDTH) / USUAL_WIDTH
        needed_bytes = VLLM_BYTES + round(factor * weight_bytes(candidate)) + kv_bytes
        start = partial(
            vllm.serve,
            candidate.path,
            name=name,
            context_tokens=context_tokens,
            kv_cache_bytes=kv_bytes,
            port=port,
            timeout_s=serve.startup_timeout_s,
            log_path=log_path,
            dtype=dtype,
        )
        return Launch(name, needed_bytes, start)
    start = partial(
        xllamacpp.serve,
        candidate.path,
        name=name,
        file_type=candidate.file_type,
        context_tokens=context_tokens,
        users=serve.max_users,
        port=port,
        timeout_s=serve.startup_timeout_s,
        log_path=log_path,
    )
    return Launch(name, LLAMA_CPP_BYTES + weight_bytes(candidate) + kv_bytes, start)


def weight_bytes(candidate: Candidate) -> int:
    """The size of the files with weights."""
    if candidate.path.is_file():
        return candidate.path.stat().st_size
    return sum(path.stat().st_size for path in candidate.path.glob("*.safetensors"))


def num_weights(model_dir: Path) -> int:
    """Count the weights of a checkpoint, from its headers."""
    headers = [read_header(path) for path in model_dir.glob("*.safetensors")]
    return sum(prod(tensor.shape) for header in headers for tensor in header.values())


def kv_bytes_of(workspace: Workspace, serve: ServeParams, *, dtype: str) -> int:
    """The KV cache of as many longest requests as there are users at the same time."""
    config = read_json_object(workspace.base_dir / CONFIG_FILE)
    numbers = {key: value for key, value in config.items() if isinstance(value, int)}
    blocks = -(-(serve.context_tokens + SPARE_TOKENS) // BLOCK_TOKENS) + 1
    try:
        heads = numbers["num_attention_heads"]
        return kv_cache_bytes(
            serve.max_users * blocks * BLOCK_TOKENS,
            num_layers=numbers["num_hidden_layers"],
            num_key_value_heads=numbers.get("num_key_value_heads", heads),
            head_dim=numbers.get("head_dim") or numbers["hidden_size"] // heads,
            bytes_per_value=WIDTHS.get(dtype, USUAL_WIDTH),
        )
    except KeyError:
        return UNKNOWN_KV_BYTES
