"""The kinds of model that can teach, behind one call: cross-encoders, sentence encoders, causal language models."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rankstill.bi_encoder import load_bi_encoder
from rankstill.cross_encoder import load_cross_encoder, load_tokenizer
from rankstill.encoders import LOCAL
from rankstill.errors import ConversionError, ModelError
from rankstill.losses import expected_gain_logit
from rankstill.scoring import PairScorer, Work, onnx_forward, openvino_scorer, torch_scorer
from rankstill.teachers.causal import load_causal
from rankstill.vector_cache import VectorCache

Kind = Literal["cross", "bi", "causal"]
Runtime = Literal["auto", "torch", "openvino"]
QUERY_BYTES = 1 << 28
"""Of the queries' vectors that a sentence encoder keeps: 87,000 of 768 numbers."""
Score = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True)
class TeacherModel:
    """A model that teaches; plain values, since it crosses processes."""

    kind: Kind
    folder: str
    max_length: int
    """Tokens of a pair (of a text, for sentence encoders)."""
    prompt: str = ""
    """Template of a causal model, with {query} and {text}."""
    answers: tuple[str, ...] = ()
    """Answers whose logits a causal model's score comes from, worst first."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A model in memory."""

    model: PreTrainedModel | None
    """Its layers, for counting; None where there are none."""
    score: Score
    """Queries and texts to scores, [B]."""
    work: Work
    """What it has computed so far."""
    logits: Callable[[Sequence[str], Sequence[str]], NDArray[np.float32]] | None = None
    """Queries and texts to the logits of grades or answers, worst first, [B, C], of a model that has them."""

    @classmethod
    def graded(
        cls, model: PreTrainedModel, logits: Callable[..., NDArray[np.float32]], work: Work
    ) -> "LoadedTeacher":  # fmt: skip
        """A model whose score is the logit of the expected gain."""
        return cls(model, lambda queries, texts: gain_scores(logits(queries, texts)), work, logits)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters()) if self.model else 0

    def flops(self, work: Work) -> float:
        """Floating-point operations of some work without padding; 0 where the model's layers can't be told apart."""
        try:
            return work.flops(self.model) if self.model else 0.0
        except ModelError:
            return 0.0


def gain_scores(logits_BC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores [B] from the logits of grades."""
    return expected_gain_logit(torch.from_numpy(logits_BC).double()).numpy()


def load_teacher(
    model: TeacherModel,
    field: str,
    device: str,
    precision: str,
    token_budget: int,
    runtime: Runtime = "torch",
    threads: int = 0,
) -> LoadedTeacher:
    """Load a model; for `precision` see `scoring.is_bfloat16`.

    `runtime` auto is OpenVINO on CPUs, with `threads` threads, for models that it can run, and else torch.

    Raises:
        ModelError: not a usable model of its kind, or one that OpenVINO can't run although it is to.
    """
    vino = runtime != "torch" and device == "cpu" and model.kind != "causal"
    if runtime == "openvino" and not vino:
        what = "a causal model" if model.kind == "causal" else f"device {device}"
        raise ModelError(f"labels.runtime: 'openvino' doesn't run {what}; give auto or torch")
    try:
        return _load(model, field, device, precision, token_budget, threads, vino)
    except ConversionError:
        if runtime == "openvino":
            raise
        return _load(model, field, device, precision, token_budget, threads, vino=False)


def _load(
    model: TeacherModel, field: str, device: str, precision: str, token_budget: int, threads: int, vino: bool
) -> LoadedTeacher:
    """Load a model into OpenVINO or into torch; int8 is ONNX Runtime's."""
    if model.kind == "bi":
        bi = load_bi_encoder(model.folder, field, device, "float32" if vino else precision, model.max_length)
        bi = bi.in_openvino(threads, precision) if vino else bi
        bi = replace(bi, queries=VectorCache(QUERY_BYTES))  # blocks of pairs go by item
        score = _one_at_a_time(lambda queries, texts: bi.score(queries, texts, token_budget))
        return LoadedTeacher(bi.model, score, bi.work)
    if model.kind == "causal":
        causal = load_causal(model.folder, field, device, precision, model.max_length, model.prompt, model.answers)
        logits = _one_at_a_time(lambda queries, texts: causal.logits(queries, texts, token_budget))
        return LoadedTeacher.graded(causal.model, logits, causal.work)
    if precision == "int8":
        tokenizer = load_tokenizer(Path(model.folder), field)
        small = PairScorer(
            onnx_forward(Path(model.folder, "model.onnx"), threads), tokenizer, model.max_length, token_budget
        )
        with torch.device("meta"):
            shape = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model.folder, **LOCAL))
        return LoadedTeacher(shape, lambda q, t: small.score(q, t).astype(np.float64), small.work)
    encoder = load_cross_encoder(model.folder, field, model.max_length)
    grades = not encoder.scores
    if vino:
        scorer = openvino_scorer(encoder, threads, precision, token_budget, grades)
    else:
        scorer = torch_scorer(encoder, device, precision, token_budget, grades)
    if grades:
        return LoadedTeacher.graded(encoder.backbone, scorer.score, scorer.work)
    return LoadedTeacher(encoder.backbone, lambda q, t: scorer.score(q, t).astype(np.float64), scorer.work)


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which threads call in turn."""
    turn = threading.Lock()

    def call(*arguments: Any) -> Any:
        with turn:
            return function(*arguments)

    return call
