"""Several teachers as one: the weighted mean of their standardised scores."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankstill.errors import ModelError
from rankstill.metrics import per_query
from rankstill.storage import write_json
from rankstill.teachers.kinds import TeacherModel

MANIFEST = "ensemble.json"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """A model with its say, and what its scores on judged pairs look like."""

    model: TeacherModel
    weight: float
    """Share in the mean; those of all members sum to 1."""
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Ensemble:
    """Members, the main one first; one alone keeps its scores as they are."""

    members: tuple[Member, ...]

    @classmethod
    def standardised(
        cls, models: Sequence[TeacherModel], weights: Sequence[float], scores: Sequence[Floats]
    ) -> "Ensemble":
        """An ensemble whose members are standardised by their `scores` on the same pairs.

        Raises:
            ModelError: a member scores all pairs alike.
        """
        for model, column in zip(models, scores, strict=True):
            if not column.std() > 0:
                raise ModelError(
                    f"teacher: {model.folder!r} gives all pairs the same score; take it out of the ensemble"
                )
        shares = [weight / sum(weights) for weight in weights]
        return cls(
            tuple(
                Member(model, share, float(column.mean()), float(column.std()))
                for model, share, column in zip(models, shares, scores, strict=True)
            )
        )

    def combine(self, scores: Sequence[Floats]) -> Floats:
        """mean_0 + std_0 * sum_m weight_m * (score_m - mean_m) / std_m, [B], on the scale of the main member."""
        first = self.members[0]
        total = sum(
            member.weight * (column - member.mean) / member.std
            for member, column in zip(self.members, scores, strict=True)
        )
        return first.mean + first.std * np.asarray(total, dtype=np.float64)

    def choose(self, pairs: pl.DataFrame, scores: Sequence[Floats]) -> Floats:
        """Each list's scores from the member that agrees best with its judgements, standardised as in `combine`, [B].

        `pairs` has query_id, item_id and label (null where unjudged). Agreement is pairwise accuracy; where members
        draw, or nothing is judged, the list gets the weighted mean.
        """
        judged = pairs["label"].is_not_null().to_numpy()
        tables = [per_query(pairs.filter(judged), column[judged]) for column in scores]
        agreements = pl.DataFrame({str(place): table["pairwise_accuracy"] for place, table in enumerate(tables)})
        best = {}
        for query, row in zip(tables[0]["query_id"], agreements.rows(), strict=True):
            if None not in row and row.count(max(row)) == 1:
                best[query] = row.index(max(row))
        chosen = np.array([best.get(query, -1) for query in pairs["query_id"]])
        first, found = self.members[0], self.combine(scores)
        for place, (member, column) in enumerate(zip(self.members, scores, strict=True)):
            alike = first.mean + first.std * (column - member.mean) / member.std
            found = np.where(chosen == place, alike, found)
        return found

    def write(self, folder: Path) -> None:
        """Write the manifest; the models stay where they are."""
        write_json(folder / MANIFEST, asdict(self))


def read_ensemble(folder: Path, field: str) -> Ensemble:
    """The ensemble that a folder describes.

    Raises:
        ModelError: no readable manifest.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["members"]
        models = [{**entry["model"], "answers": tuple(entry["model"]["answers"])} for entry in entries]
        return Ensemble(
            tuple(
                Member(TeacherModel(**model), *(float(entry[name]) for name in ("weight", "mean", "std")))
                for model, entry in zip(models, entries, strict=True)
            )
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{field}: {str(folder)!r} has no readable {MANIFEST}; teach again") from error


def is_ensemble(folder: Path) -> bool:
    """Whether a folder describes an ensemble."""
    return (folder / MANIFEST).is_file()
