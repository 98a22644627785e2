"""Run a model layer by layer, with the weights of one decoder layer in memory at a time.

The model is transformers' own class for the configuration, built without weights. Code from a
checkpoint is never run. To run one layer, its tensors are read from safetensors and converted by
transformers' own rules. Then the body of the model is called while every other layer returns its
input unchanged. So masks, position embeddings and sliding windows are exactly those that the model
passes to the layer. Everything is computed in float32. Of a model of several parts only the text
model is run.

Two kinds of models are refused with an InputError: those whose decoder layers are not in one list,
and those whose layers return more than hidden states.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model

from pipeline.architectures.folds import split_layer_name
from pipeline.checkpoint.empty_model import META, built_model, readable_model_errors
from pipeline.checkpoint.model_parts import decoder_layers, sources_by_parameter, text_body
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import InputError, short_repr
from pipeline.core.transformers_library import load_transformers


@dataclass(frozen=True)
class LayerModule:
    """The module of a decoder layer, and the tensors that each of its parameters is made from.

    `prefix` is the layer's name in the checkpoint (`model.layers.3`). `sources` has the parameters
    by their name in the module, the tensors by their full name.
    """

    prefix: str
    module: nn.Module
    sources: dict[str, tuple[str, ...]]


def _through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stand for a layer that is left out."""
    return hidden_states


class LayeredModel:
    """A causal language model whose decoder layers are loaded one by one."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        """Load everything but the embeddings, the decoder layers and the output projection.

        Raises InputError for an architecture that transformers or this class does not know.
        """
        self._checkpoint = Checkpoint(directory)
        self.device = device
        # Its buffers have values, which are computed from the configuration.
        with readable_model_errors(), init_empty_weights(include_buffers=False):
            self._model = built_model(directory)
        self._model.eval()
        for module in self._model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        _, self._body = text_body(self._model)
        self._embedding = self._model.get_input_embeddings()
        self._embedding_name = next(
            name
            for name, parameter in self._model.named_parameters()
            if parameter is self._embedding.weight
        )
        self._sources = sources_by_parameter(self._model, self._checkpoint.names)
        path, modules = decoder_layers(self._model)
        self._paths = [f"{path}.{number}." for number in range(len(modules))]
        self.layers = list(map(self._layer, self._paths, modules))
        in_body = {id(parameter) for parameter in self._body.parameters()}
        self._load(
            name
            for name, parameter in self._model.named_parameters()
            if id(parameter) in in_body
            and name != self._embedding_name
            and not name.startswith(f"{path}.")
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Compute the input of the first layer for `ids` (int64, batch × tokens).

        Returns float32, batch × tokens × hidden.
        """
        seen: list[Tensor] = []

        def first(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(hidden_states)
            return hidden_states

        with self._looked_up_embeddings(), self._only(0, first), self._known_to_work():
            self._body(input_ids=ids.to(self.device), use_cache=False)
        return seen[0]

    def run(self, index: int, states: Tensor) -> Tensor:
        """Run layer `index`, which must be loaded, on `states`: batch × tokens × hidden, float32.

        Raises InputError for a layer that returns more than its hidden states.
        """
        layer = self.layers[index].module
        states = states.to(self.device)
        made: list[Tensor] = []

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            output = type(layer).forward(layer, states, *args, **kwargs)
            if not isinstance(output, Tensor):
                raise InputError(
                    f"{type(layer).__name__}: returns a {type(output).__name__}, expected the "
                    "hidden states alone; this architecture cannot be calibrated"
                )
            made.append(output)
            return output

        with self._only(index, forward), self._known_to_work():
            self._body(inputs_embeds=states, use_cache=False)
        return made[0]

    def head_input(self, states: Tensor) -> Tensor:
        """Compute what the output head reads from states that leave the last layer.

        Both are batch × tokens × hidden, float32.
        """
        with self._only(None, _through), self._known_to_work():
            output = self._body(inputs_embeds=states.to(self.device), use_cache=False)
        made: Tensor = output.last_hidden_state
        return made

    def logits(self, states: Tensor) -> Tensor:
        """Compute the logits of states that leave the last layer, with the head loaded.

        Returns batch × tokens × vocabulary.
        """
        with self._only(None, _through), self._known_to_work():
            output = self._model(inputs_embeds=states.to(self.device), use_cache=False)
        logits: Tensor = output.logits
        return logits

    @contextmanager
    def head_loaded(self) -> Iterator[None]:
        """Load the output head, which may be the embeddings, and free it at the block's end."""
        head, empty = self._model.get_output_embeddings(), self._embedding.weight
        name = next(name for name, it in self._model.named_parameters() if it is head.weight)
        if self._sources.get(name):
            self._load([name])
        else:
            self._load([self._embedding_name])
            head.weight, self._embedding.weight = self._embedding.weight, empty
        try:
            yield
        finally:
            head.weight = nn.Parameter(head.weight.to(META), requires_grad=False)

    @property
    def embedding_table(self) -> Tensor:
        """The stored embeddings, vocabulary × hidden, mapped from the file."""
        sources = self._sources.get(self._embedding_name, ())
        if len(sources) != 1:
            raise self._missing(self._embedding_name)
        return self._checkpoint.tensor(sources[0])

    @contextmanager
    def loaded(
        self, index: int, replaced: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Iterator[LayerModule]:
        """Load the weights of layer `index`, and free them at the end of the block.

        `replaced` has tensors to use instead of the checkpoint's, by their name in the layer.
        """
        layer = self.layers[index]
        instead = {f"{layer.prefix}.{name}": tensor for name, tensor in replaced.items()}
        try:
            self._load((self._paths[index] + name for name in layer.sources), instead)
            yield layer
        finally:
            for module in layer.module.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    module._parameters[name] = nn.Parameter(parameter.to(META), requires_grad=False)

    def _load(
        self, parameters: Iterable[str], replaced: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        """Read the tensors that some parameters are made from, and load them in float32."""
        wanted = list(parameters)
        names = [name for parameter in wanted for name in self._sources.get(parameter, ())]
        info, _ = convert_and_load_state_dict_in_model(
            self._model,
            {
                name: replaced[name] if name in replaced else self._checkpoint.tensor(name)
                for name in names
            },
            load_transformers().modeling_utils.LoadStateDictConfig(
                device_map={"": self.device},
                dtype=torch.float32,
                weight_mapping=get_model_conversion_mapping(self._model),
            ),
        )
        unusable = {key for key, *_ in info.mismatched_keys} | set(info.conversion_errors)
        for parameter in wanted:
            if parameter in unusable or self._model.get_parameter(parameter).is_meta:
                raise self._missing(parameter)

    def _missing(self, name: str) -> InputError:
        """Make the error for a parameter or a module that the checkpoint does not fill."""
        return InputError(
            f"{self._checkpoint.directory}: {name}: missing, or of another shape than config.json "
            "says; fetch the model again or use another revision"
        )

    @contextmanager
    def _only(self, index: int | None, forward: Callable[..., Tensor]) -> Iterator[None]:
        """Let layer `index`, if any, call `forward`; others return their input unchanged."""
        modules = [layer.module for layer in self.layers]
        try:
            for number, module in enumerate(modules):
                module.forward = forward if number == index else _through
            yield
        finally:
            for module in modules:
                del module.forward

    @contextmanager
    def _known_to_work(self) -> Iterator[None]:
        """Raise InputError for a model that does more than call its layers one after the other."""
        try:
            yield
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{type(self._model).__name__}: cannot be run layer by layer "
                f"({short_repr(str(error))}); this architecture cannot be calibrated"
            ) from error

    @contextmanager
    def _looked_up_embeddings(self) -> Iterator[None]:
        """Let the embedding read only the rows that are looked up, from the mapped file."""
        embedding = self._embedding
        table, empty = self.embedding_table, embedding.weight
        embedding.padding_idx = None  # it matters in training alone

        def forward(ids: Tensor) -> Tensor:
            rows, places = torch.unique(ids, return_inverse=True)
            used = table[rows.cpu()].to(self.device, torch.float32)
            embedding.weight = nn.Parameter(used, requires_grad=False)
            looked_up: Tensor = type(embedding).forward(embedding, places)
            return looked_up

        try:
            embedding.forward = forward
            yield
        finally:
            del embedding.forward
            embedding.weight = empty

    def _layer(self, path: str, module: nn.Module) -> LayerModule:
        """Describe the layer `path` of the model. Raises InputError when it has no tensors."""
        names = [name for name, _ in module.named_parameters()]
        sources = {name: self._sources.get(path + name, ()) for name in names}
        tensors = [tensor for made_from in sources.values() for tensor in made_from]
        split = split_layer_name(tensors[0]) if tensors else None
        if split is None:
            raise self._missing(path.removesuffix("."))
        return LayerModule(prefix=split[0], module=module, sources=sources)
