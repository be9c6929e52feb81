"""Several teachers as one: the weighted mean of their standardised scores."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankstill.calibration import calibrate
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
    """Members, the main one first, on whose scale all are; one alone keeps its scores as they are.

    Where the main one is a sentence encoder, whose cosines lie close together, they are made logits:
    scale * score + offset.
    """

    members: tuple[Member, ...]
    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def standardised(
        cls, models: Sequence[TeacherModel], weights: Sequence[float], scores: Sequence[Floats], targets_B: Floats
    ) -> "Ensemble":
        """An ensemble whose members are standardised by their `scores` on the same pairs.

        Cosines become the logits that tell `targets_B`, the judgements in [0, 1], best (`calibrate`), unless high ones
        go with low judgements.

        Raises:
            ModelError: a member scores all pairs alike.
        """
        for model, column in zip(models, scores, strict=True):
            if not column.std() > 0:
                raise ModelError(
                    f"teacher: {model.folder!r} gives all pairs the same score; take it out of the ensemble"
                )
        shares = [weight / sum(weights) for weight in weights]
        ensemble = cls(
            tuple(
                Member(model, share, float(column.mean()), float(column.std()))
                for model, share, column in zip(models, shares, scores, strict=True)
            )
        )
        if models[0].kind != "bi":
            return ensemble
        fitted = calibrate(ensemble.combine(scores), targets_B)
        return replace(ensemble, scale=fitted.scale, offset=fitted.offset) if fitted.scale > 0 else ensemble

    def combine(self, scores: Sequence[Floats]) -> Floats:
        """mean_0 + std_0 * sum_m weight_m * (score_m - mean_m) / std_m, [B], on the scale of the main member."""
        total = sum(
            member.weight * (column - member.mean) / member.std
            for member, column in zip(self.members, scores, strict=True)
        )
        return self._on_scale(np.asarray(total, dtype=np.float64))

    def _on_scale(self, standard_B: Floats) -> Floats:
        """Standardised scores as the main member's, or as logits."""
        first = self.members[0]
        return self.scale * (first.mean + first.std * standard_B) + self.offset

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
        found = self.combine(scores)
        for place, (member, column) in enumerate(zip(self.members, scores, strict=True)):
            found = np.where(chosen == place, self._on_scale((column - member.mean) / member.std), found)
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
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = told["members"]
        models = [{**entry["model"], "answers": tuple(entry["model"]["answers"])} for entry in entries]
        members = tuple(
            Member(TeacherModel(**model), *(float(entry[name]) for name in ("weight", "mean", "std")))
            for model, entry in zip(models, entries, strict=True)
        )
        return Ensemble(members, float(told.get("scale", 1.0)), float(told.get("offset", 0.0)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{field}: {str(folder)!r} has no readable {MANIFEST}; teach again") from error


def is_ensemble(folder: Path) -> bool:
    """Whether a folder describes an ensemble."""
    return (folder / MANIFEST).is_file()
