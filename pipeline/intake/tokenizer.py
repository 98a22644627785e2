"""Compare the tokenizer as transformers loads it with tokenizer.json, and mend what differs.

transformers rebuilds parts of a tokenizer for some values of `tokenizer_class`, and then reads text
otherwise than the file says (https://github.com/huggingface/transformers/issues/45488). The file
was trained with the model, so the file is right.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object
from pipeline.checkpoint.names import TOKENIZER_CONFIG_FILE, TOKENIZER_FILES
from pipeline.checkpoint.reading import tokenizer_of
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import write_json
from pipeline.records.intake import Finding

CLASS_KEY = "tokenizer_class"
GENERAL_CLASS = "PreTrainedTokenizerFast"
"""transformers' class that takes tokenizer.json as it is."""
TOKENIZER_FILE = TOKENIZER_FILES[0]

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


def mend_tokenizer(directory: Path) -> Iterator[Finding]:
    """Let transformers load the tokenizer of a directory as tokenizer.json says.

    tokenizer_config.json is changed in place where that is needed. Without a tokenizer.json there
    is nothing to compare with. Raises InputError where transformers reads text otherwise whatever
    the class.
    """
    if not (directory / TOKENIZER_FILE).is_file():
        return
    wrong = text_read_otherwise(directory)
    if wrong is None:
        return
    path = directory / TOKENIZER_CONFIG_FILE
    config = read_json_object(path) if path.is_file() else {}
    stated = config.get(CLASS_KEY)
    write_json(path, config | {CLASS_KEY: GENERAL_CLASS})
    if still_wrong := text_read_otherwise(directory):
        raise InputError(
            f"{TOKENIZER_FILE}: transformers reads {short_repr(still_wrong)} otherwise than the "
            f"file says, as {short_repr(stated)} and as {GENERAL_CLASS}; {USE_ANOTHER}"
        )
    yield Finding(
        file=TOKENIZER_CONFIG_FILE,
        found=f"{CLASS_KEY} = {short_repr(stated)} makes transformers read {short_repr(wrong)} "
        f"otherwise than {TOKENIZER_FILE} says",
        done=f"written as {GENERAL_CLASS}, which takes the file as it is",
    )


def text_read_otherwise(directory: Path) -> str | None:
    """Find a text whose token ids differ between transformers' tokenizer and tokenizer.json."""
    of_file = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    of_file.no_truncation()
    of_file.no_padding()
    of_library = tokenizer_of(directory)
    for text in HARD_TEXTS:
        right = of_file.encode(text, add_special_tokens=False).ids
        if of_library.encode(text, add_special_tokens=False) != right:
            return text
    return None


def largest_token(directory: Path) -> tuple[int, str]:
    """Return the largest id of tokenizer.json, added tokens included, and its token."""
    tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    return max((number, token) for token, number in tokenizer.get_vocab().items())
