"""Build the model of a configuration without weights: its tensors have shapes alone."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.checkpoint.checks import USE_ANOTHER
from pipeline.checkpoint.library_errors import readable_library_errors
from pipeline.checkpoint.model_config import model_class, model_config
from pipeline.checkpoint.model_parts import decoder_layers
from pipeline.checkpoint.names import CONFIG_FILE
from pipeline.core.limits import run_limited

if TYPE_CHECKING:
    from transformers import PreTrainedModel

META = torch.device("meta")
MAX_SECONDS, MAX_BYTES = 60.0, 1 << 32


def require_layered(directory: Path) -> None:
    """Raise InputError for an architecture without exactly one list of decoder layers.

    Only config.json is read. Whether the model calls its layers one after the other, and does
    nothing else between them, shows only when they run.
    """
    decoder_layers(empty_model(directory))


def empty_model(directory: Path) -> "PreTrainedModel":
    """Build the model of a configuration on the meta device: its tensors have no values.

    Raises InputError where the class of the model does not take the configuration.
    """
    with readable_model_errors(), META:
        return run_limited(lambda: built_model(directory), seconds=MAX_SECONDS, num_bytes=MAX_BYTES)


def built_model(directory: Path) -> "PreTrainedModel":
    config = model_config(directory)
    model: PreTrainedModel = model_class(type(config))(config)
    return model


def readable_model_errors() -> AbstractContextManager[None]:
    what = f"{CONFIG_FILE}: transformers cannot build a model of it"
    return readable_library_errors(what, USE_ANOTHER)
