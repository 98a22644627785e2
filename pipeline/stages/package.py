"""package: each approved variant becomes a directory that stands for itself.

Weights, tokenizer and configuration as they were evaluated, the license and what it demands, a
model card with the results, a Modelfile for llama.cpp files, and `manifest.json`, which names
every file and everything it was made from. The same inputs give the same bytes.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from pipeline.adapters.checkpoint_files import read_config
from pipeline.adapters.files import (
    directory_records,
    file_sha256,
    new_directory,
    read_bytes,
    write_bytes,
    write_record,
)
from pipeline.adapters.manifest_file import read_base_manifest
from pipeline.adapters.model_card import read_languages, render_card
from pipeline.adapters.modelfile import read_modelfile_facts
from pipeline.adapters.package_files import copy_verified, read_text
from pipeline.adapters.progress import note
from pipeline.domain.checkpoint import CARD_FILE, LEGAL_FILE
from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import EvaluationRecord, Selection
from pipeline.domain.layout import BASE, Layout
from pipeline.domain.licenses import LicenseRule, Redistribution, resolve
from pipeline.domain.manifest import BaseManifest, FileRecord
from pipeline.domain.model_card import (
    base_reference,
    display_text,
    notice_text,
    quantization_name,
    release_license,
    result_rows,
    unchanged_files,
)
from pipeline.domain.modelfile import modelfile
from pipeline.domain.params import GgufParams, Params
from pipeline.domain.quantized import VariantRecord
from pipeline.domain.record import sha256_hex
from pipeline.domain.release import (
    GENERATED_FILES,
    LICENSE_FILE,
    MANIFEST_FILE,
    MODELFILE,
    NOTICE_FILE,
    PackageEntry,
    PackageIndex,
    PackageManifest,
)


@dataclass(frozen=True)
class Source:
    """What one package is made from, read and checked against each other."""

    base: BaseManifest
    rule: LicenseRule
    selection: Selection
    base_evaluation: EvaluationRecord
    variant: VariantRecord
    evaluation: EvaluationRecord
    evaluation_sha256: str


def run(layout: Layout, params: Params) -> None:
    """Write a directory for each approved variant, and their index.

    Raises InputError when the license forbids the release, or when a file is not the one that was
    evaluated. Packages of variants that are no longer approved disappear.
    """
    selection = Selection.from_bytes(
        read_bytes(layout.selection_path, made_by="select"), source=str(layout.selection_path)
    )
    base = read_base_manifest(layout)
    rule = resolve(base.license, params.model.license)
    sources = [
        _source(layout, base, rule, selection, name, params) for name in selection.approved()
    ]
    with new_directory(layout.packages_dir) as partial:
        entries = []
        for source in sources:
            note(f"package: {source.variant.name}")
            entries.append(_write(layout, params, source, partial / source.variant.name))
        index_path = partial / layout.packages_path.name
        write_record(index_path, PackageIndex(packages=tuple(entries)))


def _source(
    layout: Layout,
    base: BaseManifest,
    rule: LicenseRule,
    selection: Selection,
    name: str,
    params: Params,
) -> Source:
    _require_releasable(base, rule, params)
    path = layout.variant_path(name)
    variant = VariantRecord.from_bytes(read_bytes(path, made_by="quantize"), source=str(path))
    base_evaluation, _ = _evaluation(layout, BASE)
    evaluation, evaluation_sha256 = _evaluation(layout, name)
    if variant.base_digest != base.digest:
        raise InputError(f"{path}: made from another base; run `quantline quantize {name}` again")
    if {evaluation.artifact_digest, selection.variants[name].artifact_digest} != {variant.digest}:
        raise InputError(
            f"{path}: not the files that were evaluated and approved; run `dvc repro` again"
        )
    return Source(base, rule, selection, base_evaluation, variant, evaluation, evaluation_sha256)


def _evaluation(layout: Layout, name: str) -> tuple[EvaluationRecord, str]:
    path = layout.evaluation_path(name)
    data = read_bytes(path, made_by="evaluate")
    return EvaluationRecord.from_bytes(data, source=str(path)), sha256_hex(data)


def _require_releasable(base: BaseManifest, rule: LicenseRule, params: Params) -> None:
    """Raise InputError where the license forbids what is about to be done."""
    if rule.redistribute is Redistribution.NO:
        raise InputError(f"license {rule.id!r}: forbids passing on a quantized copy")
    if base.license.text_path is None:
        raise InputError(
            f"{base.source}: no LICENSE file, and the {rule.name} has to travel with every copy; "
            "put the checkpoint into a directory with its LICENSE and name it in model.source"
        )
    if rule.name_prefix and not params.release.name.startswith(rule.name_prefix):
        raise InputError(
            f"release.name = {params.release.name!r}: the {rule.name} wants a name that begins "
            f"with {rule.name_prefix!r}"
        )


def _write(layout: Layout, params: Params, source: Source, target: Path) -> PackageEntry:
    """Fill `target`, which does not exist yet, with the package of one variant."""
    name, variant = source.variant.name, source.variant
    target.mkdir()
    for file in variant.files:
        if file.path not in (*GENERATED_FILES, source.base.license.text_path):
            copy_verified(
                file,
                layout.model_dir(name),
                target,
                remedy=f"delete {layout.variant_dir(name)} and run `dvc repro` again",
            )
    upstream_notices = _copy_legal_files(layout, source.base, target)
    files = directory_records(target)
    package = _manifest(layout, params, source, files)
    _write_texts(layout, source, package, target, upstream_notices=upstream_notices)
    package = package.model_copy(update={"files": directory_records(target)})
    write_record(target / MANIFEST_FILE, package)
    return PackageEntry(
        variant=name,
        manifest_sha256=file_sha256(target / MANIFEST_FILE),
        evidence=(),
        num_files=len(package.files) + 1,
        size_bytes=sum(file.size for file in package.files),
    )


def _copy_legal_files(layout: Layout, base: BaseManifest, target: Path) -> tuple[str, ...]:
    """Copy the license as LICENSE and policies under their names; return the base's notices."""
    notices = []
    for file in base.files:
        is_license = file.path == base.license.text_path
        if file.path.upper().startswith(NOTICE_FILE):
            notices.append(read_text(layout.base_dir / file.path))
        elif is_license or (LEGAL_FILE.fullmatch(file.path) and not (target / file.path).exists()):
            copy_verified(file, layout.base_dir, target, remedy="run `quantline fetch` again")
        if is_license:
            (target / file.path).rename(target / LICENSE_FILE)
    return tuple(notices)


def _manifest(
    layout: Layout, params: Params, source: Source, files: tuple[FileRecord, ...]
) -> PackageManifest:
    variant = source.variant
    return PackageManifest(
        name=params.release.name,
        version=params.release.version,
        variant=variant.name,
        format=variant.recipe.format,
        quantization=quantization_name(variant.recipe),
        bits_per_weight=variant.bits_per_weight,
        num_parameters=sum(prod(tensor.shape) for tensor in variant.coverage),
        model_type=read_config(layout.base_dir).model_type,
        languages=read_languages(layout.base_dir / CARD_FILE),
        quantized_by=params.release.quantized_by,
        license=release_license(source.rule),
        base=base_reference(source.base),
        statistics_digest=variant.statistics_digest,
        variant_digest=variant.digest,
        evaluation_sha256=source.evaluation_sha256,
        files=files,
    )


def _write_texts(
    layout: Layout,
    source: Source,
    package: PackageManifest,
    target: Path,
    *,
    upstream_notices: tuple[str, ...],
) -> None:
    """Write NOTICE, README.md and, for a GGUF file, the Modelfile."""
    unchanged = unchanged_files(source.base, package.files)
    changed = tuple(
        file.path for file in package.files if file.path not in (*unchanged, LICENSE_FILE)
    )
    notice = notice_text(
        package,
        source.rule,
        changed=changed,
        unchanged=unchanged,
        upstream_notices=upstream_notices,
    )
    write_bytes(target / NOTICE_FILE, notice.encode())
    facts = read_modelfile_facts(layout.base_dir)
    weights = [file.path for file in package.files if file.path.endswith((".gguf", ".safetensors"))]
    if isinstance(source.variant.recipe, GgufParams):
        license_text = read_text(target / LICENSE_FILE)
        text = modelfile(weights[0], facts, license_text=license_text)
        write_bytes(target / MODELFILE, text.encode())
    card = render_card(
        package,
        source.variant,
        result_rows(
            source.base_evaluation,
            source.evaluation,
            source.selection.variants[package.variant],
            base_weight_bytes=source.selection.base_weight_bytes,
        ),
        shown_sentence=display_text(source.rule, package),
        weight_file=weights[0],
        has_chat_template=facts.has_chat_template,
        context_tokens=facts.context_tokens,
    )
    write_bytes(target / CARD_FILE, card.encode())
