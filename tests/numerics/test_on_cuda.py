"""The numerics on a GPU, without one: every tensor stays there, and loops do not wait for the host.

PyTorch's fake tensors have shapes, dtypes and devices and compute nothing; an operation on tensors
of two devices fails as it does with real ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from pipeline.architectures.folds import folds_of, layer_folds
from pipeline.gguf.block_types import BLOCK_TYPES
from pipeline.numerics.block_grid import BlockGrid
from pipeline.numerics.block_rounding import round_in_blocks
from pipeline.numerics.decoder_layer import DecoderLayer, SharedInput
from pipeline.numerics.drift import DriftAccumulator, compensate_drift
from pipeline.numerics.gram import GramAccumulator
from pipeline.numerics.grid import range_grid
from pipeline.numerics.layer import quantize_layer
from pipeline.numerics.two_sided import descend
from pipeline.quantization.gguf_rounding import layout_of
from pipeline.quantization.grouping import plan_groups
from tests.packed_models import packed_recipe

CUDA = torch.device("cuda")
SEARCHED = {"scale_search": True, "clip_search": True, "rounding": "gptq", "refine_sweeps": 1}
PLAIN = {"scale_search": False}
RECIPES = {
    "awq": packed_recipe("awq", group_size=16, **SEARCHED),
    "FP8_DYNAMIC": packed_recipe("FP8_DYNAMIC", group_size=None, **PLAIN),
}


class Host(TorchFunctionMode):
    """Does by operations what a tensor's methods ask the driver of the GPU for.

    Counts how often the host waits for numbers; it gets zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.round_trips = 0
        self._methods: dict[Any, Callable[..., object]] = {
            Tensor.__getitem__: indexed,
            Tensor.__setitem__: lambda tensor, index, value: copied(indexed(tensor, index), value),
            Tensor.copy_: copied,
            Tensor.contiguous: lambda tensor: tensor.clone(memory_format=torch.contiguous_format),
            Tensor.to: moved,
            Tensor.float: lambda tensor: moved(tensor, torch.float32),
            Tensor.half: lambda tensor: moved(tensor, torch.float16),
            Tensor.__float__: lambda _: self._waited(0.0),
            Tensor.__bool__: lambda _: self._waited(False),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return self._methods.get(func, func)(*args, **kwargs or {})

    def as_list(self, tensor: Tensor) -> object:
        return self._waited(list(range(tensor.numel())))

    def _waited(self, answer: object) -> object:
        self.round_trips += 1
        return answer


def copied(target: Tensor, source: Tensor) -> Tensor:
    return torch.ops.aten.copy_.default(target, source)


def moved(tensor: Tensor, *where: Any, **options: Any) -> Tensor:
    for one in where:
        options["dtype" if isinstance(one, torch.dtype) else "device"] = one
    return torch.ops.aten._to_copy.default(tensor, **options)


def indexed(tensor: Tensor, index: Any) -> Tensor:
    """`tensor[index]`, which is a view of it unless the index has a tensor."""
    dim = 0
    for one in index if isinstance(index, tuple) else (index,):
        if one is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(one, int):
            tensor, dim = tensor.select(dim, one), dim - 1
        elif isinstance(one, slice):
            tensor = torch.ops.aten.slice(tensor, dim, one.start, one.stop, one.step or 1)
        else:
            tensor = torch.ops.aten.index(tensor, [*[None] * dim, one])
        dim += 1
    return tensor


@contextmanager
def fake_cuda() -> Iterator[Host]:
    """Tensors are fake, and those on a GPU can be made."""
    host = Host()
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), host:
        patch.setattr(FakeTensor, "tolist", lambda tensor: host.as_list(tensor))
        yield host


def on_cuda(*shape: int) -> Tensor:
    return torch.empty(*shape, device="cuda")


def layer_of(width: int) -> DecoderLayer:
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj": (2 * width, width) for name in ("gate", "up")}
    shapes["mlp.down_proj"] = (width, 2 * width)
    tensors = {f"{name}.weight": on_cuda(*shape) for name, shape in shapes.items()}
    tensors |= {f"{name}_layernorm.weight": on_cuda(width) for name in ("input", "post_attention")}
    shared = (
        tuple(f"self_attn.{name}_proj" for name in "qkv"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
    inputs = tuple(
        SharedInput(names[0], names, on_cuda(shapes[names[0]][1], shapes[names[0]][1]))
        for names in shared
    )
    return DecoderLayer("model.layers.0", tensors, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_layer_is_quantized_there(name: str) -> None:
    """The host waits a few times for each linear, and not for each column."""
    recipe, width = RECIPES[name], 16
    with fake_cuda() as host:
        layer = layer_of(width)
        folds = layer_folds(folds_of("LlamaForCausalLM"), layer.modules)
        linears = {name for shared in layer.inputs for name in shared.linears}
        recipes = plan_groups(recipe, {it: tuple(layer.weight(it).shape) for it in linears}).recipes
        made = quantize_layer(layer, folds if recipe.scale_search else (), recipes, head_dim=4)
        tensors = [*made.changed.values(), *made.values().values()]
        assert made.linears.keys() == linears
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert host.round_trips < 6 * len(linears)


# Of each kind: a scale, an offset too, a table, and scales and offsets in steps.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "IQ4_NL", "Q2_K"])
def test_blocks_are_rounded_there(kind: str) -> None:
    with fake_cuda() as host:
        layout, rows = layout_of(BLOCK_TYPES[kind], CUDA), 8
        num_groups = layout.groups_per_block
        grid = BlockGrid.of(
            layout,
            d=on_cuda(1, rows),
            m=on_cuda(1, rows) if layout.has_offsets else None,
            i=on_cuda(num_groups, rows) if layout.steps else None,
            j=on_cuda(num_groups, rows) if layout.steps and layout.has_offsets else None,
        )
        width = num_groups * layout.group_size
        weight, gram = on_cuda(rows, width), on_cuda(width, width)
        levels = round_in_blocks(weight, gram, grid, sweeps=1, dampening_frac=0.01)
        assert {it.device.type for it in (levels, grid.scales, grid.d)} == {"cuda"}
    assert host.round_trips < 10


def moments() -> Tensor:
    accumulator = GramAccumulator(64, CUDA)
    accumulator.add(on_cuda(2, 16, 64))
    return accumulator.gram()


def drift() -> Tensor:
    accumulator = DriftAccumulator(64, CUDA)
    accumulator.add(on_cuda(2, 32, 64))
    weights = {"a": on_cuda(32, 64)}
    drift, gram = accumulator.drift(), accumulator.gram()
    return compensate_drift(weights, drift, gram, dampening_frac=0.01)["a"]


def aligned() -> Tensor:
    weight = on_cuda(32, 64)
    recipe = next(iter(plan_groups(RECIPES["awq"], {"a": (32, 64)}).recipes.values()))
    grid = range_grid(weight, recipe)
    residual, integers = on_cuda(1, 32, 64), grid.round(weight)[None]
    descend(residual, integers, grid, outputs=on_cuda(1, 32, 32), inputs=on_cuda(1, 64, 64))
    return integers


@pytest.mark.parametrize("compute", [moments, drift, aligned])
def test_the_rest_stays_there(compute: Callable[[], Tensor]) -> None:
    with fake_cuda():
        assert compute().device.type == "cuda"
