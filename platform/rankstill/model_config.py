"""Settings of the models: teachers, students, how they are trained and what they learn."""

import math
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A part of the tree: frozen, unknown keys refused, one docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class RandomModel(Section):
    """The shape of a randomly initialised BERT encoder."""

    layers: int = Field(default=2, ge=1)
    """Transformer layers."""
    width: int = Field(default=64, ge=8)
    """Hidden width; a multiple of `heads`."""
    heads: int = Field(default=2, ge=1)
    """Attention heads."""
    vocabulary: int = Field(default=4000, ge=200)
    """Word pieces learnt from the training texts, where there is no other tokenizer."""

    @model_validator(mode="after")
    def _divisible(self) -> "RandomModel":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; change one of them")
        return self


class Train(Section):
    """One training run: the same loop trains teachers and students."""

    epochs: int = Field(default=2, ge=1)
    """Passes over the candidate lists, or over as many of them as `epoch_steps` take."""
    epoch_steps: int = Field(default=0, ge=0)
    """Optimizer steps of an epoch, after each of which is validated; 0 is a whole pass."""
    max_steps: int = Field(default=0, ge=0)
    """Optimizer steps after which training ends, whatever the epochs; 0 is no limit."""
    lists: int = Field(default=8, ge=1)
    """Candidate lists in one optimizer step, over all workers together."""
    list_size: int = Field(default=12, ge=2)
    """Candidates of one list; a longer list is cut into several, anew each epoch."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that each worker's share of a step is cut into, to save memory."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the rate rises; from there it falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout while training."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of matrix products (weights stay float32); auto is bfloat16 where the device has it."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a better validation nDCG@10 after which training stops."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded over the workers."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What a GPU leaves to the CPU's memory: the optimizer (ZeRO 1 to 3), or parameters too (ZeRO 3)."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass, to save memory."""
    checkpoint_steps: int = Field(default=0, ge=0)
    """Steps between checkpoints within an epoch; 0 takes one at the end of each epoch only."""
    max_failures: int = Field(default=1, ge=0)
    """Worker failures after which a run gives up; before that it continues at its last checkpoint."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initial weights, of shuffling and of sampling."""

    def key(self) -> dict[str, Any]:
        """The settings that a training's result depends on."""
        return self.model_dump(exclude={"max_failures", "checkpoint_steps", "offload", "recompute"})

    @model_validator(mode="after")
    def _divisible(self) -> "Train":
        if self.accumulate > self.lists:
            raise ValueError(f"accumulate is {self.accumulate}, of a step of {self.lists} lists; give at most as many")
        return self

    @model_validator(mode="after")
    def _offloadable(self) -> "Train":
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload is {self.offload!r}, which needs zero_stage {least} or more, not {self.zero_stage}"
            )
        return self


TeacherKind = Literal["cross", "bi", "causal"]


class TeacherMember(Section):
    """A ready model that teaches, used as it is."""

    model: str = ""
    """Folder or Hugging Face name; "base" for the teacher's base as it was before fine-tuning."""
    kind: TeacherKind = "cross"
    """What it is: a cross-encoder (with one logit, or with one for each grade), a sentence encoder whose cosines are
    scores (those of a main teacher are scaled to logits by the valid judgements), or a causal language model."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of its standardised scores among those of all members."""
    prompt: str = "Query: {query}\nProduct: {text}\nDoes the product match the query? Answer yes or no: "
    """What a causal model is asked."""
    answers: tuple[str, ...] = Field(default=("no", "yes"), min_length=2)
    """Answers of a causal model, worst first, such as no and yes, or grades; the logits of their first tokens count."""

    @field_validator("prompt")
    @classmethod
    def _asks(cls, value: str) -> str:
        if "{query}" not in value or "{text}" not in value:
            raise ValueError(f"{value!r} doesn't hold {{query}} and {{text}}, which stand for the pair; write both")
        return value


class Teacher(TeacherMember):
    """The heavy model: ready-made, or an encoder fine-tuned on the judgements; alone, or first of an ensemble."""

    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Encoder to fine-tune where `model` is empty (folder or Hugging Face name); "random" for a random one."""
    random: RandomModel = RandomModel()
    """Its shape where `base` is "random"."""
    max_length: int = Field(default=96, ge=8)
    """Tokens of a pair; what is longer is truncated."""
    train: Train = Train(learning_rate=5e-5)
    """How it is fine-tuned."""
    ensemble: tuple[TeacherMember, ...] = ()
    """Further models, whose standardised scores are averaged with the teacher's by weight."""
    combine: Literal["mean", "agreement"] = "mean"
    """How an ensemble labels a list: by the weighted mean, or by the member that agrees best with its judgements."""
    gate: bool = True
    """Whether a teacher is refused that ranks the valid judgements no better than BM25 or an untrained encoder."""

    @model_validator(mode="after")
    def _loadable(self) -> "Teacher":
        if not self.model and self.kind != "cross":
            raise ValueError(f"kind is {self.kind!r}, but only a cross-encoder is fine-tuned here; name a ready model")
        for place, member in enumerate(self.ensemble):
            if not member.model:
                raise ValueError(f"ensemble.{place}.model is missing; name a folder, a Hugging Face name, or base")
            if member.model == "base" and self.base == "random":
                raise ValueError(f"ensemble.{place}.model is 'base', but base is 'random'; name a pretrained base")
        return self


class Prune(Section):
    """Shares of each layer that a student leaves behind before it is trained: what matters least to its loss."""

    heads: float = Field(default=0.0, ge=0, lt=1)
    """Of the attention heads."""
    units: float = Field(default=0.0, ge=0, lt=1)
    """Of the feed-forward units."""

    @property
    def any(self) -> bool:
        """Whether anything is left behind."""
        return bool(self.heads or self.units)


class Student(Section):
    """The small model."""

    family: Literal["cross", "bi", "late"] = "cross"
    """What it is: a small cross-encoder; two towers that give one vector each; or two towers that give several vectors
    an item, ahead of time, and one a token of the query."""
    init: str = "teacher"
    """Where its weights come from: "teacher", "base" (the teacher's base as it was), "random", a registered student, a
    folder or a Hugging Face name."""
    layers: int = Field(default=3, ge=1)
    """Layers taken, evenly spaced, from the teacher or the base; at most as many as the base has."""
    vectors: int = Field(default=16, ge=1, le=64)
    """Vectors of an item, of family late."""
    width: int = Field(default=0, ge=0, le=1024)
    """Width of vectors, of families bi and late; 0 keeps the encoder's."""
    grades: int = Field(default=0, ge=0, le=32)
    """Grades that a second head tells apart beside the score, of family cross; 0 is no second head."""
    prune: Prune = Prune()
    """What it leaves behind, of family cross; with `init` a trained student, training makes up for it."""
    random: RandomModel = RandomModel()
    """Its shape where `init` is "random"."""
    max_length: int = Field(default=96, ge=8)
    """Tokens of a pair; what is longer is truncated."""

    @model_validator(mode="after")
    def _gradable(self) -> "Student":
        if self.grades == 1 or (self.grades and self.family != "cross"):
            raise ValueError(
                f"grades is {self.grades} of family {self.family!r}; give 2 or more, of family cross, or 0"
            )
        if self.prune.any and self.family != "cross":
            raise ValueError(f"prune is for family cross, not {self.family!r}; set its shares to 0")
        return self


class Features(Section):
    """Weights of the terms on what the models hold inside; all zero is none.

    Hidden states, attention and relations are compared token by token, which needs the teacher's tokenizer; distances
    and angles don't.
    """

    hidden: float = Field(default=0.0, ge=0)
    """Weight of hidden states: each student layer's, projected to the teacher's width, against a layer of the teacher
    (evenly spaced, the last to the last)."""
    hidden_kind: Literal["mse", "cosine"] = "mse"
    """How they are compared."""
    attention: float = Field(default=0.0, ge=0)
    """Weight of attention maps of the same layers, averaged over heads."""
    relation: float = Field(default=0.0, ge=0)
    """Weight of the relations of queries, of keys and of values in the last layers (MiniLM)."""
    relation_heads: int = Field(default=12, ge=1)
    """Relation heads, into which both widths are cut."""
    distance: float = Field(default=0.0, ge=0)
    """Weight of the distances between the pairs' vectors in a batch (RKD)."""
    angle: float = Field(default=0.0, ge=0)
    """Weight of the angles between them (RKD)."""

    @property
    def by_token(self) -> bool:
        """Whether a term compares token by token."""
        return bool(self.hidden or self.attention or self.relation)

    @property
    def any(self) -> bool:
        """Whether there is a term at all."""
        return bool(self.by_token or self.distance or self.angle)


class Schedule(Section):
    """A number that may change in the course of a training; a plain number stands for one that doesn't."""

    start: float
    """Its value at the first step."""
    end: float
    """Its value at the last step."""
    shape: Literal["linear", "cosine"] = "linear"
    """How it gets there: evenly, or slowly at both ends."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):  # YAML reads 5e-1 as text
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"start": value, "end": value}
        if not isinstance(value, dict | Schedule):
            raise ValueError("give a number, or {start: NUMBER, end: NUMBER}")  # noqa: TRY004 - pydantic's contract
        return value

    def at(self, progress: float) -> float:
        """The value where `progress`, in [0, 1], of the steps are done."""
        share = progress if self.shape == "linear" else 0.5 - 0.5 * math.cos(math.pi * progress)
        return self.start + (self.end - self.start) * share


def _in_range(value: Schedule, info: ValidationInfo) -> Schedule:
    low, high = (0.001, 1000.0) if info.field_name == "temperature" else (0.0, 1.0)
    for number in (value.start, value.end):
        if not low <= number <= high:
            raise ValueError(f"{number:g} is out of range; give {low:g} to {high:g}")
    return value


class Grades(Section):
    """The loss of the second head: weight * (alpha * T^2 * KL over the grades + (1 - alpha) * cross-entropy)."""

    weight: float = Field(default=0.5, ge=0)
    """Its weight beside that of the score."""
    temperature: Schedule = Schedule(start=1.0, end=1.0)
    """Temperature of its soft part, of its own."""
    alpha: Schedule = Schedule(start=0.0, end=0.0)
    """Weight of its soft part, for which the teacher must tell the same grades apart."""

    @property
    def soft(self) -> bool:
        """Whether the teacher's logits of grades are needed."""
        return bool(self.alpha.start or self.alpha.end)

    _in_range = field_validator("temperature", "alpha")(_in_range)


class Distill(Section):
    """The student's loss, per list with student scores s, teacher scores t and labels y.

    alpha * T^2 * kl(t/T, s/T) + (1 - alpha) * hard(s, y) + pointwise * BCE(s, t) + margin * MarginMSE(s, t) +
    clicks * softmax(s, c) + the terms of `features` + those of `grades`.
    """

    temperature: Schedule = Schedule(start=1.0, end=1.0)
    """Temperature T, by which both sides' scores are divided."""
    alpha: Schedule = Schedule(start=1.0, end=1.0)
    """Weight of the soft part, in [0, 1]."""
    adaptive: bool = False
    """Whether each list's alpha is multiplied by the share of its judgements that the teacher orders rightly, so that
    a list on which the teacher is wrong leans on the judgements."""
    kl: Literal["forward", "reverse", "symmetric"] = "forward"
    """Direction of the divergence: forward is teacher-first."""
    hard: Literal["listwise", "bce", "mse", "ranknet", "lambda"] = "listwise"
    """Loss on judgements: softmax over gains, pointwise, or over pairs."""
    pointwise: float = Field(default=0.5, ge=0)
    """Weight of the binary cross-entropy that ties the logits to the teacher's scale."""
    margin: float = Field(default=0.0, ge=0)
    """Weight of MarginMSE: differences of scores are to be the teacher's."""
    clicks: float = Field(default=1.0, ge=0)
    """Weight of what shoppers clicked, on lists of which that is known: cross-entropy with the debiased shares c of the
    clicks, which sum to less than 1 where there are few."""
    features: Features = Features()
    """Terms on hidden states, attention and relations, for which the teacher runs beside the student."""
    grades: Grades = Grades()
    """The second head's, where student.grades gives it one."""

    _in_range = field_validator("temperature", "alpha")(_in_range)
