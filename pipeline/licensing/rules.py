"""Read the rules for licenses from `rules.yaml` beside this file."""

import json
from functools import cache
from importlib.resources import files

from ruamel.yaml import YAML

from pipeline.licensing.rule import LicenseRules


@cache
def license_rules() -> LicenseRules:
    """Return all rules. Raises InputError for a rule that is malformed."""
    text = (files("pipeline.licensing") / "rules.yaml").read_text(encoding="utf-8")
    rules = json.dumps({"rules": YAML(typ="safe", pure=True).load(text)})
    return LicenseRules.from_bytes(rules.encode(), source="licensing/rules.yaml")
