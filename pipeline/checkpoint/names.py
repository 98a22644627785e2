"""Choose the files of a checkpoint by their names.

Only files that are needed to run and to release a model are taken: weights in safetensors, the
configuration, the tokenizer, the model card and legal texts. This is an allow-list, so that files
that can carry code (pickles, Python files) are not taken under a new name. No file is opened here.
"""

import re
from collections.abc import Collection

from pipeline.core.errors import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CARD_FILE = "README.md"
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
TEXT_SECTION = "text_config"
"""The key of a configuration of several parts that holds the one of its text model."""
CODE_KEY = "auto_map"
"""The key of a configuration that names Python code of the repository."""

# Names as transformers writes them: https://huggingface.co/docs/transformers
SIDECAR_FILES = frozenset(
    {
        CONFIG_FILE,
        INDEX_FILE,
        *TOKENIZER_FILES,
        TOKENIZER_CONFIG_FILE,
        CARD_FILE,
        *PROCESSOR_FILES,
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
# LICENSE, LICENSE.md, LICENSE-2.0, LICENSE-MODEL, MODEL_LICENSE
_WHOSE = r"([A-Za-z0-9]{1,40}[_-])?"
_NAMED = r"([_-][A-Za-z0-9_-]{1,40}(\.\d+)*)?(\.(txt|md))?"
LEGAL_FILE = re.compile(
    rf"({_WHOSE}LICEN[SC]E|COPYING|NOTICE|USE_POLICY|ACCEPTABLE_USE){_NAMED}", re.IGNORECASE
)
LICENSE_TEXT = re.compile(rf"({_WHOSE}LICEN[SC]E|COPYING){_NAMED}", re.IGNORECASE)
OF_WEIGHTS, OF_CODE = {"model", "models", "weight", "weights"}, {"code", "software", "source"}
OF_OTHERS = {"third", "thirdparty", "data", "dataset", "datasets"}
NUMBERED_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
WEIGHTS_SUFFIX = ".safetensors"
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT writes beside the weights of an adapter: https://huggingface.co/docs/peft"""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHER_WEIGHTS = (".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".safetensors")
CODE_SUFFIX = ".py"


def is_taken(name: str) -> bool:
    """Tell whether a file of that name may be part of the base."""
    return name.endswith(WEIGHTS_SUFFIX) or bool(sidecar_names([name]))


def sidecar_names(names: Collection[str]) -> tuple[str, ...]:
    """List the files to take besides the weights, sorted: an index only where it is read."""
    taken = {name for name in names if name in SIDECAR_FILES or LEGAL_FILE.fullmatch(name)}
    if WEIGHTS_FILE in names:
        taken.discard(INDEX_FILE)
    return tuple(sorted(taken))


def license_texts(names: Collection[str]) -> tuple[str, ...]:
    """List the files that may have the text of the weights' license, the shortest name first.

    Names that say so, as LICENSE-MODEL does, are preferred to a plain LICENSE, LICENCE or COPYING,
    and these to LICENSE-THIRD-PARTY. The license of the code is never that of the weights.
    """
    texts = {
        name: set(re.split("[-_.]", name.lower())) for name in names if LICENSE_TEXT.fullmatch(name)
    }
    others = [name for name, words in texts.items() if not words & OF_CODE]
    stated = [name for name, words in texts.items() if words & OF_WEIGHTS]
    unsaid = [name for name in others if not texts[name] & OF_OTHERS]
    return tuple(sorted(stated or unsaid or others, key=lambda name: (len(name), name)))


def weight_names(names: Collection[str], *, shards: Collection[str] | None) -> tuple[str, ...]:
    """List the weight files to take, sorted.

    `shards` are the files that the index names, None without an index. One whole model.safetensors
    is preferred to shards, as in transformers; then an index is not read. Shards that are numbered
    from 1 to their count need no index. Raises InputError when there are no such weights.
    """
    if WEIGHTS_FILE in names:
        return (WEIGHTS_FILE,)
    namer = INDEX_FILE if shards is not None else "the count of the others"
    if shards is None:
        shards = _numbered_shards(names)
    for shard in sorted(shards):
        if shard not in names:
            raise InputError(
                f"{shard}: missing, though {namer} names it; the checkpoint is incomplete: use "
                "another revision or ask its owner"
            )
    if shards:
        return tuple(sorted(shards))
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise InputError(
            f"{pickles[0]}: weights as a pickle, which can run code when it is read; expected "
            f"{WEIGHTS_FILE} or {INDEX_FILE}: use a safetensors revision or conversion of the model"
        )
    others = sorted(name for name in names if name.endswith((WEIGHTS_SUFFIX, ".gguf")))
    raise InputError(
        f"no weights: expected {WEIGHTS_FILE} or {INDEX_FILE} among the files, found "
        f"{', '.join(others[:3]) or 'no other in safetensors'}; save the model with transformers' "
        "save_pretrained, or use another checkpoint or revision"
    )


def _numbered_shards(names: Collection[str]) -> tuple[str, ...]:
    """Name every shard of which the files have at least one, by the count in its name."""
    counts = {match[2] for name in names if (match := NUMBERED_SHARD.fullmatch(name))}
    if len(counts) != 1:
        return ()
    (count,) = counts
    return tuple(
        f"model-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)
    )
