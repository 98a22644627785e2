"""Load checkpoints with packed weights as the full-precision weights that these stand for.

Models come from the class that transformers itself ships for the architecture.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.checkpoint.model_config import model_class, model_config
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.stored_scheme import MARKS, StoredScheme, read_schemes
from pipeline.checkpoint.unpacking import unpacked_integers, unpacked_weight
from pipeline.core.errors import InputError, short_repr
from pipeline.numerics.grid import Grid
from pipeline.numerics.rounded_inputs import e4m3_by_token, int8_by_token
from pipeline.params.variants import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unpacked_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a checkpoint by its name in the model, float32 and unpacked.

    Raises InputError when the tensors are not what config.json says.
    """
    checkpoint = Checkpoint(directory)
    packed = packed_modules(checkpoint)
    for name in checkpoint.names:
        module, _, suffix = name.rpartition(".")
        scheme = packed.get(module)
        if scheme is None or suffix not in scheme.suffixes:
            yield name, checkpoint.tensor(name).float()
        elif suffix == scheme.suffixes[0]:
            tensors = {part: checkpoint.tensor(f"{module}.{part}") for part in scheme.suffixes}
            try:
                yield f"{module}.weight", unpacked_weight(module, tensors, scheme)
            except InputError as error:
                raise InputError(f"{directory}: {error}") from error


def packed_integers(checkpoint: Checkpoint) -> dict[str, tuple[Tensor, Grid]]:
    """Unpack the integers (float32, out × in) and the grid of every packed module, by its name.

    Raises InputError when the tensors are not what config.json says.
    """
    return {
        module: unpacked_integers(
            module,
            {suffix: checkpoint.tensor(f"{module}.{suffix}") for suffix in scheme.suffixes},
            scheme,
        )
        for module, scheme in packed_modules(checkpoint).items()
    }


def packed_modules(checkpoint: Checkpoint) -> dict[str, StoredScheme]:
    """Find the scheme of every module whose tensors are packed, by its name.

    Raises InputError for packed tensors without a scheme, and for a scheme without its tensors.
    """
    try:
        schemes = read_schemes(checkpoint.config)
    except InputError as error:
        raise InputError(f"{checkpoint.directory}: {error}") from error
    names = frozenset(checkpoint.names)
    packed = {}
    for name in names:
        module, _, suffix = name.rpartition(".")
        if suffix not in MARKS.values():
            continue
        scheme = schemes.of(module) if schemes else None
        missing = [
            part for part in (scheme.suffixes if scheme else ()) if f"{module}.{part}" not in names
        ]
        if scheme is None or missing:
            raise InputError(
                f"{checkpoint.directory}: {short_repr(name)}: "
                + (f"without {missing[0]}" if missing else "config.json names no scheme for it")
                + "; the checkpoint is damaged: get it again"
            )
        packed[module] = scheme
    return packed


def unpacked_model(directory: Path) -> "PreTrainedModel":
    """Load the model in float32 with exactly the weights that the checkpoint's files stand for.

    The model rounds activations where an engine would. Raises InputError for an unknown
    architecture, and when a weight is missing.
    """
    config = model_config(directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: PreTrainedModel
    model, loading = model_class(type(config)).from_pretrained(
        None,
        config=config,
        state_dict=dict(unpacked_weights(directory)),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        raise InputError(
            f"{directory}: has no {min(loading['missing_keys'])}; the checkpoint is incomplete: "
            "get it again"
        )
    # Imported where a model is loaded, as transformers itself is.
    from pipeline.checkpoint.model_parts import module_names

    packed = packed_modules(Checkpoint(directory))
    names = module_names(model, tuple(packed))
    for name, scheme in packed.items():
        if scheme.rounds_inputs:
            rounded = e4m3_by_token if scheme.layout is PackedLayout.FLOAT else int8_by_token
            model.get_submodule(names[name]).register_forward_pre_hook(
                lambda _, inputs, rounded=rounded: (rounded(inputs[0]), *inputs[1:])
            )
    return model.eval()
