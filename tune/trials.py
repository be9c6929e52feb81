"""What became of each trial of a sweep, a file each, written whole: whoever starts again knows what is done."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from rankstill.errors import DamagedError
from rankstill.registry import Record
from rankstill.storage import write_json, written_aside

State = Literal["begun", "finished", "stopped", "failed"]
STATUS: dict[State, Literal["FINISHED", "KILLED", "FAILED"]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}
"""MLflow's words for how a trial ended."""
SETTLED = "latencies.json"

Latency = dict[str, dict[str, float]]
"""p50_ms and p99_ms by count of candidates."""


def quieter(one: Latency, other: Latency | None) -> Latency:
    """What one timing tells, or another one where less ran beside that; counts are those of the first."""
    there = other or {}
    return {
        count: {name: min(value, there.get(count, told)[name]) for name, value in told.items()}
        for count, told in one.items()
    }


@dataclass(frozen=True)
class Variant:
    """A student in one of its forms: what it is worth, and what it costs."""

    trial: str
    precision: str
    artifact: str
    runtime: str
    ndcg: dict[str, float]
    """value, low and high of nDCG@10 over the valid queries."""
    timing: dict[str, Any]
    """See `rankstill.timing.time_alone`."""

    @property
    def folder(self) -> Path:
        """Of the artifact."""
        return Path(self.artifact)

    @property
    def name(self) -> str:
        """Of this form."""
        return f"{self.trial} {self.precision}"

    @property
    def bytes(self) -> int:
        """Size of the model file."""
        return self.timing["bytes"]

    def p99_ms(self, candidates: int) -> float:
        """Milliseconds within which 99 of 100 rankings are done."""
        return self.timing["latency"][str(candidates)]["p99_ms"]

    def retimed(self, latencies: Mapping[str, Latency]) -> "Variant":
        """With the quieter of its own latencies and of those told of it; see `TrialFiles.settled`."""
        return replace(
            self, timing={**self.timing, "latency": quieter(self.timing["latency"], latencies.get(self.name))}
        )


@dataclass(frozen=True)
class Trial:
    """One student of a sweep."""

    number: int
    name: str
    params: dict[str, Any]
    state: State = "begun"
    epochs: tuple[dict[str, float], ...] = ()
    """What each epoch came to on the valid queries."""
    seconds: float = 0.0
    """Spent on training, but not on waiting while something was timed."""
    reason: str = ""
    """Why it failed."""
    repeats: str = ""
    """The trial that it repeats with another seed."""
    student: str = ""
    """Key of the student, once its training has begun."""
    variants: tuple[Variant, ...] = field(default=())

    @property
    def best(self) -> float:
        """Its best validation nDCG@10; 0 before the first epoch."""
        return max((epoch["ndcg@10"] for epoch in self.epochs), default=0.0)

    def record(self, sweep: str, candidates: int) -> Record:
        """The trial for those who look with MLflow; once it ended."""
        costs = {"epoch": len(self.epochs)}
        for one in self.variants:
            costs |= {f"{one.precision}_ndcg@10": one.ndcg["value"], f"{one.precision}_bytes": one.bytes}
            costs[f"{one.precision}_p99_ms_{candidates}"] = one.p99_ms(candidates)
        return Record(
            title=f"{sweep} {self.name}",
            params=self.params,
            epochs=[*self.epochs, costs],
            tags={"sweep": sweep, "trial": self.name, "student": self.student, "reason": self.reason},
            status=STATUS[self.state],
        )


class TrialFiles:
    """The trials of one sweep, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in (folder / "trials", folder / "tables"):
            part.mkdir(parents=True, exist_ok=True)

    def write(self, trial: Trial) -> None:
        """Write a trial as it stands."""
        write_json(self._path(trial.name), asdict(trial))

    def _path(self, name: str) -> Path:
        return self.folder / "trials" / f"{name}.json"

    def read(self, name: str) -> Trial:
        """A trial as it stands."""
        path = self._path(name)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            variants = tuple(Variant(**variant) for variant in told.pop("variants"))
            return Trial(**{**told, "epochs": tuple(told["epochs"])}, variants=variants)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"sweep: {str(path)!r} can't be read ({error}); remove it, another takes its place"
            ) from error

    def all(self) -> list[Trial]:
        """All trials, in the order in which they were chosen."""
        found = [self.read(path.stem) for path in (self.folder / "trials").glob("[!.]*.json")]
        return sorted(found, key=lambda trial: trial.number)

    def end(self, name: str, state: State, reason: str = "") -> Trial:
        """Note how a trial ended, unless it has told so itself."""
        trial = self.read(name)
        if trial.state == "begun":
            trial = replace(trial, state=state, reason=reason)
            self.write(trial)
        return trial

    def settled(self) -> dict[str, Latency]:
        """Latencies of forms that were timed side by side, by name; see `tune.finals.settle`."""
        try:
            return json.loads((self.folder / SETTLED).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # which is measured again
            return {}

    def settle(self, latencies: dict[str, Latency]) -> None:
        """Write what forms took, in place of what was written before."""
        write_json(self.folder / SETTLED, latencies)

    def write_table(self, variant: str, table: pl.DataFrame) -> None:
        """Write the metrics of each query of one form."""
        with written_aside(self.folder / "tables" / f"{variant}.parquet") as aside:
            table.write_parquet(aside)

    def table(self, variant: Variant) -> pl.DataFrame:
        """Metrics of each query of one form (see `rankstill.metrics.per_query`)."""
        path = self.folder / "tables" / f"{variant.name}.parquet"
        try:
            return pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            trial = str(self._path(variant.trial))
            raise DamagedError(
                f"sweep: {str(path)!r} can't be read; remove {trial!r}, another takes its place"
            ) from error


def variants_of(trials: Sequence[Trial]) -> list[Variant]:
    """All forms of all finished trials."""
    return [variant for trial in trials if trial.state == "finished" for variant in trial.variants]
