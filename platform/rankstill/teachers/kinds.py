"""The kinds of model that can teach, behind one call: cross-encoders, sentence encoders, causal language models."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from rankstill.bi_encoder import load_bi_encoder
from rankstill.cross_encoder import load_cross_encoder
from rankstill.errors import ConversionError, ModelError
from rankstill.losses import expected_gain_logit
from rankstill.scoring import Work, openvino_scorer, torch_scorer
from rankstill.teachers.causal import load_causal

Kind = Literal["cross", "bi", "causal"]
Runtime = Literal["auto", "torch", "openvino"]
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

    model: PreTrainedModel
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
        return sum(parameter.numel() for parameter in self.model.parameters())

    def flops(self, work: Work) -> float:
        """Floating-point operations of some work without padding; 0 where the model's layers can't be told apart."""
        try:
            return work.flops(self.model)
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
        return _load(model, field, device, precision, token_budget, threads if vino else None)
    except ConversionError:
        if runtime == "openvino":
            raise
        return _load(model, field, device, precision, token_budget, None)


def _load(
    model: TeacherModel, field: str, device: str, precision: str, token_budget: int, vino: int | None
) -> LoadedTeacher:
    """Load a model into OpenVINO with `vino` threads, or into torch where that is None."""
    if model.kind == "bi":
        in_torch = vino is None
        bi = load_bi_encoder(model.folder, field, device, precision if in_torch else "float32", model.max_length)
        bi = bi if in_torch else bi.in_openvino(vino, precision)
        return LoadedTeacher(bi.model, _one_at_a_time(bi.score), bi.work)
    if model.kind == "causal":
        causal = load_causal(model.folder, field, device, precision, model.max_length, model.prompt, model.answers)
        logits = _one_at_a_time(lambda queries, texts: causal.logits(queries, texts, token_budget))
        return LoadedTeacher.graded(causal.model, logits, causal.work)
    encoder = load_cross_encoder(model.folder, field, model.max_length)
    grades = not encoder.scores
    if vino is None:
        scorer = torch_scorer(encoder, device, precision, token_budget, grades)
    else:
        scorer = openvino_scorer(encoder, vino, precision, token_budget, grades)
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
