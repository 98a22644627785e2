"""Multiply by packed weights on CPUs, in vLLM's interface of linear kernels.

The first that can take a layer is used; the first two are for CPUs without AVX-512:

- `NativeCpuLinearKernel` multiplies in float32 with `int4.cpp` and is exact. One row (token) takes
  the time of reading the weights at 4 bits, many rows about that of a dense float32 product.
- `Int4CpuLinearKernel` uses PyTorch's packed int4 operator, where there is no C++ compiler. It
  works in bfloat16, which rounds scales and activations to 8 significant bits.
- `DenseCpuLinearKernel` unpacks all weights once and multiplies as vLLM does with any dense layer;
  it takes weights of 8 bits, and the shapes that the others cannot.

All use the checkpoint's integers and zero points exactly. The first two keep the weights at 4 bits.

vLLM passes AWQ, GPTQ and compressed-tensors weights in one form (see
`vllm/model_executor/kernels/linear/mixed_precision`): int32 words of packed values.
"""

from typing import ClassVar

import torch
from torch.nn import Module, Parameter
from vllm.logger import init_logger
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    unpack_quantized_values_into_int32,
)
from vllm.platforms import current_platform
from vllm.scalar_type import ScalarType, scalar_types

from quantline_vllm import native

# vLLM prints only the loggers below its own name.
logger = init_logger("vllm.quantline")

FOUR_BITS = (scalar_types.uint4, scalar_types.uint4b8)
EIGHT_BITS = (scalar_types.uint8, scalar_types.uint8b128)
# The value that PyTorch's operator subtracts from a 4-bit weight.
MIDDLE = 8
# Limits of `aten::_weight_int4pack_mm_for_cpu` (aten/src/ATen/native/LinearAlgebra.cpp).
OPERATOR_GROUP_SIZES = (256, 128, 64, 32)
OPERATOR_OUTPUT_MULTIPLE = 16
# The operator accepts 2, 4 and 8; on a CPU it has no effect.
INNER_K_TILES = 2


class PackedCpuKernel(MPLinearKernel):
    """Check the layers, unpack their weights, and write one line into the log, for all kernels."""

    label: ClassVar[str]
    weight_types: ClassVar[tuple[ScalarType, ...]] = FOUR_BITS
    num_created: ClassVar[int]
    num_loaded: ClassVar[int]

    def __init_subclass__(cls) -> None:
        cls.num_created = cls.num_loaded = 0

    def __init__(self, c: MPLinearLayerConfig, *names: str, **named: str) -> None:
        super().__init__(c, *names, **named)
        type(self).num_created += 1

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        if not current_platform.is_cpu():
            return False, "runs on a CPU only"
        if c.weight_type not in cls.weight_types:
            return False, f"weights of type {c.weight_type}, expected one of {cls.weight_types}"
        return True, None

    def unpacked(self, layer: Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return int32 weights [in, out], and float32 scales and zero points [groups, out].

        The weights count from 0. Symmetric ones have their zero point in the middle.
        """
        weight, scale, zero_point = self._get_weight_params(layer)
        # compressed-tensors stores the transpose of what AWQ and GPTQ store.
        packed = weight.data.t() if weight.input_dim == 1 else weight.data
        values = unpack_quantized_values_into_int32(packed, self.config.weight_type, 0)
        scales = (scale.data.t() if scale.output_dim == 0 else scale.data).float()
        if not self.config.zero_points:
            middle = 1 << (self.config.weight_type.size_bits - 1)
            return values, scales, torch.full_like(scales, middle)
        assert zero_point is not None
        packed = zero_point.data.t() if zero_point.output_dim == 0 else zero_point.data
        zero_points = unpack_quantized_values_into_int32(packed, self.config.weight_type, 1)
        return values, scales, zero_points.float()

    def finish(self, layer: Module, weight: torch.Tensor, compute_dtype: torch.dtype) -> None:
        """Replace the checkpoint's weight by the kernel's own; log a line after the last layer.

        vLLM creates every layer before it loads the first, so that the counts are equal only once.
        """
        replace_parameter(layer, self.w_q_name, Parameter(weight, requires_grad=False))
        for name in (self.w_s_name, self.w_zp_name):
            if name is not None:
                setattr(layer, name, None)
        kind = type(self)
        kind.num_loaded += 1
        if kind.num_loaded == kind.num_created:
            logger.info(
                "quantline: %s kernel, %s, %d layers",
                self.label,
                str(compute_dtype).removeprefix("torch."),
                kind.num_loaded,
            )


class NativeCpuLinearKernel(PackedCpuKernel):
    """Multiply in float32, and unpack the weights during the product."""

    label = "native 4-bit CPU"

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        possible, reason = super().can_implement(c)
        if not possible:
            return possible, reason
        num_inputs, num_outputs = c.partition_weight_shape
        if num_outputs % native.BLOCK_OUTPUTS != 0:
            return False, f"{num_outputs} outputs, expected a multiple of {native.BLOCK_OUTPUTS}"
        if c.group_size != -1 and num_inputs % c.group_size != 0:
            return False, f"groups of {c.group_size} in {num_inputs} inputs, expected whole ones"
        if native.library() is None:
            return False, "no C++ compiler, or no AVX2"
        return True, None

    def process_weights_after_loading(self, layer: Module) -> None:
        values, scales, zero_points = self.unpacked(layer)
        self.scales = scales.contiguous()
        self.offsets = (-zero_points * scales).contiguous()
        self.finish(layer, native.packed_blocks(values), torch.float32)

    def apply_weights(
        self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        product = native.product(rows, getattr(layer, self.w_q_name), self.scales, self.offsets)
        return shaped(product, x, bias)


class Int4CpuLinearKernel(PackedCpuKernel):
    """Multiply with PyTorch's packed int4 operator, which is fast on AVX2 only in bfloat16."""

    label = "int4 CPU"

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        possible, reason = super().can_implement(c)
        if not possible:
            return possible, reason
        num_inputs, num_outputs = c.partition_weight_shape
        if num_outputs % OPERATOR_OUTPUT_MULTIPLE != 0:
            return False, f"{num_outputs} outputs, expected a multiple of 16"
        if operator_group_size(num_inputs, c.group_size) is None:
            return (
                False,
                f"groups of {c.group_size} in {num_inputs} inputs, expected multiples of 32",
            )
        return True, None

    def process_weights_after_loading(self, layer: Module) -> None:
        values, scales, zero_points = self.unpacked(layer)
        group_size = operator_group_size(values.shape[0], self.config.group_size)
        assert group_size is not None
        repeats = values.shape[0] // group_size // scales.shape[0]
        # The operator computes (value - 8) * scale + offset.
        scale_and_offset = torch.stack([scales, (MIDDLE - zero_points) * scales], dim=-1)
        self.scale_and_offset = (
            scale_and_offset.repeat_interleave(repeats, dim=0).to(torch.bfloat16).contiguous()
        )
        self.group_size = group_size
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            values.t().contiguous(), INNER_K_TILES
        )
        self.finish(layer, packed, torch.bfloat16)

    def apply_weights(
        self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, getattr(layer, self.w_q_name), self.group_size, self.scale_and_offset
        )
        return shaped(product, x, bias)


class DenseCpuLinearKernel(PackedCpuKernel):
    """Unpack the weights once to the activations' type: for any shape, as slow as a dense layer."""

    label = "dense CPU (unpacked weights)"
    weight_types = FOUR_BITS + EIGHT_BITS

    def process_weights_after_loading(self, layer: Module) -> None:
        values, scales, zero_points = self.unpacked(layer)
        group_size = values.shape[0] // scales.shape[0]
        grouped = values.view(scales.shape[0], group_size, -1) - zero_points[:, None, :]
        dense = (grouped * scales[:, None, :]).view(values.shape).t()
        self.finish(layer, dense.to(self.config.act_type).contiguous(), self.config.act_type)

    def apply_weights(
        self, layer: Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.nn.functional.linear(x, getattr(layer, self.w_q_name), bias)


def shaped(product: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Add the bias to a product of rows; return it in the shape and type of the layer's output."""
    output = product if bias is None else product + bias
    return output.to(x.dtype).reshape(*x.shape[:-1], product.shape[-1])


def operator_group_size(num_inputs: int, group_size: int) -> int | None:
    """Return the largest group size of the operator that divides a layer's group size, or None.

    A group of the layer becomes several groups of the operator with the same scale.
    `group_size` -1 means one group over all inputs.
    """
    own = num_inputs if group_size == -1 else group_size
    return next((size for size in OPERATOR_GROUP_SIZES if own % size == 0), None)
