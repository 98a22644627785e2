"""Read from config.json how the linears of a packed checkpoint are stored.

The file is untrusted: every value is checked, and an unsupported value is an InputError of one
line. Module names are compared as text. Regular expressions in `targets` are refused, because an
untrusted pattern can run for hours. Tensors are not read here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.core.errors import InputError, short_repr
from pipeline.core.record import first_problem
from pipeline.params.variants import PackedLayout

CONFIG_KEY = "quantization_config"
ANY_LINEAR = "Linear"


# The suffix of a tensor that every linear of a layout has, and no unquantized module.
MARKS = {
    PackedLayout.AWQ: "qweight",
    PackedLayout.GPTQ: "qweight",
    PackedLayout.PACKED: "weight_packed",
    PackedLayout.INT: "weight_scale",
    PackedLayout.FLOAT: "weight_scale",
}


@dataclass(frozen=True)
class StoredScheme:
    """How one linear is stored.

    With `group_size` None each output channel has one scale. `rounds_inputs` says that an engine
    rounds the activations, token by token, to the type of the weights.
    """

    layout: PackedLayout
    num_bits: int
    group_size: int | None
    symmetric: bool
    rounds_inputs: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The last part of the names of its tensors."""
        match self.layout:
            case PackedLayout.AWQ:
                return ("qweight", "qzeros", "scales")
            case PackedLayout.GPTQ:
                return ("qweight", "qzeros", "scales", "g_idx")
            case PackedLayout.PACKED:
                zero_point = () if self.symmetric else ("weight_zero_point",)
                return ("weight_packed", "weight_scale", "weight_shape", *zero_point)
            case PackedLayout.INT | PackedLayout.FLOAT:
                return ("weight", "weight_scale")


@dataclass(frozen=True)
class StoredSchemes:
    """The schemes of linears: some by name, and `others` for every other linear."""

    by_name: Mapping[str, StoredScheme]
    others: StoredScheme | None

    def of(self, module: str) -> StoredScheme | None:
        """Return the scheme of a module by its name; None when it has none."""
        return self.by_name.get(module, self.others)


def read_schemes(config: Mapping[str, object]) -> StoredSchemes | None:
    """Read the schemes from the object in config.json; None when the checkpoint is not quantized.

    Raises InputError for a scheme that cannot be unpacked here.
    """
    value = config.get(CONFIG_KEY)
    if value is None:
        return None
    method = value.get("quant_method") if isinstance(value, dict) else None
    if not isinstance(method, str) or method not in READERS:
        raise InputError(
            f"{CONFIG_KEY}.quant_method = {short_repr(method)}: expected {', '.join(READERS)}; use "
            "another checkpoint"
        )
    try:
        return READERS[method].validate_python(value).schemes()
    except ValidationError as error:
        raise InputError(
            f"{CONFIG_KEY}.{first_problem(error, value)}; this cannot be read here: use another "
            "checkpoint"
        ) from error


class _Stored(BaseModel):
    """A part of `quantization_config`; keys that do not affect storage are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


PositiveInt = Annotated[int, Field(gt=0)]


class _AwqConfig(_Stored):
    bits: Literal[4]
    group_size: PositiveInt
    zero_point: Literal[True]
    version: Literal["gemm"]

    def schemes(self) -> StoredSchemes:
        own = StoredScheme(PackedLayout.AWQ, self.bits, self.group_size, symmetric=False)
        return StoredSchemes({}, others=own)


class _GptqConfig(_Stored):
    bits: Literal[2, 3, 4, 8]
    group_size: PositiveInt | Literal[-1]
    desc_act: Literal[False]
    checkpoint_format: Literal["gptq"] = "gptq"

    def schemes(self) -> StoredSchemes:
        group_size = None if self.group_size == -1 else self.group_size
        own = StoredScheme(PackedLayout.GPTQ, self.bits, group_size, symmetric=False)
        return StoredSchemes({}, others=own)


class _Weights(_Stored):
    num_bits: Literal[3, 4, 8]
    type: Literal["int", "float"]
    symmetric: bool
    strategy: Literal["group", "channel"]
    group_size: PositiveInt | Literal[-1] | None = None
    dynamic: Literal[False] = False
    actorder: Literal["weight", "static"] | None = None


class _Inputs(_Stored):
    num_bits: Literal[8]
    type: Literal["int", "float"]
    symmetric: Literal[True]
    strategy: Literal["token"]
    dynamic: Literal[True]


class _Group(_Stored):
    targets: Annotated[list[str], Field(min_length=1)]
    weights: _Weights
    input_activations: _Inputs | None = None
    output_activations: None = None
    format: str | None = None


class _CompressedTensorsConfig(_Stored):
    format: str
    config_groups: dict[str, _Group]
    kv_cache_scheme: None = None

    def schemes(self) -> StoredSchemes:
        by_target: dict[str, StoredScheme] = {}
        for name, group in self.config_groups.items():
            scheme = _scheme(group, group.format or self.format)
            if scheme is None:
                raise InputError(
                    f"{CONFIG_KEY}.config_groups.{short_repr(name)}: expected integers of 3, 4 or "
                    "8 bits in pack-quantized, or 8 per channel in int-quantized or "
                    "float-quantized; use another checkpoint"
                )
            for target in group.targets:
                if target.startswith("re:"):
                    raise InputError(
                        f"{CONFIG_KEY}: target {short_repr(target)}: expected {ANY_LINEAR} or the "
                        "name of a module; use another checkpoint"
                    )
                by_target[target] = scheme
        return StoredSchemes(by_target, others=by_target.pop(ANY_LINEAR, None))


def _scheme(group: _Group, layout_name: str) -> StoredScheme | None:
    """Read the scheme of a config group; None when its keys contradict each other."""
    weights, inputs = group.weights, group.input_activations
    by_channel = weights.strategy == "channel"
    if by_channel != (weights.group_size in (None, -1)):
        return None
    layout = next((known for known in PackedLayout if known.value == layout_name), None)
    rounded = inputs is not None and inputs.type == weights.type
    fits = {
        PackedLayout.PACKED: weights.type == "int" and inputs is None,
        PackedLayout.INT: weights.type == "int" and rounded,
        PackedLayout.FLOAT: weights.type == "float" and rounded,
    }
    if layout is None or not fits.get(layout, False):
        return None
    if layout is not PackedLayout.PACKED and not (
        by_channel and weights.symmetric and weights.num_bits == 8
    ):
        return None
    return StoredScheme(
        layout=layout,
        num_bits=weights.num_bits,
        group_size=None if by_channel else weights.group_size,
        symmetric=weights.symmetric,
        rounds_inputs=inputs is not None,
    )


READERS: dict[str, TypeAdapter[_AwqConfig | _GptqConfig | _CompressedTensorsConfig]] = {
    "awq": TypeAdapter(_AwqConfig),
    "gptq": TypeAdapter(_GptqConfig),
    "compressed-tensors": TypeAdapter(_CompressedTensorsConfig),
}
