"""Whether what parameters ask for can run on this machine: asked before anything starts.

Apart from the module that runs them, so that a stage that only reads the parameters needs no more
than this.
"""

from collections.abc import Mapping

from pipeline.core.environments import installed_vllm
from pipeline.core.errors import InputError
from pipeline.params.other_quantizers import CUDA_ONLY, NATIVE
from pipeline.params.params import PackedJudge, VariantParams


def require_runnable(variants: Mapping[str, VariantParams]) -> None:
    """Raise InputError for the first variant whose backend cannot run here."""
    for name, recipe in variants.items():
        backend = getattr(recipe, "backend", NATIVE)
        if backend in CUDA_ONLY and not _has_cuda():
            raise InputError(
                f"variants.{name}.backend = {backend}: runs on an NVIDIA GPU alone, and this "
                f"machine has none; use {CUDA_ONLY[backend]}, which writes the same format, or "
                "remove the variant"
            )


def require_judge(judge: PackedJudge) -> None:
    """Raise InputError for vLLM where it is not installed."""
    if judge is PackedJudge.VLLM:
        try:
            installed_vllm()
        except InputError as error:
            raise InputError(
                f"evaluate.packed_judge = {judge}: {error}, or set it to {PackedJudge.TRANSFORMERS}"
            ) from error


def chosen_judge(judge: PackedJudge) -> PackedJudge:
    """What `auto` means on this machine."""
    if judge is not PackedJudge.AUTO:
        return judge
    return PackedJudge.VLLM if _has_cuda() else PackedJudge.TRANSFORMERS


def _has_cuda() -> bool:
    # Imported where it is needed: it takes a second, and few parameters ask for it.
    import torch

    return torch.cuda.is_available()
