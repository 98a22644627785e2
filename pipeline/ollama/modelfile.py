"""Write an Ollama Modelfile, and refuse text that its grammar cannot express.

The grammar has no escapes: a value is bare, in double quotes, or between two fences of three double
quotes. Text that contains such a fence is refused, and so is a stop token with characters that do
not print, because Ollama's reader drops them. The GGUF file contains the chat template, which
Ollama runs from version 0.30 on. For older versions the Modelfile has a Go template, where one is
tested to render the same. There is no SYSTEM: a default system message is part of the chat
template.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx and, for the grammar,
https://github.com/ollama/ollama/blob/main/parser/parser.go
"""

from dataclasses import dataclass
from typing import Final

from pipeline.core.errors import InputError
from pipeline.ollama.chat_families import GoTemplate

FENCE: Final = '"""'
RUNS_EMBEDDED_TEMPLATES: Final = "0.30.0"
# A key-value cache that fits beside a small model's weights; `PARAMETER num_ctx` is a start, and
# Ollama's own default does not fit models with a shorter context.
MAX_CONTEXT: Final = 8192

# Ollama's names of the sampling values of generation_config.json.
SAMPLING_PARAMETERS: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
}
WHOLE_NUMBERS: Final = ("top_k",)


@dataclass(frozen=True)
class ModelfileFacts:
    """Hold the values of a Modelfile.

    `stop` are the texts of the tokens that end an answer. The keys of `sampling` are those of
    SAMPLING_PARAMETERS. `context_tokens` is the longest context that the model was made for.
    `go_template` is None for a model without a chat template.
    """

    stop: tuple[str, ...]
    sampling: dict[str, float]
    context_tokens: int
    go_template: GoTemplate | None

    @property
    def needs_embedded_template(self) -> bool:
        """Tell whether the chat template inside the GGUF file is the only one."""
        return self.go_template is not None and self.go_template.text is None


def modelfile(gguf_file: str, facts: ModelfileFacts, *, license_text: str) -> str:
    """Return the text of a Modelfile that lies beside `gguf_file`.

    Raises InputError for a text that the grammar cannot express.
    """
    lines = [f"FROM {_bare('./' + gguf_file)}"]
    go = facts.go_template
    if go is not None and go.text is not None:
        lines.append(f"TEMPLATE {_fenced(go.text, what='the chat template')}")
    elif go is not None:
        lines += [f"# no TEMPLATE: {go.reason}", f"REQUIRES {RUNS_EMBEDDED_TEMPLATES}"]
    lines.append(f"PARAMETER num_ctx {min(facts.context_tokens, MAX_CONTEXT)}")
    for name, value in facts.sampling.items():
        number = f"{value:.0f}" if name in WHOLE_NUMBERS else f"{value:g}"
        lines.append(f"PARAMETER {SAMPLING_PARAMETERS[name]} {number}")
    lines += [f"PARAMETER stop {_quoted(text)}" for text in facts.stop]
    lines.append(f"LICENSE {_fenced(_printable(license_text), what='the license text')}")
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """Return a text without characters that Ollama's reader drops; odd spaces become plain."""
    kept_spaces = "\r\n\t"
    chars = (" " if char.isspace() and char not in kept_spaces else char for char in text.strip())
    return "".join(char for char in chars if char.isprintable() or char in kept_spaces)


def _bare(text: str) -> str:
    if not text.isprintable() or '"' in text:
        raise InputError(f"Modelfile: {text!r} cannot be written; rename the file")
    return text


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise InputError(
            f"Modelfile: the stop token {text!r} cannot be written; correct eos_token_id in "
            "generation_config.json"
        )
    return _fenced(text, what="the stop token") if '"' in text else f'"{text}"'


def _fenced(text: str, *, what: str) -> str:
    if FENCE in text:
        raise InputError(
            f"Modelfile: {what} contains {FENCE}, which the format cannot express; take the gguf "
            "variants out of params.yaml"
        )
    return f"{FENCE}{text}{FENCE}"
