"""The models that benchmark serves: the base, the approved variants and the user's endpoints.

`scorer_of` loads the engine that scored a model. `server_spec` describes the server that the load
is sent to, and the memory that it takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

from pipeline.checkpoint.checks import read_json_object, text_values
from pipeline.checkpoint.names import CONFIG_FILE
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.checkpoint.unpacked_model import unpacked_model
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
from pipeline.serving import endpoint as endpoint_server
from pipeline.serving import llama_cpp, vllm
from pipeline.serving.kv_cache import (
    LLAMA_CPP_BYTES,
    VLLM_BYTES,
    kv_bytes_of_config,
)
from pipeline.serving.server_pool import ServerSpec

# Random text that is decoded and read again may come out a few tokens longer.
SPARE_TOKENS = 24
# Engines give a sequence its KV cache in blocks; vLLM's are the largest, of 128 tokens on a CPU.
BLOCK_TOKENS = 128
WIDTHS = {"float32": 4}
USUAL_WIDTH = 2


@dataclass(frozen=True)
class ServableModel:
    """Name a model to serve: a checkpoint directory, or one GGUF file of `file_type`.

    For an `endpoint`, `path` and `file_type` are those of the weights that it is said to serve.
    """

    name: str
    digest: str | None
    path: Path
    file_type: str | None
    endpoint: Endpoint | None = None


def servable_models(workspace: Workspace, serve: ServeParams) -> list[ServableModel]:
    """List the base, the approved variants and the endpoints.

    Raises InputError when a variant has other files than those that were approved, and for an
    endpoint of a variant that was not approved.
    """
    base = read_base_manifest(workspace)
    approved = read_record(Approved, workspace.approved_path, made_by="select")
    models = {BASE: ServableModel(BASE, base.digest, workspace.base_dir, file_type=None)}
    for name, digest in approved.variants.items():
        path = workspace.variant_path(name)
        variant = read_record(VariantRecord, path, made_by=f"quantize {name}")
        if variant.digest != digest:
            raise InputError(f"{path}: not the files that were approved; run `dvc repro` again")
        models[name] = _variant(workspace, variant)
    return [*models.values(), *_endpoints(serve, models)]


def _variant(workspace: Workspace, variant: VariantRecord) -> ServableModel:
    model_dir = workspace.model_dir(variant.name)
    if not isinstance(variant.recipe, GgufParams):
        return ServableModel(variant.name, variant.digest, model_dir, file_type=None)
    (file,) = (file.path for file in variant.files if file.path.endswith(".gguf"))
    file_type = variant.recipe.label
    return ServableModel(variant.name, variant.digest, model_dir / file, file_type=file_type)


def _endpoints(serve: ServeParams, models: dict[str, ServableModel]) -> Iterator[ServableModel]:
    for name, endpoint in serve.endpoints.items():
        if endpoint.serves not in models:
            raise InputError(
                f"serve.endpoints.{name}.serves = {endpoint.serves}: this variant was not "
                "approved; name the base or an approved one"
            )
        reference = models[endpoint.serves]
        yield ServableModel(name, None, reference.path, reference.file_type, endpoint)


def scorer_bytes(workspace: Workspace, model: ServableModel, packed_judge: PackedJudge) -> int:
    """Return the bytes of memory that the engine that scored this model takes for it."""
    if model.file_type is not None:
        return weight_bytes(model)
    if packed_judge is PackedJudge.VLLM:
        return VLLM_BYTES + weight_bytes(model)
    return WIDTHS["float32"] * num_weights(workspace.base_dir)


def scorer_of(workspace: Workspace, model: ServableModel, packed_judge: PackedJudge) -> Scorer:
    """Load the engine that scored this model; a checkpoint was scored by `packed_judge`.

    Raises FailureError when too little memory is free. Without that check the system would end this
    process instead of refusing the memory.
    """
    name, needed = model.name, scorer_bytes(workspace, model, packed_judge)
    free = memory_for_servers if model.file_type is None else available_memory
    if (free_bytes := free()) < needed:
        needed_text, free_text = (
            bytes_text(count).replace(NBSP, " ") for count in (needed, free_bytes)
        )
        raise FailureError(
            f"{name}: the engine that scored it needs {needed_text} of memory, {free_text} are "
            "free; end other programs or use a machine with more"
        )
    if model.file_type is not None:
        return LlamaCppScorer(model.path, label=name)
    if packed_judge is PackedJudge.VLLM:
        return VllmScorer(model.path, label=name)
    return TransformersScorer(unpacked_model(model.path), label=name)


def server_spec(
    workspace: Workspace,
    serve: ServeParams,
    model: ServableModel,
    *,
    port: int | None,
    dtype: str = vllm.AUTO_DTYPE,
) -> ServerSpec:
    """Describe the server of a model, with room for all users of the load at the same time."""
    name = model.name if dtype == vllm.AUTO_DTYPE else f"{model.name}.{dtype}"
    log_path = workspace.benchmarks_path.with_suffix(".logs") / f"{name}.log"
    context_tokens = serve.context_tokens + SPARE_TOKENS
    if model.endpoint is not None:
        serve_endpoint = partial(
            endpoint_server.serve,
            model.name,
            model.endpoint,
            timeout_s=serve.startup_timeout_s,
            log_path=log_path,
        )
        return ServerSpec(name, 0, serve_endpoint)
    kv_bytes = kv_bytes_of(workspace, serve, dtype=dtype)
    if model.file_type is None:
        factor = WIDTHS.get(dtype, USUAL_WIDTH) / USUAL_WIDTH
        needed_bytes = VLLM_BYTES + round(factor * weight_bytes(model)) + kv_bytes
        serve_checkpoint = partial(
            vllm.serve,
            model.path,
            name=name,
            context_tokens=context_tokens,
            kv_cache_bytes=kv_bytes,
            port=port,
            timeout_s=serve.startup_timeout_s,
            log_path=log_path,
            dtype=dtype,
        )
        return ServerSpec(name, needed_bytes, serve_checkpoint)
    serve_gguf = partial(
        llama_cpp.serve,
        model.path,
        name=name,
        file_type=model.file_type,
        context_tokens=context_tokens,
        users=serve.max_users,
        port=port,
        timeout_s=serve.startup_timeout_s,
        log_path=log_path,
    )
    return ServerSpec(name, LLAMA_CPP_BYTES + weight_bytes(model) + kv_bytes, serve_gguf)


def weight_bytes(model: ServableModel) -> int:
    """Add up the sizes of the files with weights, in bytes."""
    if model.path.is_file():
        return model.path.stat().st_size
    return sum(path.stat().st_size for path in model.path.glob("*.safetensors"))


def num_weights(model_dir: Path) -> int:
    """Count the weights of a checkpoint, from its headers."""
    headers = [read_header(path) for path in model_dir.glob("*.safetensors")]
    return sum(prod(tensor.shape) for header in headers for tensor in header.values())


def kv_bytes_of(workspace: Workspace, serve: ServeParams, *, dtype: str) -> int:
    """Compute the bytes of KV cache for one longest request of every user at the same time."""
    config = text_values(read_json_object(workspace.base_dir / CONFIG_FILE))
    blocks = -(-(serve.context_tokens + SPARE_TOKENS) // BLOCK_TOKENS) + 1
    num_tokens = serve.max_users * blocks * BLOCK_TOKENS
    return kv_bytes_of_config(config, num_tokens, bytes_per_value=WIDTHS.get(dtype, USUAL_WIDTH))
