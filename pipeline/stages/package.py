"""Package each approved variant as a self-contained directory.

It has the weights, tokenizer and configuration as they were evaluated, the license and NOTICE, a
model card with the results, and a Modelfile for a GGUF file. `manifest.json` names every file and
every input by digest. Beside the directory lie its bill of materials, its provenance and, with a
key, its signature. The same inputs give the same bytes, but for signatures, which contain a random
number.
"""

import json
from collections.abc import Iterable
from importlib.metadata import version
from math import prod
from pathlib import Path

from pipeline.checkpoint.names import CARD_FILE, LEGAL_FILE
from pipeline.core.file_records import FileRecord
from pipeline.core.files import (
    file_record,
    new_directory,
    read_record,
    write_bytes,
    write_record,
)
from pipeline.core.progress import note
from pipeline.core.workspace import Workspace
from pipeline.licensing.licenses import require_allowed, require_data_allowed
from pipeline.licensing.reading import read_text
from pipeline.ollama.modelfile import ModelfileFacts, modelfile
from pipeline.ollama.modelfile_facts import read_modelfile_facts
from pipeline.params.params import GgufParams, Params
from pipeline.records.base import BaseManifest
from pipeline.records.licenses import LICENSE_FILE
from pipeline.records.release import (
    BOM_SUFFIX,
    GENERATED_FILES,
    MANIFEST_FILE,
    MODELFILE,
    NOTICE_FILE,
    PROVENANCE_SUFFIX,
    SIGNATURE_SUFFIX,
    PackageEntry,
    PackageIndex,
    PackageManifest,
)
from pipeline.records.selection import Selection
from pipeline.records.wording import base_reference
from pipeline.release.bill_of_materials import bill_of_materials
from pipeline.release.card_facts import calibration_reference, quantization_name, release_license
from pipeline.release.evidence import Evidence
from pipeline.release.evidence_reading import read_evidence
from pipeline.release.model_card import render_card
from pipeline.release.notice import notice_text, unchanged_files
from pipeline.release.package_files import copy_verified, write_license
from pipeline.release.provenance import provenance
from pipeline.release.signing import public_key_sha256, sign_files
from pipeline.release.source_commit import source_commit


def run(workspace: Workspace, params: Params) -> None:
    """Write a directory for each approved variant, and their index.

    Packages of variants that are no longer approved are removed. Raises InputError when a license
    forbids the release, when a file is not the one that was evaluated, or when the key cannot sign.
    """
    selection = read_record(Selection, workspace.selection_path, made_by="select")
    facts = read_modelfile_facts(workspace.base_dir)
    key = params.release.signing_key
    key_sha256 = public_key_sha256(workspace.root / key) if key is not None else None
    approved = [
        read_evidence(workspace, params, name, context_tokens=facts.context_tokens)
        for name in selection.approved()
    ]
    for evidence in approved:
        require_allowed(evidence.rule, params.release)
        require_data_allowed(evidence.calibration_rule, params.release)
    commit = source_commit()
    with new_directory(workspace.packages_dir) as partial:
        entries = []
        for evidence in approved:
            note(f"package: {evidence.variant.name}")
            entry = _write(
                workspace, evidence, facts, partial, key_sha256=key_sha256, program_commit=commit
            )
            entries.append(entry)
        index_path = partial / workspace.packages_path.name
        write_record(index_path, PackageIndex(packages=tuple(entries)))


def _write(
    workspace: Workspace,
    evidence: Evidence,
    facts: ModelfileFacts,
    packages_dir: Path,
    *,
    key_sha256: str | None,
    program_commit: str | None,
) -> PackageEntry:
    """Write the package of one variant and the evidence beside it."""
    name = evidence.variant.name
    target = packages_dir / name
    target.mkdir()
    copied = (
        *_copy_model(workspace, evidence, target),
        *_copy_legal_files(workspace, evidence.base, target),
    )
    package = _manifest(evidence, copied, key_sha256=key_sha256)
    texts = _write_texts(workspace, evidence, facts, package, target)
    package = package.model_copy(update={"files": _sorted((*copied, *texts))})
    write_record(target / MANIFEST_FILE, package)
    manifest_file = file_record(target / MANIFEST_FILE, target)
    return PackageEntry(
        variant=name,
        manifest_sha256=manifest_file.sha256,
        evidence=_write_evidence(
            workspace, evidence, package, target, manifest_file, program_commit=program_commit
        ),
        num_files=len(package.files) + 1,
        size_bytes=sum(file.size for file in package.files),
    )


def _copy_model(workspace: Workspace, evidence: Evidence, target: Path) -> tuple[FileRecord, ...]:
    """Copy the variant's files and verify them; return their records."""
    name = evidence.variant.name
    left_out = (*GENERATED_FILES, evidence.base.license.text_path)
    files = tuple(file for file in evidence.variant.files if file.path not in left_out)
    for file in files:
        copy_verified(
            file,
            workspace.model_dir(name),
            target,
            remedy=f"delete {workspace.variant_dir(name)} and run `dvc repro` again",
        )
    return files


def _copy_legal_files(
    workspace: Workspace, base: BaseManifest, target: Path
) -> tuple[FileRecord, ...]:
    """Copy the license as LICENSE, and policies under their names; return their records."""
    write_license(workspace, base, target / LICENSE_FILE)
    copied = [file_record(target / LICENSE_FILE, target)]
    for file in base.files:
        if (
            LEGAL_FILE.fullmatch(file.path)
            and not _is_notice(file)
            and file.path != base.license.text_path
            and not (target / file.path).exists()
        ):
            copy_verified(file, workspace.base_dir, target, remedy="run `quantline fetch` again")
            copied.append(file)
    return tuple(copied)


def _manifest(
    evidence: Evidence, files: tuple[FileRecord, ...], *, key_sha256: str | None
) -> PackageManifest:
    """Return the manifest of `files`, which were copied. The texts are added when they exist."""
    variant, release = evidence.variant, evidence.params.release
    return PackageManifest(
        name=release.name,
        version=release.version,
        variant=variant.name,
        format=variant.recipe.format,
        quantization=quantization_name(variant.recipe),
        quantizer=variant.quantizer,
        bits_per_weight=variant.bits_per_weight,
        num_parameters=sum(prod(tensor.shape) for tensor in variant.coverage),
        model_type=evidence.model_type,
        languages=evidence.languages,
        quantized_by=release.quantized_by,
        audience=release.audience,
        commercial=release.commercial,
        license=release_license(
            evidence.rule,
            release,
            text_sha256=next(file.sha256 for file in files if file.path == LICENSE_FILE),
        ),
        calibration=calibration_reference(evidence.statistics, evidence.calibration_rule),
        base=base_reference(evidence.base),
        statistics_digest=variant.statistics_digest,
        variant_digest=variant.digest,
        evaluation_sha256=evidence.sha256_of(f"evaluations/{variant.name}/evaluation.json"),
        signing_key_sha256=key_sha256,
        files=_sorted(files),
    )


def _write_texts(
    workspace: Workspace,
    evidence: Evidence,
    facts: ModelfileFacts,
    package: PackageManifest,
    target: Path,
) -> list[FileRecord]:
    """Write NOTICE, README.md and, for a GGUF file, the Modelfile; return their records."""
    unchanged = unchanged_files(evidence.base, package.files)
    changed = tuple(
        file.path for file in package.files if file.path not in (*unchanged, LICENSE_FILE)
    )
    upstream_notices = tuple(
        read_text(workspace.base_dir / file.path)
        for file in evidence.base.files
        if _is_notice(file)
    )
    notice = notice_text(
        package, changed=changed, unchanged=unchanged, upstream_notices=upstream_notices
    )
    texts = {NOTICE_FILE: notice}
    weights = [file.path for file in package.files if file.path.endswith((".gguf", ".safetensors"))]
    if isinstance(evidence.variant.recipe, GgufParams):
        license_text = read_text(target / LICENSE_FILE)
        texts[MODELFILE] = modelfile(weights[0], facts, license_text=license_text)
    texts[CARD_FILE] = render_card(
        package,
        evidence,
        weight_file=weights[0],
        needs_embedded_template=facts.needs_embedded_template,
    )
    for name, text in texts.items():
        write_bytes(target / name, text.encode())
    return [file_record(target / name, target) for name in texts]


def _is_notice(file: FileRecord) -> bool:
    """Tell whether a file of the base is a notice; its text goes into the package's NOTICE."""
    return file.path.upper().startswith(NOTICE_FILE)


def _sorted(files: Iterable[FileRecord]) -> tuple[FileRecord, ...]:
    return tuple(sorted(files, key=lambda file: file.path))


def _write_evidence(
    workspace: Workspace,
    evidence: Evidence,
    package: PackageManifest,
    target: Path,
    manifest_file: FileRecord,
    *,
    program_commit: str | None,
) -> tuple[FileRecord, ...]:
    """Write the evidence beside the package in `target`; return the records of these files."""
    bom = bill_of_materials(package, evidence, manifest_sha256=manifest_file.sha256)
    statement = provenance(
        package,
        evidence,
        manifest_sha256=manifest_file.sha256,
        program_version=version("quantline"),
        program_commit=program_commit,
    )
    paths = [_beside(target, BOM_SUFFIX), _beside(target, PROVENANCE_SUFFIX)]
    for path, values in zip(paths, (bom, statement), strict=True):
        write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
    key = evidence.params.release.signing_key
    if key is not None:
        paths.append(_beside(target, SIGNATURE_SUFFIX))
        files = (*package.files, manifest_file)
        sign_files(files, workspace.root / key, paths[-1], name=target.name)
    return tuple(file_record(path, target.parent) for path in paths)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)
