"""What labelling would cost, from a sample that is really scored."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from rankstill.encoders import find_encoder
from rankstill.steps.label import pairs_to_label
from rankstill.steps.labelling import LabelActor, Labeller, open_labeller, write_block
from rankstill.steps.pool import map_blocks
from rankstill.steps.prepare import Prepared
from rankstill.steps.quantise import quantise, quantised_key
from rankstill.steps.run import Run
from rankstill.steps.teach import member_models, teacher_key, teacher_model
from rankstill.teachers.cross_encoder import untrained_teacher
from rankstill.teachers.kinds import TeacherModel
from rankstill.trees import open_tree

SAMPLE = {"cpu": 512, "cuda": 16_384}
"""Pairs that are scored, by device."""
NEIGHBOURS = 64
"""Pairs of a sample that stand together."""
HEADER = ["model", "pairs", "stored", "to score", "tokens", "pairs/s", "hours", "cost"]


@dataclass(frozen=True)
class Cost:
    """What one model's labels take."""

    model: str
    pairs: int
    stored: int
    tokens: int
    pairs_per_second: float
    """Of the whole cluster."""
    price_per_hour: float

    @property
    def missing(self) -> int:
        """Pairs to score."""
        return self.pairs - self.stored

    @property
    def hours(self) -> float:
        """Time that it takes."""
        return self.missing / self.pairs_per_second / 3600 if self.missing else 0.0

    def row(self) -> list[str]:
        """Of a table under `HEADER`."""
        price = f"{self.hours * self.price_per_hour:,.2f}" if self.price_per_hour else "-"
        rate = f"{self.pairs_per_second:,.0f}" if self.missing else "-"
        counts = [f"{count:,}" for count in (self.pairs, self.stored, self.missing, self.tokens)]
        return [self.model, *counts, rate, f"{self.hours:,.3f}", price]


def labelling_cost(run: Run, prepared: Prepared) -> list[Cost]:
    """What each of the teacher's models would have to score, and how long it takes.

    A teacher that is still to be fine-tuned is stood in for by the encoder that it starts from, which is as fast.
    """
    pairs = pl.concat(pairs_to_label(run, prepared).values(), how="diagonal").unique("pair_id", maintain_order=True)
    pairs = pairs.select("pair_id", "query", "item_id", "text")
    with tempfile.TemporaryDirectory() as folder:
        costs = []
        for place, (model, stands) in enumerate(_models(run, prepared, pairs, Path(folder, "model"))):
            aside = Path(folder, str(place))
            aside.mkdir()
            if run.config.labels.precision == "int8":
                model, stands = _in_int8(run, prepared, model, stands, aside)
            costs.append(_cost(run, model, stands, pairs, aside))
        return costs


def _models(run: Run, prepared: Prepared, pairs: pl.DataFrame, aside: Path) -> list[tuple[TeacherModel, bool]]:
    """The teacher's models, each with whether it is the very one that labels."""
    config = run.config.teacher
    trained = run.config.storage.folder / "teachers" / teacher_key(config, prepared.key)
    if config.model and config.kind != "cross":
        main = find_encoder(config.model, "teacher.model"), True
    elif trained.is_dir():
        main = trained, True
    elif config.model:
        main = find_encoder(config.model, "teacher.model"), False
    else:
        untrained_teacher(config, pairs["query"].to_list() + pairs["text"].to_list()).save(aside)
        main = aside, False
    members = [(model, True) for model in member_models(config)]
    return [(teacher_model(config, main[0], config.max_length), main[1]), *members]


def _in_int8(run: Run, prepared: Prepared, model: TeacherModel, stands: bool, aside: Path) -> tuple[TeacherModel, bool]:
    """A model's int8 form, with whether it is the very one that labels."""
    made = run.config.storage.folder / "quantised" / quantised_key(prepared, model) / "model"
    if stands and made.is_dir():
        return replace(model, folder=str(made)), True
    (aside / "float32").mkdir()
    quantise(run, model, aside / "float32", aside / "int8")
    return replace(model, folder=str(aside / "int8")), False


def _cost(run: Run, model: TeacherModel, stands: bool, pairs: pl.DataFrame, aside: Path) -> Cost:
    labeller = open_labeller(run, model, make=False)
    missing = pairs
    if stands:
        parts = [part for _, part in labeller.store.missing(pairs.lazy(), aside / "buckets")]
        missing = pl.concat(parts) if parts else pairs.clear()
    tokens, rate = 0, 0.0
    if missing.height:
        sample = neighbours(missing, SAMPLE[run.share.device])
        told = _score(run, labeller, sample, aside)
        tokens = round(told["tokens"] / sample.height * missing.height)
        rate = sample.height / told["seconds"] * run.share.actors[0]
    name = Path(model.folder).name if stands else f"{run.config.teacher.model or run.config.teacher.base} (stands in)"
    price = run.config.resources.price_per_hour
    return Cost(name, pairs.height, pairs.height - missing.height, tokens, rate, price)


def neighbours(pairs: pl.DataFrame, rows: int) -> pl.DataFrame:
    """About so many of the pairs, in runs of neighbours by text.

    Labelling goes by text, and sentence encoders encode what occurs again only once: in a sample of pairs from anywhere
    hardly any text would.
    """
    runs = np.random.default_rng(0).permutation(math.ceil(pairs.height / NEIGHBOURS))[: rows // NEIGHBOURS]
    places = pl.int_range(pl.len()) // NEIGHBOURS
    return pairs.sort("text", maintain_order=True).filter(places.is_in(runs.tolist()))


def _score(run: Run, labeller: Labeller, sample: pl.DataFrame, aside: Path) -> dict:
    """What an actor of the pool tells of the sample."""
    tree = open_tree(str(aside), "sample", make=True)
    write_block(tree, "pending/labels--000000.parquet", sample)
    (told,) = map_blocks(LabelActor, labeller.job(run, tree), ["pending/labels--000000.parquet"], (1, 1))
    return told
