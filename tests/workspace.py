"""A workspace as the stages before package leave it: records and small files, made at once."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.checks import read_config, read_json_object
from pipeline.checkpoint.names import CONFIG_FILE, TEXT_SECTION
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, write_record
from pipeline.core.machine import Machine
from pipeline.core.record import sha256_hex
from pipeline.core.workspace import BASE, Workspace
from pipeline.gate.profiles import choose_before_benchmark
from pipeline.licensing.reading import read_data_license, read_license_facts
from pipeline.licensing.rules import license_rules
from pipeline.params.params import GgufParams, Params
from pipeline.params.reading import read_params
from pipeline.params.serving import ServeParams
from pipeline.params.suites import SUITES_FILE
from pipeline.records.base import BaseManifest, DatasetManifest
from pipeline.records.benchmarks import (
    Benchmarks,
    Latency,
    LoadResult,
    LoadRound,
    ParityCheck,
    ServedModel,
    ServerMemory,
    SkippedModel,
)
from pipeline.records.evaluation import (
    Control,
    Distance,
    DocumentRecord,
    EvaluationRecord,
    TaskScore,
)
from pipeline.records.intake import Intake
from pipeline.records.rounds import ratio
from pipeline.records.selection import (
    Approved,
    DropVerdict,
    Selection,
    TaskVerdict,
    VariantVerdict,
    Verdict,
)
from pipeline.records.statistics import ComparedTexts, Decontamination, StatisticsRecord
from pipeline.records.variant import TensorCoverage, VariantRecord
from tests.models import tiny_llama
from tests.support import ROOT

SHA = "cd" * 32
MakeGguf = Callable[[Path, Path], object]
"""Makes a GGUF file, the second path, of the checkpoint in the first."""
MakePacked = Callable[[Path], object]
"""Makes the directory of a packed checkpoint."""


@dataclass(frozen=True)
class MadeRun:
    workspace: Workspace
    params: Params

    def read(self, path: str) -> str:
        return (self.workspace.artifacts_dir / path).read_text(encoding="utf-8")


def make_workspace(
    root: Path,
    verdicts: Mapping[str, Verdict],
    *,
    source: str = "hf:org/tiny@" + "ab" * 20,
    license_id: str = "mit",
    license_text: str | None = None,
    make_gguf: MakeGguf | None = None,
    make_packed: MakePacked | None = None,
) -> MadeRun:
    """A base, and all that `measured` adds. Its card says `license_id`; the LICENSE is MIT's, or
    `license_text`.
    """
    workspace = Workspace(root)
    params = read_params(ROOT / "params.yaml")
    workspace.artifacts_dir.mkdir(parents=True)
    shutil.copy(ROOT / params.economics.prices, root)
    tiny_llama(workspace.base_dir)
    (workspace.base_dir / "README.md").write_text(
        f"---\nlicense: {license_id}\nlanguage:\n- en\n- es\n---\n# Base\n"
    )
    if license_text is not None:
        (workspace.base_dir / "LICENSE").write_text(license_text)
    write_base_manifest(workspace, source=source)
    return measured(workspace, params, verdicts, make_gguf=make_gguf, make_packed=make_packed)


def measured(
    workspace: Workspace,
    params: Params,
    verdicts: Mapping[str, Verdict],
    *,
    make_gguf: MakeGguf | None = None,
    make_packed: MakePacked | None = None,
) -> MadeRun:
    """Statistics, a variant and evaluation for each name (of params.yaml), selection, benchmark.

    `make_gguf` makes the GGUF files of a base and `make_packed` the others, which are otherwise
    made up.
    """
    write_statistics(workspace, params)
    write_evaluation(workspace, BASE, SHA, harm=0.0)
    selection: dict[str, VariantVerdict] = {}
    for number, (name, verdict) in enumerate(verdicts.items()):
        record = write_variant(
            workspace, params, name, make_gguf=make_gguf, make_packed=make_packed
        )
        harm = 0.004 * (1 + number) ** 3
        evaluation = write_evaluation(workspace, name, record.digest, harm=harm)
        selection[name] = verdict_on(evaluation, record, verdict, harm=harm)
    write_selection(workspace, selection)
    made = MadeRun(workspace, params)
    served = {
        name: it.artifact_digest for name, it in selection.items() if it.verdict == "approved"
    }
    write_benchmarks(made, speeds=dict.fromkeys(served, 20.0), skipped={}, digests=served)
    return made


def write_base_manifest(workspace: Workspace, *, source: str) -> None:
    write_record(workspace.intake_path, Intake(findings=(), originals=(), added=()))
    files = directory_records(workspace.base_dir)
    facts = read_license_facts(workspace.base_dir)
    rules = license_rules()
    rule = rules.by_text(facts.text_words_sha256 or "") or rules.by_id("mit")
    assert rule is not None
    apart = None
    if TEXT_SECTION in read_json_object(workspace.base_dir / CONFIG_FILE):
        # Imported only for models of several parts: it brings the code of all models.
        from pipeline.intake.weights import account_for_tensors

        checkpoint = Checkpoint(workspace.base_dir)
        shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
        apart = account_for_tensors(workspace.base_dir, shapes)
    write_record(
        workspace.base_manifest_path,
        BaseManifest(
            source=source,
            revision=source.partition("@")[2] or None,
            architecture=read_config(workspace.base_dir).architecture,
            files=files,
            digest=tree_digest(files),
            unused_tensors=apart.unused if apart else (),
            copied_tensors=(),
            text_part=apart.text_part if apart else None,
            license=facts,
            applied_license=rule.applied(None),
        ),
    )


def write_statistics(workspace: Workspace, params: Params) -> None:
    """The record of a calibration that dropped 3 of 40 documents, and the license of its text."""
    calibration = params.calibration
    license = read_data_license(workspace, calibration.license, license_rules())
    manifest = DatasetManifest(source=None, patterns=(), files=(), license=license)
    workspace.calibration_dir.mkdir(exist_ok=True)
    write_record(workspace.dataset_manifest_path, manifest)
    record = StatisticsRecord(
        base_digest=base_digest(workspace),
        calibration=calibration,
        text_sha256=SHA,
        token_ids_sha256=SHA,
        num_tokens=calibration.num_calibration_samples * calibration.max_seq_length,
        num_samples=calibration.num_calibration_samples,
        decontamination=Decontamination(
            ngram_words=13,
            compared=(ComparedTexts(name="trades_en", num_texts=400, sha256=SHA),),
            num_documents_drawn=40,
            num_contaminated_dropped=3,
        ),
        skipped=(),
        template_date=None,
        inputs=(),
        experts=(),
        files=(),
        digest=SHA,
    )
    write_record(workspace.statistics_path, record)


def base_digest(workspace: Workspace) -> str:
    data = workspace.base_manifest_path.read_bytes()
    return BaseManifest.from_bytes(data, source="base").digest


def write_variant(
    workspace: Workspace,
    params: Params,
    name: str,
    *,
    make_gguf: MakeGguf | None = None,
    make_packed: MakePacked | None = None,
) -> VariantRecord:
    recipe = params.variants[name]
    model_dir = workspace.model_dir(name)
    model_dir.mkdir(parents=True)
    if isinstance(recipe, GgufParams):
        path = model_dir / f"model-{recipe.type}.gguf"
        if make_gguf is None:
            path.write_bytes(b"GGUF" + name.encode() * 1000)
        else:
            make_gguf(workspace.base_dir, path)
    elif make_packed is not None:
        make_packed(model_dir)
    else:
        (model_dir / "model.safetensors").write_bytes(name.encode() * 2000)
        (model_dir / "config.json").write_text('{"quantization_config": {}}\n')
        for sidecar in ("tokenizer.json", "tokenizer_config.json", "LICENSE", "LICENSE.txt"):
            if (workspace.base_dir / sidecar).exists():
                (model_dir / sidecar).write_bytes((workspace.base_dir / sidecar).read_bytes())
    files = directory_records(model_dir)
    scheme = recipe.label if isinstance(recipe, GgufParams) else "W4A16 symmetric g128"
    record = VariantRecord(
        name=name,
        allocation=None,
        recipe=recipe,
        base_digest=base_digest(workspace),
        statistics_digest=SHA,
        tools={"quantline": "0.1.0", "torch": "2.13.0"},
        files=files,
        digest=tree_digest(files),
        bits_per_weight=4.5,
        coverage=(
            tensor("model.embed_tokens.weight", "float16", "kept: not a linear"),
            tensor("model.norm.weight", "float16", "kept: a vector"),
            *(tensor(f"model.layers.{i}.mlp.up_proj.weight", scheme, None) for i in range(14)),
        ),
    )
    write_record(workspace.variant_path(name), record)
    return record


def tensor(name: str, scheme: str, reason: str | None) -> TensorCoverage:
    return TensorCoverage(
        name=name,
        shape=(320, 64),
        scheme=scheme,
        bits_per_weight=16 if reason else 4.5,
        relative_error=None if reason else 0.01,
        error_ratio=None if reason else 0.8,
        reason=reason,
    )


def write_evaluation(
    workspace: Workspace, name: str, digest: str, *, harm: float
) -> EvaluationRecord:
    """Accuracies on 400 documents of two tasks; `harm` is the share that a variant loses."""

    def score(value: float, stderr: float | None) -> TaskScore:
        return TaskScore(
            metric="acc",
            value=value,
            stderr=stderr,
            higher_is_better=True,
            num_documents=400,
            version="1.0",
        )

    tasks = {"trades_en": score(0.91 - harm, 0.014), "tales_es": score(0.84 - harm, None)}
    distance = Distance(
        kl=harm, kl_low=0.9 * harm, kl_high=1.1 * harm, kl_median=harm, kl_p99=harm * 9,
        kl_p999=harm * 50, kl_max=harm * 99, kl_max_text="the old town", top1=1 - harm,
        perplexity_ratio=1 + harm, perplexity_ratio_low=1 + 0.9 * harm,
        perplexity_ratio_high=1 + 1.1 * harm, probability_change=-harm / 2,
        probability_change_rms=harm,
    )  # fmt: skip
    documents = document_rows({task: it.value for task, it in tasks.items()})
    record = EvaluationRecord(
        name=name,
        artifact_digest=digest,
        base_digest=base_digest(workspace),
        backend="transformers",
        backend_version="5.19.0",
        device="cpu",
        suite="demo",
        tasks=tasks,
        perplexity=5.25 * (1 + harm),
        distance=None if name == BASE else distance,
        text_sha256=SHA,
        token_ids_sha256=SHA,
        num_tokens=1000,
        documents_sha256=sha256_hex(documents),
        broken=None,
        controls={"llama.cpp": control(distance, tasks, documents)} if name == BASE else {},
        template_date=None,
    )
    write_record(workspace.evaluation_path(name), record)
    workspace.documents_path(name).write_bytes(documents)
    if name == BASE:
        workspace.control_documents_path("llama.cpp").write_bytes(documents)
    return record


def document_rows(shares_right: Mapping[str, float], *, num_documents: int = 400) -> bytes:
    """Rows of which the first so many are right."""
    rows = [
        DocumentRecord(
            task=task,
            doc_id=number,
            doc_hash=f"{task} {number}",
            cluster=f"{task} {number}",
            prompt_hash=f"{task} {number}",
            target="0",
            logprobs=(-1.0, -2.0) if number < share * num_documents else (-2.0, -1.0),
            generated=None,
            metrics={"acc": float(number < share * num_documents)},
        )
        for task, share in shares_right.items()
        for number in range(num_documents)
    ]
    return b"".join(row.model_dump_json().encode() + b"\n" for row in rows)


def write_suite(workspace: Workspace) -> None:
    """The suite that `write_evaluation` scores."""
    path = workspace.root / SUITES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "suites:\n  demo:\n    tasks:\n"
        "      - {name: trades_en, metric: acc, margin: 0.05}\n"
        "      - {name: tales_es, metric: acc}\n"
    )


def control(distance: Distance, tasks: dict[str, TaskScore], documents: bytes) -> Control:
    return Control(
        backend="llama.cpp",
        backend_version="llama-cpp-python 0.3.36",
        device="cpu",
        artifact_digest=SHA,
        tasks=tasks,
        perplexity=5.25,
        distance=distance,
        documents_sha256=sha256_hex(documents),
    )


def verdict_on(
    evaluation: EvaluationRecord, record: VariantRecord, verdict: Verdict, *, harm: float
) -> VariantVerdict:
    reasons = () if verdict is Verdict.APPROVED else (f"KL {harm:.4f}, above 0.05",)
    drop = DropVerdict(
        verdict=verdict,
        drop=harm,
        low=harm / 2,
        high=harm * 2,
        level=0.05,
        margin=0.05,
        p_below=0.01,
        p_above=0.99,
        further_documents=None,
    )
    return VariantVerdict(
        verdict=verdict,
        reasons=reasons,
        format=record.recipe.format,
        gate_class="4-bit",
        bits_per_weight=4.5,
        tasks={
            task: TaskVerdict(
                **drop.model_dump(),
                metric=score.metric,
                base=score.value + harm,
                variant=score.value,
                num_documents=400,
                num_clusters=400,
                right_to_wrong=round(400 * harm),
                wrong_to_right=0,
                mcnemar_p=0.5,
            )
            for task, score in evaluation.tasks.items()
        },
        mean_drop=drop,
        bounds={},
        distance=evaluation.distance,
        recovery=1 - 1.1 * harm,
        task_recovery=dict.fromkeys(evaluation.tasks, 1 - 1.1 * harm),
        documents_share=1.0,
        weight_bytes=record.weight_bytes,
        size_ratio=record.weight_bytes / 100_000,
        pareto=verdict is Verdict.APPROVED,
        artifact_digest=record.digest,
    )


def write_selection(workspace: Workspace, variants: dict[str, VariantVerdict]) -> None:
    write_record(
        workspace.selection_path,
        Selection(
            base_digest=base_digest(workspace),
            base_weight_bytes=100_000,
            variants=variants,
            choices=choose_before_benchmark(
                variants, read_params(ROOT / "params.yaml").gate.profiles
            ),
        ),
    )
    approved = {
        name: verdict.artifact_digest
        for name, verdict in variants.items()
        if verdict.verdict is Verdict.APPROVED
    }
    write_record(
        workspace.approved_path,
        Approved(base_digest=base_digest(workspace), variants=approved),
    )


def write_benchmarks(
    made: MadeRun,
    *,
    speeds: Mapping[str, float],
    skipped: Mapping[str, str],
    digests: Mapping[str, str] | None = None,
) -> None:
    """A benchmark of three rounds; `speeds` are tokens per second of one user."""
    load = made.params.serve
    known = digests or {}
    write_record(
        made.workspace.benchmarks_path,
        Benchmarks(
            complete=True,
            base_digest=base_digest(made.workspace),
            machine=Machine(cpu="Imaginary 9000", cores=2, memory_gib=23.5, isa=("avx2",), gpus=()),
            load=load,
            models={
                **{
                    name: served_model(load, speed, speeds.get(BASE), digest=known.get(name, SHA))
                    for name, speed in speeds.items()
                },
                **{
                    name: SkippedModel(artifact_digest=known.get(name, SHA), reason=reason)
                    for name, reason in skipped.items()
                },
            },
        ),
    )


def served_model(
    load: ServeParams, speed: float, base_speed: float | None, *, digest: str = SHA
) -> ServedModel:
    """A model whose throughput grows with the root of the users."""
    return ServedModel(
        artifact_digest=digest,
        engine="vLLM",
        engine_version="0.32.0",
        kernel="int4pack",
        dtype="bfloat16",
        command=("python", "-m", "vllm", "--model=.", "--max-model-len=704"),
        startup_s=81.4,
        warm_up_tokens_per_s=speed,
        slower_dtypes={"float32": 0.5 * speed},
        memory=ServerMemory(
            resident=3 << 30, weights=1 << 30, kv_cache=1 << 29, kv_cache_tokens=8192
        ),
        parity_check=ParityCheck(reference="transformers", num_matches=19, num_prompts=20),
        loads=tuple(
            LoadResult(
                scenario=name,
                concurrency=users,
                rounds=tuple(load_round(users, speed, drift) for drift in (0.9, 1.0, 1.1)),
                over_base=ratio([speed] * 3, [base_speed] * 3) if base_speed else None,
            )
            for name, scenario in load.scenarios.items()
            for users in scenario.concurrency
        ),
        problem=None,
    )


def load_round(users: int, speed: float, drift: float) -> LoadRound:
    """A round in which the machine ran at `drift` times its usual speed."""
    tokens_per_s = drift * speed * users**0.5

    def latency(middle: float) -> Latency:
        return Latency(mean=middle, p50=middle, p95=1.5 * middle, p99=2 * middle)

    return LoadRound(
        completed=3 * users,
        failed=0,
        first_error=None,
        duration_s=60.0,
        input_tokens=1500 * users,
        output_tokens=600 * users,
        requests_per_s=tokens_per_s / 200,
        good_requests_per_s=tokens_per_s / 400,
        output_tokens_per_s=tokens_per_s,
        total_tokens_per_s=3 * tokens_per_s,
        ttft_ms=latency(2000 * users / (drift * speed)),
        tpot_ms=latency(1000 * users / tokens_per_s),
        itl_ms=latency(1000 * users / tokens_per_s),
        e2el_ms=latency(20_000 * users / tokens_per_s),
        client_cpu_share=0.1,
        energy_j=None,
    )
