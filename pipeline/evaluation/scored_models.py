"""Put each model of a workspace in the engine that scores its format.

A model is loaded when it is first used. A model that is not the base itself must then cut texts
into the same tokens as the base, since only so can probabilities be compared.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import FailureError
from pipeline.core.files import file_sha256
from pipeline.core.progress import note
from pipeline.core.workspace import BASE
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer, torch_device
from pipeline.engines.in_vllm import VllmScorer, vllm_device, vllm_version
from pipeline.engines.scorer import LazyScorer, Scorer
from pipeline.evaluation.evaluator import ScoredModel
from pipeline.evaluation.vocabulary import require_same_size, require_same_tokens
from pipeline.gguf import files as gguf
from pipeline.params.params import LLAMA_CPP, PackedJudge
from pipeline.records.evaluation import Control


@dataclass(frozen=True)
class ScoredModels:
    """Make the scored models of one workspace.

    Every model must cut `texts` into the same tokens as the base's `tokenizer`. The base's model
    has logits for `vocab_size` tokens. `packed_judge` is not AUTO. `pre_tokenizer` is llama.cpp's
    name for the base's pre-tokenizer, where its converter does not recognise it. `unused_tensors`
    are those of the base that its model does not read, `copied_tensors` those that equal others.
    """

    base: ScoredModel
    base_dir: Path
    tokenizer: Any
    vocab_size: int
    texts: Sequence[str]
    packed_judge: PackedJudge
    pre_tokenizer: str | None
    unused_tensors: tuple[str, ...]
    copied_tensors: tuple[str, ...]

    def variant(self, name: str, digest: str, model_dir: Path) -> ScoredModel:
        """Put a GGUF file in llama.cpp, and a checkpoint in `packed_judge`."""
        for path in sorted(model_dir.glob("*.gguf")):
            return self._in_llama_cpp(name, digest, partial(self._opened_gguf, name, path))
        if self.packed_judge is PackedJudge.VLLM:
            return self._in_vllm(name, digest, model_dir)

        def open_unpacked() -> Scorer:
            self._require_same_tokens(name, tokenizer_of(model_dir).encode)
            return self._of_same_size(TransformersScorer(unpacked_model(model_dir), label=name))

        return _in_transformers(name, digest, open_unpacked)

    @contextmanager
    def control(self, backend: str, *, work_dir: Path) -> Iterator[ScoredModel]:
        """Put the base itself in another engine; files for it are in `work_dir` until the end."""
        label = f"{BASE} in {backend}"
        with TemporaryDirectory(dir=work_dir) as work:
            if backend == PackedJudge.VLLM:
                model = self._in_vllm(label, self.base.digest, self.base_dir)
            else:
                path = self._converted(backend, Path(work))
                model = self._in_llama_cpp(
                    label, file_sha256(path), partial(self._opened_gguf, label, path)
                )
            with closing(model.scorer):
                yield model

    def reference(self, control: Control | None, *, work_dir: Path) -> ScoredModel:
        """Return the model that a variant is compared with: the base in the variant's engine.

        That is the base itself, or the model of a `control` that was scored before. The files of a
        control are made in `work_dir` when it is first used, and removed once they are loaded. The
        first use raises FailureError when the conversion gives another file than was scored.
        """
        if control is None:
            return self.base
        label = f"{BASE} in {control.backend}"
        if control.backend == PackedJudge.VLLM:
            return self._in_vllm(label, control.artifact_digest, self.base_dir)

        def open_converted() -> Scorer:
            with TemporaryDirectory(dir=work_dir) as work:  # llama.cpp keeps the file mapped
                path = self._converted(control.backend, Path(work))
                if file_sha256(path) != control.artifact_digest:
                    raise FailureError(
                        f"{label}: the conversion to GGUF gave another file than when {BASE} was "
                        f"evaluated; run `quantline evaluate {BASE}` again"
                    )
                return self._opened_gguf(label, path)

        return self._in_llama_cpp(label, control.artifact_digest, open_converted)

    def _converted(self, backend: str, directory: Path) -> Path:
        """Convert the base to a GGUF file of 16 bits."""
        assert backend == LLAMA_CPP, backend
        path = directory / f"{BASE}.gguf"
        note(f"evaluate: {BASE}: converting to GGUF, for {backend}")
        gguf.convert(
            self.base_dir,
            path,
            model_name=BASE,
            pre_tokenizer=self.pre_tokenizer,
            unused=self.unused_tensors,
            copies=self.copied_tensors,
            weight_names=(),
        )
        return path

    def _opened_gguf(self, label: str, path: Path) -> Scorer:
        scorer = LlamaCppScorer(path, label=label)
        try:
            self._require_same_tokens(label, scorer.tokenize)
        except BaseException:
            scorer.close()
            raise
        return self._of_same_size(scorer)

    def _in_llama_cpp(
        self, label: str, digest: str, open_scorer: Callable[[], Scorer]
    ) -> ScoredModel:
        scorer = LazyScorer(
            open_scorer,
            label=label,
            backend=LlamaCppScorer.backend,
            backend_version=LlamaCppScorer.backend_version,
            device=LlamaCppScorer.device,
        )
        return ScoredModel(digest, scorer)

    def _in_vllm(self, label: str, digest: str, model_dir: Path) -> ScoredModel:
        def open_packed() -> Scorer:
            self._require_same_tokens(label, tokenizer_of(model_dir).encode)
            return self._of_same_size(VllmScorer(model_dir, label=label))

        scorer = LazyScorer(
            open_packed,
            label=label,
            backend=VllmScorer.backend,
            backend_version=vllm_version(),
            device=vllm_device(),
        )
        return ScoredModel(digest, scorer)

    def _require_same_tokens(self, label: str, encode: Callable[[str], list[int]]) -> None:
        require_same_tokens(
            label,
            base_encode=self.tokenizer.encode,
            own_encode=encode,
            unknown_id=self.tokenizer.unk_token_id,
            texts=self.texts,
        )

    def _of_same_size(self, scorer: Scorer) -> Scorer:
        """Return `scorer`; close it and raise where its vocabulary is not the base's size."""
        try:
            require_same_size(scorer.label, base_size=self.vocab_size, own_size=scorer.vocab_size)
        except BaseException:
            scorer.close()
            raise
        return scorer


def base_model(base_dir: Path, digest: str) -> ScoredModel:
    """Put the base in transformers."""
    return _in_transformers(
        BASE, digest, lambda: TransformersScorer(unpacked_model(base_dir), label=BASE)
    )


def _in_transformers(label: str, digest: str, open_scorer: Callable[[], Scorer]) -> ScoredModel:
    scorer = LazyScorer(
        open_scorer,
        label=label,
        backend=TransformersScorer.backend,
        backend_version=TransformersScorer.backend_version,
        device=torch_device(),
    )
    return ScoredModel(digest, scorer)
