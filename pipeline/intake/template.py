"""Leave one chat template in a checkpoint: the one that transformers uses.

transformers prefers chat_template.jinja to the key of tokenizer_config.json, and its tokenizers do
not read chat_template.json. llama.cpp's converter prefers the key, even where it is null, and reads
both files (https://github.com/ggml-org/llama.cpp/pull/14508).
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoint.chat_rendering import require_renderable
from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object
from pipeline.checkpoint.names import TOKENIZER_CONFIG_FILE
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import write_bytes, write_json
from pipeline.records.intake import Finding

TEMPLATE_KEY = "chat_template"
TEMPLATE_FILE = "chat_template.jinja"
PROCESSOR_FILE = "chat_template.json"


def mend_template(directory: Path) -> Iterator[Finding]:
    """Let every tool find the same template; files of `directory` are changed in place.

    Raises InputError for a template that is no text in UTF-8, or cannot be rendered.
    """
    config_path = directory / TOKENIZER_CONFIG_FILE
    config = read_json_object(config_path) if config_path.is_file() else {}
    template_path = directory / TEMPLATE_FILE
    if template_path.is_file():
        try:
            template = template_path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{TEMPLATE_FILE}: not UTF-8; get the file again") from error
        require_renderable(template, file=TEMPLATE_FILE)
        if TEMPLATE_KEY in config and config[TEMPLATE_KEY] != template:
            del config[TEMPLATE_KEY]
            write_json(config_path, config)
            yield Finding(
                file=TOKENIZER_CONFIG_FILE,
                found=f"{TEMPLATE_KEY} is another template than {TEMPLATE_FILE}",
                done=f"removed: transformers uses {TEMPLATE_FILE}, and so does everything here",
            )
    elif config.get(TEMPLATE_KEY) is None and (directory / PROCESSOR_FILE).is_file():
        only = read_json_object(directory / PROCESSOR_FILE).get(TEMPLATE_KEY)
        if isinstance(only, str):
            require_renderable(only, file=PROCESSOR_FILE)
            write_bytes(template_path, only.encode())
            config.pop(TEMPLATE_KEY, None)
            write_json(config_path, config)
            yield Finding(
                file=PROCESSOR_FILE,
                found="has the only chat template, where transformers' tokenizers do not look",
                done=f"written as {TEMPLATE_FILE}",
            )
    else:
        for template in _stated_templates(config.get(TEMPLATE_KEY)):
            require_renderable(template, file=TOKENIZER_CONFIG_FILE)


def _stated_templates(value: object) -> tuple[str, ...]:
    """Return the templates of the key: one, or a list of objects with a name and a template each.

    Raises InputError for a value of another type.
    """
    if value is None:
        return ()
    named = value if isinstance(value, list) else [{"name": "default", "template": value}]
    templates = [entry.get("template") for entry in named if isinstance(entry, dict)]
    texts = tuple(template for template in templates if isinstance(template, str))
    if len(texts) < len(named) or not all(isinstance(entry.get("name"), str) for entry in named):
        raise InputError(
            f"{TOKENIZER_CONFIG_FILE}: {TEMPLATE_KEY} = {short_repr(value)}, expected a text or a "
            f"list of names and templates; {USE_ANOTHER}"
        )
    return texts
