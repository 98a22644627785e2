"""Load the tokenizer of a checkpoint. No code from a model repository is ever run.

Of the two ways, the common one is quick: a checkpoint whose tokenizer is of no class of its own is
all in tokenizer.json. Models and weights are read in `pipeline.checkpoint.reading`.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from pipeline.checkpoint.names import TOKENIZER_CONFIG_FILE
from pipeline.core.errors import InputError

GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Values of `tokenizer_class` for what tokenizer.json says and nothing else."""


def tokenizer_of(directory: Path) -> Any:
    """Load the tokenizer of a model directory. Raises InputError when there is none that loads."""
    logging.set_verbosity_error()
    try:
        if _is_generic(directory):
            return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        # Imported where it is needed: it brings the code of all models, which takes six seconds.
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{directory}: no tokenizer that loads: {reason}") from error


def _is_generic(directory: Path) -> bool:
    """Tell whether AutoTokenizer would read tokenizer.json alone, as far as the files say."""
    path = directory / TOKENIZER_CONFIG_FILE
    if not path.is_file() or not (directory / "tokenizer.json").is_file():
        return False
    settings = json.loads(path.read_bytes())
    return (
        isinstance(settings, dict)
        and settings.get("tokenizer_class") in GENERIC_CLASSES
        and "auto_map" not in settings
    )
