"""Load the tokenizer of a checkpoint. No code from a model repository is ever run.

tokenizer.json was trained with the model, so what it says is right. transformers rebuilds parts of
a tokenizer for some values of `tokenizer_class` and then reads text otherwise
(https://github.com/huggingface/transformers/issues/45488).
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object, read_tokenizer_file
from pipeline.checkpoint.library_errors import readable_library_errors
from pipeline.checkpoint.names import CODE_KEY, TOKENIZER_CONFIG_FILE, TOKENIZER_FILES
from pipeline.core.errors import short_repr
from pipeline.core.transformers_library import load_transformers

TOKENIZER_FILE = TOKENIZER_FILES[0]
CLASS_KEY = "tokenizer_class"
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Values of `tokenizer_class` for what tokenizer.json says and nothing else."""

HARD_TEXTS = (
    "a b\n  c",
    " two leading  and trailing spaces  ",
    "tab\tand\r\nlines\n\n\n\nend",
    "0 12 345 6789 1234567890 3.14 1e-9",
    "don't you're I'LL they'd",
    "naïve café façade Ångström",
    "cafe\u0301 A\u030angstro\u0308m",  # the same letters as base and mark: normal form D
    "ﬁne ² Ⅷ ｆｕｌｌ",  # compatibility forms
    "日本語のテキスト 中文文本 한국어",
    "Привет мир שלום עולם مرحبا",
    "🙂 👩‍👩‍👧‍👦 🇪🇺",
    "def f(x):\n    return x == 1  # comment",
    "zero\u200bwidth and nbsp\u00a0here",
    "<s> </s> <|endoftext|> <|im_start|>user [INST] <unk> ▁ Ġ",
)


def tokenizer_of(directory: Path) -> Any:
    """Load the tokenizer of a model directory, which reads text as its tokenizer.json says.

    Raises InputError when there is none that loads.
    """
    if not _is_generic(directory):
        tokenizer = library_tokenizer(directory)
        if text_read_otherwise(directory, tokenizer) is None:
            return tokenizer
    return generic_tokenizer(directory)


def generic_tokenizer(directory: Path) -> Any:
    """Load tokenizer.json as it is, with the tokens that other files add.

    Raises InputError when it does not load.
    """
    return _loaded(PreTrainedTokenizerFast, directory)


def library_tokenizer(directory: Path) -> Any:
    """Load the tokenizer that transformers, and so vLLM, chooses for a model directory.

    Raises InputError when there is none that loads.
    """
    # Imported where it is needed: it brings the code of all models, which takes six seconds.
    return _loaded(load_transformers().AutoTokenizer, directory, trust_remote_code=False)


def _loaded(kind: Any, directory: Path, **options: bool) -> Any:
    logging.set_verbosity_error()
    with readable_library_errors(f"{directory}: no tokenizer that loads", USE_ANOTHER):
        return kind.from_pretrained(directory, local_files_only=True, **options)


def text_read_otherwise(directory: Path, tokenizer: Any) -> str | None:
    """Find a text to which `tokenizer` gives other ids than tokenizer.json; None without one.

    Raises InputError where one of the two cannot read a text at all.
    """
    if not (directory / TOKENIZER_FILE).is_file():
        return None
    of_file = read_tokenizer_file(directory)
    of_file.no_truncation()
    of_file.no_padding()
    for text in HARD_TEXTS:
        with readable_library_errors(
            f"{TOKENIZER_FILE}, {TOKENIZER_CONFIG_FILE}: reading {short_repr(text)} fails",
            USE_ANOTHER,
        ):
            right = of_file.encode(text, add_special_tokens=False).ids
            ids = tokenizer.encode(text, add_special_tokens=False)
        if ids != right:
            return text
    return None


def _is_generic(directory: Path) -> bool:
    """Tell whether AutoTokenizer would read tokenizer.json alone, as far as the files say."""
    path = directory / TOKENIZER_CONFIG_FILE
    if not path.is_file() or not (directory / TOKENIZER_FILE).is_file():
        return False
    settings = read_json_object(path)
    return settings.get(CLASS_KEY) in GENERIC_CLASSES and CODE_KEY not in settings
