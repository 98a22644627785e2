"""Seeded mutations of the small files of a checkpoint, and of the header of its weights.

A mutation changes one file: a value of its JSON, its text, some of its bytes, or what it is on the
disk. The same files and the same random numbers make the same mutation.
"""

import json
import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.odd_values import ODD_CARDS, ODD_JSON, ODD_TEMPLATES, ODD_VALUES

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS, INDEX = "special_tokens_map.json", "model.safetensors.index.json"
TEMPLATE, CARD = "chat_template.jinja", "README.md"
LENGTH = struct.Struct("<Q")
RAW = "@raw@"
"""Stands in a JSON value for text that Python's writer of JSON would not write."""


class OnDisk(StrEnum):
    """What is in the place of a file."""

    NOTHING = "nothing"
    DIRECTORY = "a directory"
    LINK_TO_NOTHING = "a link to nothing"
    LINK_TO_ITSELF = "a link to itself"
    LINK_TO_DEVICE = "a link to /dev/zero"
    UNREADABLE = "a file without permissions"


@dataclass(frozen=True)
class Mutation:
    """A file of a checkpoint, what it has instead of its content, and what was changed in words."""

    file: str
    content: bytes | OnDisk
    what: str

    def apply(self, directory: Path) -> None:
        """Write the mutation into the checkpoint of a directory."""
        path = directory / self.file
        path.unlink(missing_ok=True)
        match self.content:
            case OnDisk.DIRECTORY:
                path.mkdir()
            case OnDisk.LINK_TO_NOTHING:
                path.symlink_to(directory / "not-there")
            case OnDisk.LINK_TO_ITSELF:
                path.symlink_to(path)
            case OnDisk.LINK_TO_DEVICE:
                path.symlink_to("/dev/zero")
            case OnDisk.UNREADABLE:
                path.write_bytes(b"{}")
                path.chmod(0)
            case bytes(data):
                path.write_bytes(data)


Mutator = Callable[[str, bytes, Random], tuple[bytes | OnDisk, str]]


def mutated(files: Mapping[str, bytes], chance: Random) -> Mutation:
    """Choose one of `files`, contents by name, and mutate it; of weights only the header."""
    ((names, mutator, _),) = chance.choices(KINDS, [often for _, _, often in KINDS])
    if names == WEIGHTS:
        names = tuple(name for name in files if name.endswith(".safetensors"))
    file = chance.choice([name for name in names if name in files] or [CONFIG])
    content, what = mutator(file, files[file], chance)
    return Mutation(file, content, what)


def odd_value(file: str, data: bytes, chance: Random) -> tuple[bytes, str]:
    """Put an odd value in the place of one or several values of a JSON file."""
    value = json.loads(data)
    raws: list[str] = []
    changes = []
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        parent, key = chosen_place(value, chance)
        choices = ODD_VALUES.get(str(key), ()) if chance.random() < 0.6 else ()
        name, raw = chance.choice(choices or tuple(ODD_JSON.items()))
        raws.append(raw)
        parent[key] = RAW
        changes.append(f"{key} = {name}")
    return with_raws(value, raws), ", ".join(changes)


def another_structure(file: str, data: bytes, chance: Random) -> tuple[bytes, str]:
    """Remove, repeat, rename, add or exchange keys of a JSON file."""
    value = json.loads(data)
    parent, key = chosen_place(value, chance)
    match chance.randrange(6):
        case 0:
            del parent[key]
            return json.dumps(value).encode(), f"without {key}"
        case 1 if isinstance(parent, dict):
            text = json.dumps(value)
            twice = f"{json.dumps(key)}: {chance.choice(list(ODD_JSON.values()))}, "
            return text.replace("{", "{" + twice, 1).encode(errors="replace"), f"{key} twice"
        case 2:
            other, other_key = chosen_place(value, chance)
            values = deepcopy(other[other_key]), deepcopy(parent[key])
            parent[key], other[other_key] = values
            return json.dumps(value).encode(), f"{key} and {other_key} exchanged"
        case 3 if isinstance(parent, dict):
            new_key = chance.choice(["\ud800", "", "a\nb", "\x1b[31m", "__class__", "x" * 100_000])
            parent[new_key] = parent.pop(key)
            return json.dumps(value).encode(), f"{key} renamed {new_key[:10]!r}"
        case 4:
            extra = chance.choice([name for name in ODD_VALUES if name not in value])
            name, raw = chance.choice(ODD_VALUES[extra])
            target = value if isinstance(value, dict) else parent
            target[extra if isinstance(target, dict) else 0] = RAW
            return with_raws(value, [raw]), f"with {extra} = {name}"
        case _:
            parent[key] = {"value": parent[key]} if chance.random() < 0.5 else [parent[key]]
            return json.dumps(value).encode(), f"{key} one level deeper"


def another_top(file: str, data: bytes, chance: Random) -> tuple[bytes, str]:
    """Let a JSON file hold another value than an object."""
    name, raw = chance.choice(list(ODD_JSON.items()))
    return raw.encode(errors="surrogatepass"), f"{name} alone"


def odd_bytes(file: str, data: bytes, chance: Random) -> tuple[bytes, str]:
    """Change a file without regard to what it holds."""
    place = chance.randrange(len(data) + 1)
    match chance.randrange(9):
        case 0:
            return data[:place], f"cut at byte {place}"
        case 1:
            return b"", "empty"
        case 2:
            return b"\xef\xbb\xbf" + data, "with a byte order mark"
        case 3:
            return data[:place] + b"\xff\xfe" + data[place:], f"not UTF-8 at byte {place}"
        case 4:
            return data.decode().encode("utf-16"), "in UTF-16"
        case 5:
            changed = bytearray(data)
            for _ in range(chance.choice([1, 1, 3, 20])):
                changed[chance.randrange(len(data))] = chance.randrange(256)
            return bytes(changed), "some bytes changed"
        case 6:
            end = min(len(data), place + chance.randrange(1, 200))
            return data[:place] + data[end:], f"bytes {place} to {end} removed"
        case 7:
            return data[:place] + bytes(chance.randrange(1, 50)) + data[place:], "with zero bytes"
        case _:
            return data + data, "twice"


def on_disk(file: str, data: bytes, chance: Random) -> tuple[OnDisk, str]:
    """Put something else in the place of a file."""
    kind = chance.choice(list(OnDisk))
    return kind, str(kind)


def odd_template(file: str, data: bytes, chance: Random) -> tuple[bytes, str]:
    """Write another chat template, or add to the one that is there."""
    name, template = chance.choice(list(ODD_TEMPLATES.items()))
    before = data if chance.random() < 0.2 else b""
    return before + template.encode(errors="surrogatepass"), f"template: {name}"


def odd_card(file: str, data: bytes, chance: Random) -> tuple[bytes, str]:
    """Write another front matter of the model card."""
    name, front = chance.choice(list(ODD_CARDS.items()))
    return f"---\n{front}\n---\n# A card\n".encode(errors="surrogatepass"), name


def odd_header(file: str, data: bytes, chance: Random) -> tuple[bytes, str]:
    """Change the header of a safetensors file: its JSON, its length or its bytes."""
    (length,) = LENGTH.unpack(data[: LENGTH.size])
    header, tensors = data[LENGTH.size : LENGTH.size + length], data[LENGTH.size + length :]
    if chance.random() < 0.3:
        stated = chance.choice([0, 1, length - 1, length + 1, len(data), 10**8, 2**63, 2**64 - 1])
        return LENGTH.pack(stated) + header + tensors, f"header of {stated} bytes stated"
    mutator = chance.choice([odd_value, odd_value, another_structure, another_top, odd_bytes])
    changed, what = mutator("", header, chance)
    return LENGTH.pack(len(changed)) + changed + tensors, f"header: {what}"


def chosen_place(value: Any, chance: Random) -> tuple[Any, Any]:
    """Choose a list or object inside of a JSON value, and a key or number in it.

    Keys near the top are more likely than the thousands of a vocabulary below.
    """
    place, key = value, chance.choice(list(value))
    while chance.random() < 0.6 and isinstance(inner := place[key], dict | list) and inner:
        place = inner
        key = (
            chance.choice(list(inner)) if isinstance(inner, dict) else chance.randrange(len(inner))
        )
    return place, key


def with_raws(value: Any, raws: list[str]) -> bytes:
    """Write a JSON value, with the texts `raws` where RAW stands in it."""
    text = json.dumps(value)
    for raw in raws:
        text = text.replace(f'"{RAW}"', raw, 1)
    return text.encode(errors="surrogatepass")


SETTINGS = (CONFIG, GENERATION, TOKENIZER_CONFIG, SPECIAL_TOKENS)
JSON_FILES = (*SETTINGS, CONFIG, TOKENIZER, INDEX)
WEIGHTS = ("*.safetensors",)
ANY_FILE = (*JSON_FILES, TEMPLATE, CARD)
KINDS: tuple[tuple[tuple[str, ...], Mutator, int], ...] = (
    ((CONFIG,), odd_value, 8),
    ((TOKENIZER,), odd_value, 6),
    ((TOKENIZER_CONFIG,), odd_value, 4),
    ((INDEX,), odd_value, 2),
    ((GENERATION, SPECIAL_TOKENS), odd_value, 2),
    ((CONFIG, TOKENIZER, TOKENIZER_CONFIG), another_structure, 6),
    ((GENERATION, SPECIAL_TOKENS, INDEX), another_structure, 2),
    (JSON_FILES, another_top, 3),
    (ANY_FILE, odd_bytes, 6),
    (ANY_FILE, on_disk, 2),
    ((TEMPLATE,), odd_template, 3),
    ((CARD,), odd_card, 2),
    (WEIGHTS, odd_header, 4),
)
"""Which files a way to mutate is for, and how often it is chosen beside the others."""
