"""Runs in the serving environment: the kernels on random layers, errors printed as JSON.

Every case is the layer as vLLM hands it over after loading: GPTQ-like words of weights, and zero
points the other way round for AWQ. The error is relative to the product with the exact weights.
"""

import json

import torch
from quantline_vllm.kernels import (
    DenseCpuLinearKernel,
    Int4CpuLinearKernel,
    NativeCpuLinearKernel,
    PackedCpuKernel,
)
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    pack_quantized_values_into_int32,
)
from vllm.scalar_type import scalar_types

# One part of int4.cpp, and one row and several rows more than that.
ROW_COUNTS = (1, 5, 64, 127, 130)
# inputs, outputs, group size (-1: one group), zero points, transposed as compressed-tensors does;
# then 8 bits where it is not 4
CASES: list[tuple[int, int, int, bool, bool, *tuple[int, ...]]] = [
    (256, 576, 128, True, False),
    (256, 512, 128, True, False),
    (256, 512, 128, False, False),
    (768, 256, 32, True, False),
    (512, 256, -1, False, False),
    (192, 48, 96, False, False),
    (128, 40, 16, True, False),
    (256, 64, 64, False, True),
    (256, 64, 64, True, True),
    (256, 80, 64, False, True, 8),
    (256, 96, -1, False, True, 8),
    (256, 112, 32, True, True, 8),
]


def parameter(data: torch.Tensor, *, input_dim: int | None, output_dim: int) -> torch.nn.Parameter:
    made = torch.nn.Parameter(data.contiguous(), requires_grad=False)
    made.input_dim, made.output_dim, made.packed_dim = input_dim, output_dim, input_dim
    return made


def error_of(
    kind: type[PackedCpuKernel],
    num_inputs: int,
    num_outputs: int,
    group_size: int,
    zero_points: bool,
    transposed: bool,
    num_bits: int = 4,
    *,
    num_rows: int,
) -> float:
    own_size = num_inputs if group_size == -1 else group_size
    groups = num_inputs // own_size
    weight_type = {
        4: scalar_types.uint4 if zero_points else scalar_types.uint4b8,
        8: scalar_types.uint8 if zero_points else scalar_types.uint8b128,
    }[num_bits]
    config = MPLinearLayerConfig(
        full_weight_shape=(num_inputs, num_outputs),
        partition_weight_shape=(num_inputs, num_outputs),
        weight_type=weight_type,
        act_type=torch.float16,
        group_size=group_size,
        zero_points=zero_points,
    )
    possible, _ = kind.can_implement(config)
    if not possible:
        return float("nan")
    values = torch.randint(0, 2**num_bits, (num_inputs, num_outputs), dtype=torch.int32)
    scales = (torch.rand(groups, num_outputs) + 0.5).half()
    zeros = torch.full((groups, num_outputs), 2 ** (num_bits - 1), dtype=torch.int32)
    if zero_points:
        zeros = torch.randint_like(zeros, 0, 2**num_bits)
    weight = (values - zeros.repeat_interleave(own_size, 0)) * scales.repeat_interleave(own_size, 0)

    words = pack_quantized_values_into_int32(values, weight_type, 0)
    layer = torch.nn.Module()
    if transposed:
        layer.weight = parameter(words.t(), input_dim=1, output_dim=0)
        layer.scale = parameter(scales.t(), input_dim=1, output_dim=0)
    else:
        layer.weight = parameter(words, input_dim=0, output_dim=1)
        layer.scale = parameter(scales, input_dim=0, output_dim=1)
    if zero_points:
        packed = pack_quantized_values_into_int32(zeros.t().contiguous(), weight_type, 0)
        layer.zero = parameter(packed, input_dim=1, output_dim=0)
    kernel = kind(config, "weight", "scale", "zero" if zero_points else None)
    kernel.process_weights_after_loading(layer)
    x = torch.randn(1, num_rows, num_inputs).half()
    bias = torch.randn(num_outputs).half()
    exact = x.float() @ weight.float() + bias.float()
    product = kernel.apply_weights(layer, x, bias).float()
    assert product.shape == exact.shape
    return ((product - exact).norm() / exact.norm()).item()


if __name__ == "__main__":
    torch.manual_seed(0)
    rows = [
        {
            "case": case,
            "kernel": kind.__name__,
            "rows": num_rows,
            "error": error_of(kind, *case, num_rows=num_rows),
        }
        for case in CASES
        for kind in (NativeCpuLinearKernel, Int4CpuLinearKernel, DenseCpuLinearKernel)
        for num_rows in ROW_COUNTS
    ]
    print(json.dumps(rows))
