"""A GGUF release as Ollama sees it: a Docker manifest over the same weights, and its small layers.

The layers come from the package's own Modelfile: its parameters, license and, where there is one,
template and system text. A chat template inside the GGUF file needs no layer.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx,
https://github.com/ollama/ollama/blob/main/server/images.go and, of names,
https://github.com/ollama/ollama/blob/main/types/model/name.go
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from pipeline.core.errors import InputError, short_repr
from pipeline.oci.records import DOCKER_MANIFEST_TYPE, Descriptor, descriptor_of
from pipeline.records.release import PackageManifest

LAYER_TYPE: Final = "application/vnd.ollama.image."
MODEL_LAYER_TYPE: Final = LAYER_TYPE + "model"
CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
TEXT_LAYERS: Final = ("TEMPLATE", "SYSTEM", "LICENSE")
INTEGERS: Final = (
    "num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu",
    "main_gpu", "num_thread", "draft_num_predict",
)  # fmt: skip
FLOATS: Final = (
    "top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip
LISTS: Final = ("stop",)
COMMAND: Final = re.compile(
    r"(?P<command>[A-Z]+)[ \t]+(?:(?<=PARAMETER[ \t])(?P<name>[a-z_]+)[ \t]+)?"
    r'(?:"""(?P<block>.*?)"""|"(?P<quoted>[^"\n]*)"|(?P<bare>[^"\n][^\n]*))(?:\n|\Z)',
    re.DOTALL,
)
BETWEEN: Final = re.compile(r"(?:\s|#[^\n]*(?:\n|\Z))*")
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
LIBRARY: Final = "registry.ollama.ai/library"
"""Where Ollama keeps models that are named without a host."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Modelfile; `name` is that of a PARAMETER, else empty."""

    command: str
    name: str
    value: str


@dataclass(frozen=True)
class OllamaModel:
    """What Ollama pulls: the manifest, and the layers beside the weights with their types."""

    name: str
    tag: str
    manifest: bytes
    texts: tuple[tuple[bytes, str], ...]
    manifest_type: str = DOCKER_MANIFEST_TYPE


def read_modelfile(text: str) -> tuple[Instruction, ...]:
    """Return the instructions of a Modelfile that quantline wrote. Raises InputError for others."""
    found: list[Instruction] = []
    position = _next(text, 0)
    while position < len(text):
        match = COMMAND.match(text, position)
        if match is None:
            raise InputError(f"Modelfile: {short_repr(text[position:])} is no instruction")
        values = (match["block"], match["quoted"], match["bare"])
        value = next(value for value in values if value is not None)
        found.append(Instruction(match["command"], match["name"] or "", value))
        position = _next(text, match.end())
    return tuple(found)


def _next(text: str, position: int) -> int:
    """Return where the next instruction begins: empty lines and comments are passed over."""
    between = BETWEEN.match(text, position)
    return between.end() if between else position


def ollama_model(package: PackageManifest, modelfile: str) -> OllamaModel:
    """Return Ollama's manifest of a GGUF release. Raises InputError for a name it does not take."""
    if not MODEL_NAME.fullmatch(package.name):
        raise InputError(
            f"release.name = {package.name!r}: Ollama takes at most 80 letters, digits, dots, "
            "dashes and underscores"
        )
    instructions = read_modelfile(modelfile)
    weights = [file for file in package.files if file.path.endswith(".gguf")]
    if len(weights) != 1:
        raise InputError(f"{package.title}: {len(weights)} GGUF files, Ollama takes one")
    texts = [
        (instruction.value.encode(), LAYER_TYPE + instruction.command.lower())
        for command in TEXT_LAYERS
        for instruction in instructions
        if instruction.command == command
    ]
    if parameters := _parameters(instructions):
        texts.append((_go_json(parameters), LAYER_TYPE + "params"))
    config = _go_json(_config(package, instructions))
    layers = [
        Descriptor(media_type=MODEL_LAYER_TYPE, digest=weights[0].digest, size=weights[0].size),
        *(descriptor_of(data, media_type) for data, media_type in texts),
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST_TYPE,
        "config": _plain(descriptor_of(config, CONFIG_TYPE)),
        "layers": [_plain(layer) for layer in layers],
    }
    return OllamaModel(
        name=package.name,
        tag=ollama_tag(package),
        manifest=_go_json(manifest),
        texts=(*texts, (config, CONFIG_TYPE)),
    )


def ollama_tag(package: PackageManifest) -> str:
    """Return the tag, `1.2.0-q4_K_M`: as in Ollama's library, it begins in lower case."""
    letters = len(package.quantization) - len(package.quantization.lstrip("IQFB"))
    quantization = package.quantization
    return f"{package.version}-{quantization[:letters].lower()}{quantization[letters:]}"


def _parameters(instructions: tuple[Instruction, ...]) -> dict[str, object]:
    """Return the PARAMETER instructions with the types that Ollama gives them."""
    values: dict[str, object] = {}
    for instruction in instructions:
        if instruction.command != "PARAMETER":
            continue
        name, value = instruction.name, instruction.value
        try:
            if name in INTEGERS:
                values[name] = int(value)
            elif name in FLOATS:
                values[name] = float(value)
            elif name in LISTS:
                values[name] = [*values.get(name, []), value]  # type: ignore[misc]
            else:
                raise ValueError(name)
        except ValueError as error:
            raise InputError(
                f"Modelfile: PARAMETER {short_repr(name)} {short_repr(value)}: no parameter of "
                "Ollama"
            ) from error
    return values


def _config(package: PackageManifest, instructions: tuple[Instruction, ...]) -> dict[str, object]:
    config: dict[str, object] = {
        "model_format": "gguf",
        "model_family": package.model_type,
        "model_families": [package.model_type],
        "model_type": _human_number(package.num_parameters),
        "file_type": package.quantization,
    }
    for instruction in instructions:
        if instruction.command == "REQUIRES":
            config["requires"] = instruction.value
    return config | {"architecture": "amd64", "os": "linux"}


def _human_number(count: int) -> str:
    """Return a count as https://github.com/ollama/ollama/blob/main/format/format.go writes it."""
    for scale, letter, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if count >= scale:
            return (
                f"{count // scale}{letter}"
                if count % scale == 0
                else (f"{count / scale:.{digits}f}{letter}")
            )
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)


def _plain(layer: Descriptor) -> dict[str, object]:
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}


def _go_json(value: object) -> bytes:
    """Return JSON as Go's encoder writes it: compact, UTF-8, one line."""
    return (json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n").encode()
