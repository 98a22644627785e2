"""Write the NOTICE file of a package: changes, demands of the licenses, the base's notices."""

from collections.abc import Mapping

from pipeline.core.file_records import FileRecord
from pipeline.licensing.licenses import OWN_DATA
from pipeline.records.base import BaseManifest
from pipeline.records.release import CalibrationReference, PackageManifest


def unchanged_files(base: BaseManifest, files: tuple[FileRecord, ...]) -> tuple[str, ...]:
    """Return the names of the files that equal those of the base, byte for byte."""
    originals: Mapping[str, str] = {file.path: file.sha256 for file in base.files}
    return tuple(file.path for file in files if originals.get(file.path) == file.sha256)


def notice_text(
    package: PackageManifest,
    *,
    changed: tuple[str, ...],
    unchanged: tuple[str, ...],
    upstream_notices: tuple[str, ...],
) -> str:
    """Return the text of NOTICE.

    The Apache License 2.0, section 4 (b) and (d), asks for the statement of changes and the base's
    notices. The licenses of Llama, Gemma and Qwen ask for sentences in a file of this name.
    """
    base, terms = package.base, package.license
    revision = f" at revision {base.revision}" if base.revision else ""
    parts = [
        f"{package.title} is a modified copy of {base.name}{revision} "
        f"(sha256 of its files: {base.digest}).",
        f"Changed by {package.quantized_by}: the weights were quantized with "
        f"{package.quantizer} to {package.bits_per_weight:.2f} bits per weight "
        f"({package.quantization}).",
        f"Changed files: {', '.join(changed)}.",
    ]
    if unchanged:
        parts.append(f"Unchanged files: {', '.join(unchanged)}.")
    parts += [terms.display_text or "", terms.notice_text or ""]
    if terms.use_policy_url:
        parts.append(
            f"The use of this copy is subject to the policy at {terms.use_policy_url}, which is "
            f"part of the {terms.name}."
        )
    parts += terms.conditions
    parts.append(calibration_notice(package.calibration))
    parts += [f"The notice of {base.name}:\n\n{text.strip()}" for text in upstream_notices]
    return "\n\n".join(part for part in parts if part) + "\n"


def calibration_notice(calibration: CalibrationReference) -> str:
    """Return the credit to the calibration data; empty for the user's own data."""
    if calibration.license == OWN_DATA:
        return ""
    conditions = " ".join(("", *calibration.conditions))
    return (
        f"The quantization was calibrated on {calibration.name}, under {calibration.license}; the "
        f"release contains none of it.{conditions}"
    )
