"""The kinds of model that can teach, behind one call: cross-encoders, sentence encoders, causal language models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rankstill.bi_encoder import load_bi_encoder
from rankstill.cross_encoder import load_cross_encoder
from rankstill.losses import expected_gain_logit
from rankstill.scoring import torch_scorer
from rankstill.teachers.causal import load_causal

Kind = Literal["cross", "bi", "causal"]
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

    parameters: int
    score: Score
    """Queries and texts to scores, [B]."""
    logits: Callable[[Sequence[str], Sequence[str]], NDArray[np.float32]] | None = None
    """Queries and texts to the logits of grades or answers, worst first, [B, C], of a model that has them."""

    @classmethod
    def graded(cls, parameters: int, logits: Callable[..., NDArray[np.float32]]) -> "LoadedTeacher":
        """A model whose score is the logit of the expected gain."""
        return cls(parameters, lambda queries, texts: gain_scores(logits(queries, texts)), logits)


def gain_scores(logits_BC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores [B] from the logits of grades."""
    return expected_gain_logit(torch.from_numpy(logits_BC).double()).numpy()


def load_teacher(model: TeacherModel, field: str, device: str, precision: str, token_budget: int) -> LoadedTeacher:
    """Load a model; for `precision` see `scoring.is_bfloat16`.

    Raises:
        ModelError: not a usable model of its kind.
    """
    if model.kind == "bi":
        bi = load_bi_encoder(model.folder, field, device, precision, model.max_length)
        return LoadedTeacher(sum(parameter.numel() for parameter in bi.model.parameters()), bi.score)
    if model.kind == "causal":
        causal = load_causal(model.folder, field, device, precision, model.max_length, model.prompt, model.answers)
        return LoadedTeacher.graded(causal.parameters, lambda q, t: causal.logits(q, t, token_budget))
    encoder = load_cross_encoder(model.folder, field, model.max_length)
    scorer = torch_scorer(encoder, device, precision, token_budget, grades=not encoder.scores)
    if not encoder.scores:
        return LoadedTeacher.graded(encoder.parameters, scorer.score)
    return LoadedTeacher(encoder.parameters, lambda q, t: scorer.score(q, t).astype(np.float64))
