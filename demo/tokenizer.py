"""The demo model's tokenizer: a byte-level BPE trained on the demo world's own text.

Byte-level means that every string round-trips. The pre-tokenizer is GPT-2's, unchanged, because
llama.cpp implements exactly that one (it calls it "gpt-2"). Digits stay single without a special
pre-tokenizer: merges are learned on text whose digits are already apart, so no merge contains one.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from demo.world import BOS, EOS, ROLES

VOCABULARY_SIZE: Final = 1280
CONTEXT_LENGTH: Final = 2048
PAD: Final = "<|pad|>"
SPECIAL_TOKENS: Final = (BOS, EOS, PAD, *ROLES)

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] in ['system', 'user', 'assistant'] -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}"
    "{%- else -%}"
    "{{ raise_exception('Roles must be system, user or assistant') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a tokenizer of `VOCABULARY_SIZE` tokens; it puts BOS before every text it encodes."""
    tokenizer = Tokenizer(BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    without_special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    tokenizer.train_from_iterator((without_special.sub("\n", text) for text in texts), trainer)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, model_dir: Path) -> None:
    """Write tokenizer.json and the configuration files that Hugging Face tools expect."""
    tokenizer.save(str(model_dir / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    write_json(model_dir / "special_tokens_map.json", special)
    write_json(
        model_dir / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "additional_special_tokens": list(ROLES),
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT_LENGTH,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write readable JSON, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
