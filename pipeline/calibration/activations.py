"""Measure the inputs of the linears of one decoder layer, once for each distinct input.

All tokens count alike. The first of a text can have massive activations: in three layers of
SmolLM2-135M one direction has .70 to 1.00 of the trace of G of down_proj. Tokens weighted by
1 / |y|², with y the state in which they leave the layer, were tried for a Q4_K_M file (SmolLM2, 10
windows of 512 tokens). KL is .0219 without weights, .0346 with them, .0230 where attention's inputs
have none, and .0223 where only o_proj and down_proj have them.

A linear has the name that it has in the checkpoint. transformers keeps the experts of a mixture in
one parameter. They are measured one by one, on the tokens that the router sends to each, and all
together. An expert that gets fewer tokens than its input has channels is undersampled: its G would
not have full rank, and errors in the missing directions would count nothing. Such an expert uses
the statistics of all experts. Files are written in `pipeline.calibration.statistics`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.architectures.folds import expert_number
from pipeline.checkpoint.layered_model import LayerModule
from pipeline.core.errors import InputError
from pipeline.numerics.gram import GramAccumulator
from pipeline.records.statistics import ExpertStatistics

EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
KNOWN_EXPERTS = {
    "has_gate": True,
    "has_bias": False,
    "is_transposed": False,
    "is_concatenated": True,
}

Accumulator = TypeVar("Accumulator", bound=GramAccumulator)


@dataclass
class MeasuredInput(Generic[Accumulator]):
    """An input, the linears that read it, and its second moments."""

    linears: list[str]
    accumulator: Accumulator


@dataclass
class LayerMeasurement(Generic[Accumulator]):
    """The measured inputs of one layer, filled while the layer runs.

    `new_accumulator` makes the accumulator of an input from its number of channels and its device.
    """

    new_accumulator: Callable[[int, torch.device], Accumulator]
    inputs: dict[str, MeasuredInput[Accumulator]] = field(default_factory=dict)
    experts: list[ExpertStatistics] = field(default_factory=list)
    _key_of: dict[str, str] = field(default_factory=dict)
    _last: tuple[Tensor, str] | None = None

    def record(self, linears: Sequence[str], tensor: Tensor) -> None:
        """Add a batch of the input of `linears`, … × channels, any float dtype.

        Linears that get the same tensor, one directly after the other, share an entry.
        """
        name = linears[0]
        if name not in self._key_of:  # the first batch
            key = name
            if self._last is not None and self._last[0] is tensor:
                key = self._last[1]
                self.inputs[key].linears += linears
            else:
                accumulator = self.new_accumulator(tensor.shape[-1], tensor.device)
                self.inputs[key] = MeasuredInput(list(linears), accumulator)
            self._key_of[name] = key
            self._last = (tensor, key)
        if self._key_of[name] == name:
            self.inputs[name].accumulator.add(tensor)


@contextmanager
def record_inputs(
    layer: LayerModule, new_accumulator: Callable[[int, torch.device], Accumulator]
) -> Iterator[LayerMeasurement[Accumulator]]:
    """Record every input of the layer's linears while the block runs the layer.

    Inputs of experts are always added to a `GramAccumulator`. Raises InputError for experts that
    are stored or computed in an unknown way.
    """
    measurement = LayerMeasurement(new_accumulator)
    mixtures: list[_Mixture] = []
    handles = []
    for module, linears in linear_modules(layer):
        handle = module.register_forward_pre_hook(
            lambda _, inputs, linears=linears: measurement.record(linears, inputs[0])
        )
        handles.append(handle)
    for path, module in layer.module.named_modules():
        if _is_mixture(module):
            mixture = _Mixture(module, path, layer)
            module.forward = mixture.forward
            mixtures.append(mixture)
    try:
        yield measurement
        for mixture in mixtures:
            mixture.report(measurement)
    finally:
        for handle in handles:
            handle.remove()
        for mixture in mixtures:
            del mixture.module.forward


def linear_modules(layer: LayerModule) -> Iterator[tuple[nn.Linear, list[str]]]:
    """Yield the linears of a layer, each with its names in the checkpoint."""
    for path, module in layer.module.named_modules():
        if isinstance(module, nn.Linear):
            names = _linear_names(layer.sources.get(f"{path}.weight", ()))
            if names:
                yield module, names


def _linear_names(tensors: Sequence[str]) -> list[str]:
    """Name the linears of those tensors that are weights."""
    return [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]


def _is_mixture(module: nn.Module) -> bool:
    """Tell whether a module keeps the weights of all its experts in stacked parameters."""
    parameters = dict(module.named_parameters(recurse=False))
    return all(name in parameters and parameters[name].dim() == 3 for name in EXPERT_PARAMETERS)


@dataclass
class _ExpertInputs:
    """One input of each expert of a mixture: the linears that read it, and its second moments."""

    linears: list[list[str]]
    accumulators: list[GramAccumulator]

    @classmethod
    def of(cls, parameter: Tensor, sources: Sequence[str]) -> "_ExpertInputs":
        """Prepare the input of the linears stacked in `parameter`, experts × outputs × inputs.

        `sources` are the tensors of the checkpoint that the parameter is made from. Raises
        InputError unless they are one for each expert.
        """
        by_expert: dict[int | None, list[str]] = {}
        for linear in _linear_names(sources):
            by_expert.setdefault(expert_number(linear), []).append(linear)
        num_experts, _, in_features = parameter.shape
        if set(by_expert) != set(range(num_experts)):
            raise InputError(
                "the checkpoint does not store experts one by one; this architecture cannot be "
                "calibrated"
            )
        return cls(
            linears=[by_expert[number] for number in range(num_experts)],
            accumulators=[
                GramAccumulator(in_features, parameter.device) for _ in range(num_experts)
            ],
        )

    def undersampled(self) -> list[int]:
        """List the experts that got fewer tokens than this input has channels."""
        return [
            expert
            for expert, accumulator in enumerate(self.accumulators)
            if accumulator.num_tokens < accumulator.in_features
        ]

    def pooled(self) -> GramAccumulator:
        """Merge the second moments of all experts."""
        first = self.accumulators[0]
        merged = GramAccumulator(first.in_features, first.device)
        for accumulator in self.accumulators:
            merged.merge(accumulator)
        return merged


class _Mixture:
    """The experts of one layer: their forward pass, with every input recorded."""

    def __init__(self, module: Any, path: str, layer: LayerModule) -> None:
        """Prepare to record the inputs of the experts in `module`, which is `path` in the layer.

        Raises InputError when the experts are stored or computed in an unknown way.
        """
        if any(getattr(module, key, None) is not value for key, value in KNOWN_EXPERTS.items()):
            raise InputError(
                f"{type(module).__name__}: its experts work in a way that is not known here; this "
                "architecture cannot be calibrated"
            )
        self.module = module
        self._gate_up, self._down = (
            _ExpertInputs.of(getattr(module, name), layer.sources[f"{path}.{name}"])
            for name in EXPERT_PARAMETERS
        )
        self._all = GramAccumulator(
            module.gate_up_proj.shape[-1], device=module.gate_up_proj.device
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Compute Σ weight · down(act(gate(x)) · up(x)) over the experts of each token.

        `hidden_states` are tokens × hidden; `top_k_index` and `top_k_weights` are tokens × k. The
        result is tokens × hidden. The sum is made expert by expert, and the inputs are recorded.
        """
        self._all.add(hidden_states)
        total = torch.zeros_like(hidden_states)
        for expert in range(self.module.num_experts):
            tokens, rank = torch.where(top_k_index == expert)
            sent = hidden_states[tokens]
            self._gate_up.accumulators[expert].add(sent)
            gate_up = functional.linear(sent, self.module.gate_up_proj[expert])
            inner = self.module._apply_gate(gate_up)
            self._down.accumulators[expert].add(inner)
            output = functional.linear(inner, self.module.down_proj[expert])
            total.index_add_(0, tokens, output * top_k_weights[tokens, rank, None])
        return total

    def report(self, measurement: LayerMeasurement[Any]) -> None:
        """Add the inputs of each expert to `measurement`; pooled ones for undersampled experts."""
        name = self._gate_up.linears[0][0].rpartition(".0.")[0]
        measurement.inputs[name] = MeasuredInput([], self._all)
        if self._down.undersampled():
            measurement.inputs[f"{name}.inner"] = MeasuredInput([], self._down.pooled())
        pooled: dict[int, tuple[str, ...]] = {}
        for side, key in ((self._gate_up, name), (self._down, f"{name}.inner")):
            undersampled = side.undersampled()
            for expert, linears in enumerate(side.linears):
                if expert in undersampled:
                    measurement.inputs[key].linears += linears
                    pooled[expert] = (*pooled.get(expert, ()), *linears)
                else:
                    accumulator = side.accumulators[expert]
                    measurement.inputs[linears[0]] = MeasuredInput(linears, accumulator)
        measurement.experts += [
            ExpertStatistics(
                name=f"{name}.{expert}",
                num_tokens=accumulator.num_tokens,
                pooled=pooled.get(expert, ()),
            )
            for expert, accumulator in enumerate(self._gate_up.accumulators)
        ]
