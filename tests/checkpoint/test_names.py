"""Which files are taken, by name alone."""

import pytest

from pipeline.checkpoint.names import (
    INDEX_FILE,
    WEIGHTS_FILE,
    license_texts,
    sidecar_names,
    weight_names,
)
from pipeline.core.errors import InputError
from pipeline.params.hub_source import HubSource, parse_hub_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.pt",
        "modeling_llama.py",
        "data.pkl",
        "training_args.bin",
        "LICENSE.py",
        "LICENSE-x.bin",
        "LICENSE/../x",
        "NOTICE.so.1",
        "tokenizer.json.py",
        "sub/config.json",
        "consolidated.safetensors",
        ".gitattributes",
        "x.gguf",
    ],
)
def test_nothing_else_is_taken(name: str) -> None:
    assert sidecar_names([name]) == ()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "license.md",
        "LICENCE",
        "NOTICE",
        "USE_POLICY.md",
        "LICENSE-2.0",
        "COPYING",
        "LICENSE-MODEL",
        "MODEL_LICENSE",
        "LICENSE-CODE",
    ],
)
def test_what_a_release_needs_is_taken(name: str) -> None:
    assert sidecar_names([name]) == (name,)


def test_one_whole_file_of_weights_wins() -> None:
    names = [WEIGHTS_FILE, "a.safetensors", "consolidated.safetensors"]
    assert weight_names(names, shards=["a.safetensors"]) == (WEIGHTS_FILE,)


def test_the_shards_of_the_index_are_taken_and_no_others() -> None:
    names = ["b.safetensors", "a.safetensors", "consolidated.safetensors"]
    shards = ["b.safetensors", "a.safetensors"]
    assert weight_names(names, shards=shards) == ("a.safetensors", "b.safetensors")


def test_a_missing_shard_is_named() -> None:
    with pytest.raises(InputError) as caught:
        weight_names(["a.safetensors"], shards=["a.safetensors", "b.safetensors"])
    assert str(caught.value) == (
        f"b.safetensors: missing, though {INDEX_FILE} names it; the checkpoint is incomplete: use "
        "another revision or ask its owner"
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "x.ckpt", "x.pkl"])
def test_only_pickled_weights_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: weights as a pickle, which can run code"):
        weight_names(["config.json", name], shards=None)


def test_no_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"no weights: expected model.safetensors or model.safet"):
        weight_names(["config.json", "x.gguf"], shards=None)


def test_reads_a_pinned_source() -> None:
    source = parse_hub_source(f"hf:org/name@{COMMIT}")
    assert source == HubSource("org/name", COMMIT)
    assert source.is_pinned
    assert str(source) == f"hf:org/name@{COMMIT}"


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("hf:org/name", "main"),
        ("hf:org/name@", "main"),
        ("hf:org/name@v1.0", "v1.0"),
        ("hf:org/name@refs/pr/1", "refs/pr/1"),
        (f"hf:org/name@{COMMIT[:7]}", COMMIT[:7]),
        (f"hf:org/name@{COMMIT.upper()}", COMMIT.upper()),
    ],
)
def test_anything_but_a_full_commit_is_not_pinned(source: str, revision: str) -> None:
    parsed = parse_hub_source(source)
    assert parsed.revision == revision
    assert not parsed.is_pinned


@pytest.mark.parametrize(
    "source",
    [
        "hf:",
        "hf:name",
        "hf:a/b/c",
        "hf:/b",
        "hf:../b@main",
        "hf:a/b@..",
        "hf:a/b@x y",
        "hf:a b/c",
        "hf:a/b@main\nx",
        "hf:a/-b",
        "hf:a/b@@x",
    ],
)
def test_a_malformed_source_is_one_line(source: str) -> None:
    with pytest.raises(InputError, match=r"model.source = .*: expected hf:ORG/NAME@COMMIT"):
        parse_hub_source(source)


def test_an_index_beside_a_whole_file_is_not_taken() -> None:
    assert sidecar_names([INDEX_FILE, WEIGHTS_FILE]) == ()
    assert sidecar_names([INDEX_FILE]) == (INDEX_FILE,)


def test_numbered_shards_need_no_index() -> None:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert weight_names(names, shards=None) == tuple(names)
    expected = f"{names[1]}: missing, though the count of the others names it; the checkpoint"
    with pytest.raises(InputError, match=expected):
        weight_names([names[0], names[2]], shards=None)


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (["LICENSE", "NOTICE", "README.md"], ("LICENSE",)),
        (["LICENSE-CODE", "LICENSE-MODEL"], ("LICENSE-MODEL",)),
        (["LICENSE", "MODEL_LICENSE"], ("MODEL_LICENSE",)),
        (["LICENSE.txt", "LICENSE-CODE"], ("LICENSE.txt",)),
        (["LICENSE-CODE"], ()),
        (["LICENSE", "LICENSE-third-party.txt"], ("LICENSE",)),
        (["LICENSE-THIRD-PARTY"], ("LICENSE-THIRD-PARTY",)),
        (["LICENSE-APACHE-2.0", "LICENSE-MIT"], ("LICENSE-MIT", "LICENSE-APACHE-2.0")),
    ],
)
def test_the_license_of_the_weights_counts(names: list[str], texts: tuple[str, ...]) -> None:
    assert license_texts(names) == texts
    assert license_texts(names[::-1]) == texts
