"""Write the provenance of a package: an in-toto statement with SLSA's predicate.

It names by digest everything that the release depends on: the commits of the base model and of this
program, the statistics, the variant, its evaluations, the benchmark and the decision. Somebody who
has only the package can check its files; somebody who has the records can check all digests.

Formats: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and
https://slsa.dev/spec/v1.0/provenance
"""

from typing import Any, Final

from pipeline.records.release import MANIFEST_FILE, PackageManifest
from pipeline.release.evidence import Evidence

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:quantline:release:v1"
BUILDER_ID: Final = "urn:quantline"


def provenance(
    package: PackageManifest,
    evidence: Evidence,
    *,
    manifest_sha256: str,
    program_version: str,
    program_commit: str | None,
) -> dict[str, Any]:
    """Return the statement as JSON values.

    `program_commit` is the commit of this program's repository, followed by `-dirty` when a tracked
    file was changed; None where there is no repository.
    """
    params, variant = evidence.params, evidence.variant
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": MANIFEST_FILE, "digest": {"sha256": manifest_sha256}},
            *({"name": f.path, "digest": {"sha256": f.sha256}} for f in package.files),
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "variant": {variant.name: variant.recipe.model_dump(mode="json")},
                    "gate": params.gate.model_dump(mode="json"),
                    "release": {
                        "name": package.name,
                        "version": package.version,
                        "audience": package.audience.value,
                        "commercial": package.commercial,
                    },
                },
                "internalParameters": {
                    "tools": variant.tools,
                    "verdict": evidence.verdict.verdict.value,
                    "reasons": list(evidence.verdict.reasons),
                    "license": _license(package, evidence),
                },
                "resolvedDependencies": _dependencies(package, evidence, program_commit),
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID, "version": {"quantline": program_version}},
                "metadata": {},
                "byproducts": [
                    {
                        "name": file.path,
                        "digest": {"sha256": file.sha256},
                        "annotations": {"stage": file.stage},
                    }
                    for file in evidence.files
                ],
            },
        },
    }


def _license(package: PackageManifest, evidence: Evidence) -> dict[str, Any]:
    """Return the license and, where a person decided on it, when and on which text."""
    decision = evidence.base.applied_license.decision
    decided = {"decidedOn": decision.decided_on.isoformat()} if decision else {}
    return {
        "expression": package.license.expression,
        "textSha256": package.license.text_sha256,
        **decided,
    }


def _dependencies(
    package: PackageManifest, evidence: Evidence, program_commit: str | None
) -> list[dict[str, Any]]:
    """List the inputs by digest: the program, the base, and the texts that were read."""
    rows: list[dict[str, Any]] = []
    if program_commit is not None:
        commit = program_commit.removesuffix("-dirty")
        row: dict[str, Any] = {"name": "quantline", "digest": {"gitCommit": commit}}
        if commit != program_commit:
            row["annotations"] = {"changed": True}
        rows.append(row)
    base: dict[str, Any] = {"name": package.base.name, "digest": {"sha256": package.base.digest}}
    if package.base.revision is not None:
        base["uri"] = f"pkg:huggingface/{package.base.name}@{package.base.revision}"
        base["digest"]["gitCommit"] = package.base.revision
    rows.append(base)
    texts = {
        f"calibration text: {package.calibration.name}": package.calibration.text_sha256,
        "calibration statistics": package.statistics_digest,
        "held-out text": evidence.evaluation.text_sha256,
        "license text": package.license.text_sha256,
    }
    return rows + [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in texts.items()]
