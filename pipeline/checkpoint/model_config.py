"""Read config.json as transformers' own class for the architecture; no other code is run."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.checks import read_json_object
from pipeline.checkpoint.names import CONFIG_FILE
from pipeline.core.errors import InputError, short_repr

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_CONTEXT = 2048
"""Context of a model whose configuration names none, in tokens; lm-eval's default."""


def load_transformers() -> Any:
    """Import transformers, when a model is loaded: the import of its models takes seconds."""
    import transformers

    # Loading is quick beside everything else here; its progress bar would only fill logs.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def model_config(directory: Path) -> "PreTrainedConfig":
    """Read the configuration as transformers' class for it.

    Raises InputError unless it is of a causal language model that this transformers knows.
    """
    model_type = read_json_object(directory / CONFIG_FILE).get("model_type")
    library = load_transformers()
    classes = library.CONFIG_MAPPING
    if model_type not in classes or classes[model_type] not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{directory}: model_type {short_repr(model_type)} is no causal language model that "
            f"transformers {version('transformers')} knows; use another model"
        )
    config: PreTrainedConfig = library.AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    return config


def vocabulary_size(directory: Path) -> int:
    """Return for how many tokens the model of a directory has logits.

    What config.json states is taken as it is: transformers is loaded only for a default of its own.
    Raises InputError as `model_config` does.
    """
    stated = read_json_object(directory / CONFIG_FILE).get("vocab_size")
    return stated if type(stated) is int else int(model_config(directory).vocab_size)


def context_tokens(config: Any) -> int:
    """Return the context length of the model of a configuration, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", DEFAULT_CONTEXT))
