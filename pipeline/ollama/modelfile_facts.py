"""Read the values of a Modelfile from a checkpoint's own files.

The files are untrusted. A value of the wrong type is refused, and the message names it.
"""

from math import isfinite
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.checkpoint.checks import read_json_object, text_values
from pipeline.checkpoint.names import CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILES
from pipeline.core.errors import InputError, short_repr
from pipeline.ollama.chat_template import ChatTemplate
from pipeline.ollama.modelfile import SAMPLING_PARAMETERS, ModelfileFacts

GENERATION_FILE = "generation_config.json"
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
MAX_ID = 1 << 32  # of the tokenizers library


def read_modelfile_facts(model_dir: Path) -> ModelfileFacts:
    """Return the facts of the Hugging Face checkpoint in `model_dir`. Raises InputError."""
    stated = read_json_object(model_dir / CONFIG_FILE)
    config = {**stated, **text_values(stated)}
    generation = _optional(model_dir / GENERATION_FILE)
    context_tokens = config.get("max_position_embeddings")
    if not isinstance(context_tokens, int) or context_tokens < 1:
        raise InputError(
            f"{CONFIG_FILE}: max_position_embeddings = {short_repr(context_tokens)}, expected the "
            "number of tokens the model was made for"
        )
    stop = _stop_texts(model_dir, generation.get("eos_token_id", config.get("eos_token_id")))
    template = ChatTemplate(model_dir) if has_chat_template(model_dir) else None
    end_of_turn = template.end_of_turn() if template else None
    return ModelfileFacts(
        stop=tuple(dict.fromkeys((*stop, end_of_turn))) if end_of_turn else stop,
        sampling=_sampling(generation),
        context_tokens=context_tokens,
        go_template=template.go_template() if template else None,
    )


def has_chat_template(model_dir: Path) -> bool:
    """Tell whether the tokenizer of a checkpoint has a chat template."""
    inside = _optional(model_dir / TOKENIZER_CONFIG_FILE).get("chat_template") is not None
    return inside or any((model_dir / name).is_file() for name in CHAT_TEMPLATE_FILES)


def _optional(path: Path) -> dict[str, object]:
    return read_json_object(path) if path.is_file() else {}


def _stop_texts(model_dir: Path, eos_token_id: object) -> tuple[str, ...]:
    """Return the texts of the end-of-text tokens; none where there is no tokenizer.json."""
    ids = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    path = model_dir / TOKENIZER_FILES[0]
    if eos_token_id is None or not path.is_file():
        return ()
    tokenizer = Tokenizer.from_file(str(path))
    texts = []
    for token_id in ids:
        text = None
        # Ids may have gaps: some are larger than the number of tokens.
        if isinstance(token_id, int) and 0 <= token_id < MAX_ID:
            text = tokenizer.id_to_token(token_id)
        if not text:
            raise InputError(
                f"{GENERATION_FILE}: eos_token_id = {short_repr(token_id)}, expected the id of a "
                f"token of {path.name}"
            )
        texts.append(text)
    return tuple(dict.fromkeys(texts))


def _sampling(generation: dict[str, object]) -> dict[str, float]:
    """Return the sampling values that are set; `do_sample: false` means a temperature of 0."""
    if generation.get("do_sample") is False:
        return {"temperature": 0.0}
    sampling = {}
    for name in SAMPLING_PARAMETERS:
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise InputError(f"{GENERATION_FILE}: {name} = {short_repr(value)}, expected a number")
        sampling[name] = float(value)
    return sampling
