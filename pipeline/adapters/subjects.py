"""The models of a workspace as subjects of judgement: each in the engine for its format.

A model is loaded when it is first asked something. One that is not the base itself then has to
prove that it reads tokens as the base does; only so can probabilities be compared.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.adapters import gguf
from pipeline.adapters.checkpoint import tokenizer_of, unpacked_model
from pipeline.adapters.files import file_sha256
from pipeline.adapters.judge import Subject
from pipeline.adapters.llama_cpp import LlamaCppScorer
from pipeline.adapters.progress import note
from pipeline.adapters.scorer import LateScorer, Scorer
from pipeline.adapters.transformers_scorer import TransformersScorer
from pipeline.domain.layout import BASE
from pipeline.domain.params import LLAMA_CPP
from pipeline.domain.vocabulary import require_same_size, require_same_tokens


@dataclass(frozen=True)
class Subjects:
    """`texts` are those that a model has to cut into tokens like the base's `tokenizer`."""

    base: Subject
    tokenizer: Any
    texts: Sequence[str]

    def variant(self, name: str, digest: str, model_dir: Path) -> Subject:
        """A GGUF file in llama.cpp, a checkpoint in transformers."""
        for path in sorted(model_dir.glob("*.gguf")):
            return self._gguf(name, digest, path)

        def open_packed() -> Scorer:
            self._require_same_tokens(name, tokenizer_of(model_dir).encode)
            scorer = TransformersScorer(unpacked_model(model_dir), label=name)
            self._require_same_size(scorer)
            return scorer

        return Subject(digest, LateScorer(TransformersScorer, open_packed, label=name))

    @contextmanager
    def control(
        self, backend: str, base_dir: Path, *, pre_tokenizer: str | None, work_dir: Path
    ) -> Iterator[Subject]:
        """The base itself in another engine; what that takes is made in `work_dir` and removed."""
        assert backend == LLAMA_CPP, backend
        with TemporaryDirectory(dir=work_dir) as work:
            path = Path(work) / f"{BASE}.gguf"
            note(f"evaluate: {BASE}: converting to GGUF, for {backend}")
            gguf.convert(
                base_dir, path, model_name=BASE, pre_tokenizer=pre_tokenizer, weight_names=()
            )
            subject = self._gguf(f"{BASE} in {backend}", file_sha256(path), path)
            try:
                yield subject
            finally:
                subject.scorer.close()

    def _gguf(self, label: str, digest: str, path: Path) -> Subject:
        def open_gguf() -> Scorer:
            scorer = LlamaCppScorer(path, label=label)
            try:
                self._require_same_tokens(label, scorer.tokenize)
                self._require_same_size(scorer)
            except BaseException:
                scorer.close()
                raise
            return scorer

        return Subject(digest, LateScorer(LlamaCppScorer, open_gguf, label=label))

    def _require_same_tokens(self, label: str, encode: Callable[[str], list[int]]) -> None:
        require_same_tokens(
            label,
            base_encode=self.tokenizer.encode,
            own_encode=encode,
            unknown_id=self.tokenizer.unk_token_id,
            texts=self.texts,
        )

    def _require_same_size(self, scorer: Scorer) -> None:
        require_same_size(
            scorer.label, base_size=self.base.scorer.vocab_size, own_size=scorer.vocab_size
        )


def base_subject(base_dir: Path, digest: str) -> Subject:
    """The reference: the base in transformers."""

    def open_base() -> Scorer:
        return TransformersScorer(unpacked_model(base_dir), label=BASE)

    return Subject(digest, LateScorer(TransformersScorer, open_base, label=BASE))
