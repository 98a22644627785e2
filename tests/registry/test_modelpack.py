"""ModelPack manifests: types by file name, sizes as the specification writes them."""

from pathlib import Path

import pytest

from pipeline.registry.modelpack import ModelConfig, layer_type, model_config, param_size
from tests.registry_server import package_manifest


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.safetensors", "weight"),
        ("sub/model-00001-of-00002.safetensors", "weight"),
        ("model.gguf", "weight"),
        ("tokenizer.json", "weight.config"),
        ("merges.txt", "weight.config"),
        ("Modelfile", "weight.config"),
        ("README.md", "doc"),
        ("LICENSE", "doc"),
        ("NOTICE", "doc"),
        ("manifest.json", "doc"),
    ],
)
def test_a_layer_has_the_type_of_its_file(path: str, kind: str) -> None:
    assert layer_type(path) == f"application/vnd.cncf.model.{kind}.v1.raw"


@pytest.mark.parametrize(
    ("count", "text"),
    [(900, "0.9k"), (12_000, "12k"), (3_140_000, "3.1m"), (8_030_000_000, "8b"), (10**12, "1t")],
)
def test_parameters_are_counted_as_modelpack_does(count: int, text: str) -> None:
    assert param_size(count) == text


def test_the_config_has_no_nulls_and_no_time(tmp_path: Path) -> None:
    package = package_manifest(tmp_path, "awq-w4-g128")
    local = package.model_copy(update={"base": package.base.model_copy(update={"revision": None})})
    text = model_config(local, ()).to_bytes().decode()
    assert "null" not in text
    assert "created" not in text


@pytest.mark.parametrize("revision", [None, "0" * 40])
def test_a_config_is_read_back_as_it_was(tmp_path: Path, revision: str | None) -> None:
    package = package_manifest(tmp_path, "awq-w4-g128")
    base = package.base.model_copy(update={"revision": revision})
    config = model_config(package.model_copy(update={"base": base}), ())
    assert ModelConfig.from_untrusted(config.to_bytes(), source="config") == config
