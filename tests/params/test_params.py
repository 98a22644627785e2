"""The parameters as values: what their types promise to the stages."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.core.workspace import PARAMS_FILE
from pipeline.params.params import (
    VARIANT_NAME,
    Audience,
    AwqParams,
    CompressedTensorsParams,
    GgufParams,
    GgufType,
    GptqParams,
    Params,
    RegistryParams,
    ReleaseParams,
    Rounding,
)
from pipeline.params.reading import read_params
from tests.support import ROOT

PARAMS = read_params(ROOT / PARAMS_FILE)


def test_a_round_trip_through_json_changes_nothing() -> None:
    assert Params.from_bytes(PARAMS.to_bytes(), source="params") == PARAMS


def test_variants_keep_their_order() -> None:
    names = list(json.loads(PARAMS.to_bytes())["variants"])
    assert list(PARAMS.variants) == names


def test_the_format_picks_the_kind_of_a_variant() -> None:
    kinds = {
        "awq": AwqParams,
        "gptq": GptqParams,
        "compressed-tensors": CompressedTensorsParams,
        "gguf": GgufParams,
    }
    assert {variant.format for variant in PARAMS.variants.values()} == set(kinds)
    for variant in PARAMS.variants.values():
        assert type(variant) is kinds[variant.format]


# One of the two is there.
ALTERNATIVES = (
    "GgufParams.type",
    "GgufParams.budget",
    "CompressedTensorsParams.scheme",
    "CompressedTensorsParams.budget",
)


def test_no_section_has_a_default() -> None:
    """A default lives in params.yaml alone."""
    for name, field in Params.model_fields.items():
        assert field.is_required(), name
    sections = [value for _, value in PARAMS if hasattr(type(value), "model_fields")]
    for section in [*sections, *PARAMS.variants.values()]:
        for name, field in type(section).model_fields.items():
            key = f"{type(section).__name__}.{name}"
            assert field.is_required() or key in ALTERNATIVES, key


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        PARAMS.model.source = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["awq-w4-g128", "a", "0", "x1-2-y"])
def test_kebab_case_names(name: str) -> None:
    assert VARIANT_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a--b", "A", "a_b", "a.b", "a/b", "..", "a\n", "é"]
)
def test_names_that_are_no_kebab_case(name: str) -> None:
    assert not VARIANT_NAME.fullmatch(name)


def release(**changes: str) -> ReleaseParams:
    values: dict[str, Any] = {
        "name": "x",
        "version": "1.0.0",
        "quantized_by": "us",
        "audience": Audience.PUBLIC,
        "commercial": True,
        "signing_key": None,
    }
    return ReleaseParams(**{**values, **changes})


@pytest.mark.parametrize("version", ["0.1.0", "10.20.30", "1.2.3-rc.1"])
def test_versions(version: str) -> None:
    assert release(version=version).version == version


@pytest.mark.parametrize(
    "version", ["1", "1.2", "v1.2.3", "1.2.3\n", "1.2.3+b", "1.2.3 ", "1.2.3-"]
)
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(ValidationError, match="expected a semantic version"):
        release(version=version)


@pytest.mark.parametrize("url", ["https://registry.example.org", "http://127.0.0.1:5000", None])
def test_registries(url: str | None) -> None:
    assert RegistryParams(url=url, repository="a/b").url == url


@pytest.mark.parametrize(
    "url",
    ["host", "https://", "https://a/b", "https://u:p@a", "https://a b", "HTTP://a", "https://a\n"],
)
def test_what_is_no_registry(url: str) -> None:
    with pytest.raises(ValidationError, match="expected https://HOST"):
        RegistryParams(url=url, repository="a/b")


@pytest.mark.parametrize("field", ["quantized_by"])
def test_text_is_stripped_and_never_empty(field: str) -> None:
    assert getattr(release(**{field: "  us "}), field) == "us"
    with pytest.raises(ValidationError):
        release(**{field: "  "})


def test_enumerations_are_their_text() -> None:
    assert Rounding("gptq") is Rounding.GPTQ
    assert {str(it) for it in GgufType} == {it.name for it in GgufType}
