"""Settings of sweeps over students."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rankstill.model_config import Section


class Dimension(Section):
    """One setting that a sweep varies: `choices`, or numbers from `low` to `high`."""

    choices: tuple[Any, ...] = ()
    """Values to choose from."""
    low: float | None = None
    """Smallest number."""
    high: float | None = None
    """Largest number."""
    log: bool = False
    """Whether numbers are drawn evenly on a logarithmic scale."""
    whole: bool = False
    """Whether only whole numbers count."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Other settings and the value, or list of values, that these must have for this one to matter."""

    @model_validator(mode="after")
    def _spans_something(self) -> "Dimension":
        if empty := [name for name, wanted in self.when.items() if wanted == []]:
            raise ValueError(f"when: {empty[0]} has no value to wait for; name some, or drop it")
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError("give either choices, or low and high")
        if self.choices:
            if self.log or self.whole:
                raise ValueError("log and whole are for low and high; drop them beside choices")
            return self
        if self.low is None or self.high is None:
            raise ValueError("low and high belong together; give both")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; swap them, or give choices")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, which has no logarithm; give one above 0, or drop log")
        if self.whole and (self.low % 1 or self.high % 1):
            raise ValueError(f"low {self.low:g} and high {self.high:g} aren't whole; give whole numbers, or drop whole")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """Its choices, or its two ends."""
        if self.choices or self.low is None or self.high is None:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


class Budget(Section):
    """What the winner may cost where it is served; what isn't given is no limit."""

    p99_ms: float | None = Field(default=None, gt=0)
    """Milliseconds within which 99 of 100 rankings are done."""
    candidates: int = Field(default=50, ge=1)
    """Candidates of such a ranking."""
    bytes: int | None = Field(default=None, gt=0)
    """Bytes of the artifact's model file."""


class Sweep(Section):
    """The search for a student."""

    preset: Literal["none", "quick", "standard", "wide"] = "quick"
    """The space to search: what is learnt from (quick), also families, sizes and losses (standard), also pruning and
    dropout (wide), or nothing but `space` (none)."""
    space: dict[str, Dimension | None] = Field(default_factory=dict)
    """Dimensions by dotted key (student.*, distill.*, train.*), added to the preset's or in place of them; null takes
    one away."""
    trials: int = Field(default=24, ge=1, le=100_000)
    """Students to try."""
    search: Literal["tpe", "random"] = "tpe"
    """How the next one is chosen: by what those before it came to (Optuna's TPE), or at random."""
    stop_early: bool = True
    """Whether students that lag behind are given up (ASHA on validation nDCG@10, epoch by epoch)."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs that every student gets."""
    reduction: float = Field(default=3.0, gt=1)
    """Of so many students at a rung, one goes on."""
    max_concurrent: int | Literal["auto"] = "auto"
    """Students trained at a time; auto is as many as the cluster has room for."""
    cpus: int = Field(default=1, ge=1)
    """CPUs, and so threads, of one trial."""
    precisions: tuple[Literal["float32", "int8"], ...] = Field(default=("float32", "int8"), min_length=1)
    """Forms in which every student is exported, judged and timed; int8 is for CPUs."""
    measured: tuple[int, ...] = Field(default=(1, 10, 50, 100), min_length=1)
    """Candidates of a ranking that is timed."""
    measure_on: str = ""
    """Resource label of the machines on which students are timed, such as the kind that serves; empty is where they
    were trained."""
    measure_cpus: int = Field(default=2, ge=1)
    """Threads with which they are timed."""
    budget: Budget = Budget()
    """What the winner may cost."""
    stability: int = Field(default=0, ge=0)
    """Further seeds with which the best are trained again before the winner is chosen."""
    finalists: int = Field(default=3, ge=1)
    """How many of the best these are."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where else each epoch's numbers go, for those who watch sweeps there (wandb needs its package and key)."""
    failures: int = Field(default=3, ge=1)
    """Trials in a row that may fail for the same reason; then the sweep ends with it."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the search."""

    @model_validator(mode="after")
    def _timed(self) -> "Sweep":
        if any(count < 1 for count in self.measured):
            raise ValueError(f"measured holds {min(self.measured)}; give counts of 1 or more")
        if isinstance(self.max_concurrent, int) and self.max_concurrent < 1:
            raise ValueError(f"max_concurrent is {self.max_concurrent}; give 1 or more, or auto")
        return self

    @property
    def counts(self) -> tuple[int, ...]:
        """Candidates of all rankings that are timed, the budget's among them."""
        return tuple(sorted({*self.measured, self.budget.candidates}))
