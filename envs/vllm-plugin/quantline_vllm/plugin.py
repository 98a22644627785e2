"""Register quantline's kernels; vLLM calls this entry point once in each of its processes."""

import os

import torch
from vllm.model_executor.kernels.linear import register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.platforms import PlatformEnum, current_platform

from quantline_vllm.kernels import (
    DenseCpuLinearKernel,
    Int4CpuLinearKernel,
    NativeCpuLinearKernel,
)

DISABLED_KERNELS = "VLLM_DISABLED_KERNELS"


class AwqWithFloat32(AutoAWQConfig):
    """Accept float32 activations for AWQ."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [*super().get_supported_act_dtypes(), torch.float32]


class GptqWithFloat32(AutoGPTQConfig):
    """Accept float32 activations for GPTQ."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [*super().get_supported_act_dtypes(), torch.float32]


# The names by which checkpoints and vLLM itself call these formats.
FLOAT32_CONFIGS = {AwqWithFloat32: ("awq", "auto_awq"), GptqWithFloat32: ("gptq", "auto_gptq")}


def register() -> None:
    """Offer our kernels to vLLM where it has none of its own.

    On a CPU it has none for 8-bit weights with activations in 16 bits. For 4-bit weights it
    compiles `cpu_gemm_wna16` for AVX-512 only but selects the kernel that calls it on every CPU.
    That kernel is disabled by vLLM's own variable, and ours are registered in its place. They also
    take activations in float32 (`--dtype float32`), in which such a CPU runs attention and the
    dense layers of large batches several times faster than in 16 bits. On a GPU this does nothing.
    """
    if not current_platform.is_cpu():
        return
    current_platform.import_kernels()
    if hasattr(torch.ops._C, "cpu_gemm_wna16"):
        register_linear_kernel(DenseCpuLinearKernel, PlatformEnum.CPU)
        return
    disabled = os.environ.get(DISABLED_KERNELS)
    names = [*(disabled.split(",") if disabled else []), CPUWNA16LinearKernel.__name__]
    os.environ[DISABLED_KERNELS] = ",".join(dict.fromkeys(names))
    for kernel in (NativeCpuLinearKernel, Int4CpuLinearKernel, DenseCpuLinearKernel):
        register_linear_kernel(kernel, PlatformEnum.CPU)
    for config, names in FLOAT32_CONFIGS.items():
        for name in names:
            register_quantization_config(name)(config)
