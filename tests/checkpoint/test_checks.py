"""What is accepted as a checkpoint, and what each refusal says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.checks import (
    check_headers,
    check_tokenizer,
    read_config,
    read_shards,
    takes_more_than_text,
)
from pipeline.checkpoint.names import INDEX_FILE, WEIGHTS_FILE
from pipeline.checkpoint.safetensors_header import TensorInfo, read_header
from pipeline.core.errors import InputError
from tests.models import tiny_llama
from tests.support import shared_dir

FIRST_SHARD = "model-00001-of-00002.safetensors"
SECOND_SHARD = "model-00002-of-00002.safetensors"


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes a key."""
    value: dict[str, Any] = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: it for key, it in value.items() if it is not None}))


def headers(directory: Path) -> dict[str, dict[str, TensorInfo]]:
    return {path.name: read_header(path) for path in sorted(directory.glob("*.safetensors"))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "sharded", shards=2)


def test_a_whole_checkpoint_passes(model: Path) -> None:
    config = read_config(model)
    assert (config.architecture, config.model_type) == ("LlamaForCausalLM", "llama")
    check_tokenizer(model)
    assert read_shards(model) is None
    tensors = check_headers(headers(model))
    assert set(tensors) == set(load_file(model / WEIGHTS_FILE))


def test_a_whole_sharded_checkpoint_passes(sharded: Path) -> None:
    shards = read_shards(sharded)
    assert shards is not None
    tensors = check_headers(headers(sharded))
    assert set(tensors) == set().union(*shards.values())


def test_a_real_checkpoint_passes() -> None:
    path = shared_dir() / "models/babyllama-105"
    assert read_config(path).architecture == "LlamaForCausalLM"
    check_tokenizer(path)
    assert "model.embed_tokens.weight" in check_headers(headers(path))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": None}, "config.json: architectures = None, expected a list such as"),
        ({"architectures": []}, r"config.json: architectures = \[\], expected a list"),
        ({"architectures": "Llama"}, "config.json: architectures = 'Llama', expected a list"),
        ({"architectures": [1]}, r"config.json: architectures = \[1\], expected a list"),
        ({"model_type": None}, "config.json: model_type = None, expected a name such as"),
        (
            {"quantization_config": {"bits": 4}},
            "config.json: has quantization_config, so it is quantized already; use the full-prec",
        ),
        ({"compression_config": {}}, "config.json: has compression_config, so it is quantized"),
    ],
)
def test_a_config_is_refused(model: Path, changes: dict[str, object], expected: str) -> None:
    edit(model / "config.json", **changes)
    with pytest.raises(InputError, match=expected):
        read_config(model)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{", "config.json: not valid JSON in UTF-8; get the file again"),
        (b"\xff\xfe", "config.json: not valid JSON in UTF-8"),
        (b"[" * 100_000, "config.json: not valid JSON in UTF-8"),
        (b"[]", "config.json: expected a JSON object"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(
    model: Path, text: bytes, expected: str
) -> None:
    (model / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=expected):
        read_config(model)


def test_a_missing_config_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json: missing; use another checkpoint"):
        read_config(model)


def test_a_missing_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer: expected tokenizer.json or tokenizer.mod"):
        check_tokenizer(model)


def test_a_sentencepiece_tokenizer_is_enough(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    check_tokenizer(model)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"{}"])
def test_a_damaged_tokenizer_is_refused(model: Path, damage: Callable[[bytes], bytes]) -> None:
    path = model / "tokenizer.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"tokenizer.json: the tokenizers library cannot read it"):
        check_tokenizer(model)


def test_a_tokenizer_with_code_of_its_own_is_refused(model: Path) -> None:
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]})
    with pytest.raises(InputError, match=r"tokenizer_config.json: has auto_map"):
        check_tokenizer(model)


@pytest.mark.parametrize(
    "file",
    [
        "../outside.safetensors",
        "/etc/x.safetensors",
        "a\\b.safetensors",
        "x.bin",
        "x/y.safetensors",
    ],
)
def test_an_index_that_names_another_place_is_refused(sharded: Path, file: str) -> None:
    edit(sharded / INDEX_FILE, weight_map={"a": file})
    with pytest.raises(
        InputError, match=r"index.json: tensor 'a' is in .*, expected a file such as"
    ):
        read_shards(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map_is_refused(sharded: Path, weight_map: object) -> None:
    edit(sharded / INDEX_FILE, weight_map=weight_map)
    with pytest.raises(InputError, match=r"index.json: weight_map = .*, expected an object"):
        read_shards(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    again = load_file(sharded / FIRST_SHARD)["model.embed_tokens.weight"]
    second = load_file(sharded / SECOND_SHARD)
    save_file(second | {"model.embed_tokens.weight": again}, sharded / SECOND_SHARD)
    with pytest.raises(InputError, match=f"'model.embed_tokens.weight' is in {FIRST_SHARD} too"):
        check_headers(headers(sharded))


def test_quantized_tensors_are_refused(model: Path) -> None:
    save_file({"a": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, model / WEIGHTS_FILE)
    with pytest.raises(InputError, match="tensor 'a' has dtype F8_E4M3, so the model is quantized"):
        check_headers(headers(model))


@pytest.mark.parametrize("tensors", [{}, {"a": torch.zeros(4, dtype=torch.int32)}])
def test_weights_without_a_floating_point_tensor_are_refused(
    model: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, model / WEIGHTS_FILE)
    with pytest.raises(InputError, match="no tensor in floating point"):
        check_headers(headers(model))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [({}, False), ({"vision_config": {}}, True), ({"audio_config": {}}, True),
     ({"vision_config": None}, False)],
)  # fmt: skip
def test_parts_for_more_than_text_are_seen(
    model: Path, sections: dict[str, object], expected: bool
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **sections}))
    assert takes_more_than_text(model) is expected
