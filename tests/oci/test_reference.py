"""References as operators write them."""

from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.oci.reference import LayoutPath, Reference, Server, parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.3-awq", Reference(None, "1.2.3-awq")),
        ("prod", Reference(None, "prod")),
        (DIGEST, Reference(None, DIGEST)),
        ("h.test/a/b:1", Reference(Server("https://h.test", "a/b"), "1")),
        ("h.test:5000/a/b:1", Reference(Server("https://h.test:5000", "a/b"), "1")),
        ("h.test:5000/a/b", Reference(Server("https://h.test:5000", "a/b"), None)),
        (f"h.test/a@{DIGEST}", Reference(Server("https://h.test", "a"), DIGEST)),
        ("localhost:5000/a:1", Reference(Server("http://localhost:5000", "a"), "1")),
        ("https://localhost:5000/a:1", Reference(Server("https://localhost:5000", "a"), "1")),
        ("http://h.test/a:1", Reference(Server("http://h.test", "a"), "1")),
        ("oci:some/dir:1", Reference(LayoutPath(Path("some/dir")), "1")),
        ("oci:some/dir", Reference(LayoutPath(Path("some/dir")), None)),
        (f"oci:/abs@{DIGEST}", Reference(LayoutPath(Path("/abs")), DIGEST)),
    ],
)
def test_a_reference_has_a_place_and_a_name(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:b", "oci:", "h.test/", "h.test/A:1", "https://u:p@h.test/a:1", "h.test/a:t t",
     "h.test/../a:1", "ftp://h.test/a:1", "h.test/a\n:1", "-", "@" + DIGEST],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected TAG, HOST/REPOSITORY:TAG"):
        parse_reference(text)
