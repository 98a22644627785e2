"""Write the bill of materials (BOM) of a package in CycloneDX, with the model as its subject.

cyclonedx-python-lib has no classes for `modelCard` and drops it, so the JSON is built here. Tests
check it with that library's strict validator. The same package gives the same bytes: the serial
number is derived from the manifest, and there is no time stamp.

Format: https://cyclonedx.org/docs/1.6/json/
"""

from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from pipeline.core.file_records import FileRecord
from pipeline.licensing.licenses import OWN_DATA
from pipeline.records.release import CalibrationReference, PackageManifest, ReleaseLicense
from pipeline.release.evidence import Evidence, Metric, metrics

SPEC_VERSION: Final = "1.6"
MODEL_REF: Final = "model"
BASE_REF: Final = "base"
CALIBRATION_REF: Final = "calibration"


def bill_of_materials(
    package: PackageManifest, evidence: Evidence, *, manifest_sha256: str
) -> dict[str, Any]:
    """Return the BOM as JSON values; `manifest_sha256` is of the package's manifest.json."""
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, manifest_sha256)}",
        "version": 1,
        "metadata": {
            "tools": {"components": _tools(evidence)},
            "component": _model(package, evidence, manifest_sha256),
        },
        "components": [_base(package), _calibration(package.calibration), *_files(package)],
        "dependencies": [
            {
                "ref": MODEL_REF,
                "dependsOn": [BASE_REF, CALIBRATION_REF, *map(_file_ref, package.files)],
            }
        ],
    }


def _tools(evidence: Evidence) -> list[dict[str, str]]:
    """List the programs that made the files and the engine that scored them, with versions."""
    evaluation = evidence.evaluation
    tools = {*evidence.variant.tools.items(), (evaluation.backend, evaluation.backend_version)}
    return [
        {"type": "application", "name": name, "version": version} for name, version in sorted(tools)
    ]


def _model(package: PackageManifest, evidence: Evidence, manifest_sha256: str) -> dict[str, Any]:
    notes = f"{package.quantization} by {package.quantizer}"
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": MODEL_REF,
        "supplier": {"name": package.quantized_by},
        "name": f"{package.name}-{package.variant}",
        "version": package.version,
        "description": f"{package.base.name} quantized with {package.quantizer}",
        "hashes": [_sha256(manifest_sha256)],
        "licenses": _licenses(package.license),
        "pedigree": {"ancestors": [_base_identity(package)], "notes": notes},
        "modelCard": _model_card(package, evidence),
        "properties": [
            _property("license.expression", package.license.expression),
            _property("license.text.sha256", package.license.text_sha256),
            _property("release.audience", package.audience.value),
            _property("release.commercial", str(package.commercial).lower()),
            _property("bits_per_weight", f"{package.bits_per_weight:.4f}"),
        ],
    }
    if package.license.display_text:
        model["properties"].append(_property("license.display", package.license.display_text))
    if package.license.notice_text:
        model["copyright"] = package.license.notice_text
    if package.license.use_policy_url:
        model["externalReferences"] = [
            {"type": "other", "url": package.license.use_policy_url, "comment": "use policy"}
        ]
    return model


def _model_card(package: PackageManifest, evidence: Evidence) -> dict[str, Any]:
    return {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": evidence.base.architecture,
            "datasets": [{"ref": CALIBRATION_REF}],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [_metric(metric) for metric in metrics(evidence.evaluation)]
        },
        "considerations": {
            "technicalLimitations": [
                f"Quantized to {package.bits_per_weight:.2f} bits per weight: answers differ from "
                "those of the base model.",
                f"Made for at most {evidence.context_tokens} tokens of context.",
            ],
            "ethicalConsiderations": [
                {"name": condition} for condition in package.license.conditions
            ],
        },
    }


def _metric(metric: Metric) -> dict[str, Any]:
    row: dict[str, Any] = {
        "type": metric.name,
        "value": f"{metric.value:.6g}",
        "slice": metric.dataset,
    }
    if metric.low is not None and metric.high is not None:
        row["confidenceInterval"] = {
            "lowerBound": f"{metric.low:.6g}",
            "upperBound": f"{metric.high:.6g}",
        }
    return row


def _base_identity(package: PackageManifest) -> dict[str, Any]:
    base: dict[str, Any] = {"type": "machine-learning-model", "name": package.base.name}
    if package.base.revision is not None:
        base["version"] = package.base.revision
        base["purl"] = f"pkg:huggingface/{package.base.name}@{package.base.revision}"
    return base


def _base(package: PackageManifest) -> dict[str, Any]:
    return {
        **_base_identity(package),
        "bom-ref": BASE_REF,
        "licenses": _licenses(package.license),
        "properties": [_property("files.sha256", package.base.digest)],
    }


def _calibration(calibration: CalibrationReference) -> dict[str, Any]:
    data: dict[str, Any] = {
        "type": "data",
        "bom-ref": CALIBRATION_REF,
        "name": calibration.name,
        "data": [{"type": "dataset", "name": "calibration text"}],
        "properties": [
            _property("text.sha256", calibration.text_sha256),
            *(_property("license.condition", text) for text in calibration.conditions),
        ],
    }
    if calibration.license != OWN_DATA:
        data["licenses"] = [{"expression": calibration.license}]
    return data


def _files(package: PackageManifest) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "bom-ref": _file_ref(file),
            "name": file.path,
            "hashes": [_sha256(file.sha256)],
        }
        for file in package.files
    ]


def _file_ref(file: FileRecord) -> str:
    return f"file:{file.path}"


def _licenses(license: ReleaseLicense) -> list[dict[str, Any]]:
    """Name a license by its SPDX identifier, else by its name with a link to its text."""
    if license.link is None:
        return [{"license": {"id": license.expression}}]
    return [{"license": {"name": license.name, "url": license.link}}]


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"quantline:{name}", "value": value}
