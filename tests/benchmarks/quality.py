"""What each recipe makes of the same student, from the same data, in the same number of optimizer steps.

    python -m tests.benchmarks.quality --config FILE --out FOLDER [--recipe NAME ...] [dotted.key=value ...]

The teacher is taught, or taken from where it stands, and labels lists and test pairs; then each recipe trains the
student of the config `--seeds` times for `--steps` steps. Students choose nothing on test queries: the last step
counts. Finished trainings stand in the output folder, so that a run that was stopped goes on. Intervals are over test
queries, each with its mean over seeds; differences are paired by query.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from rankstill.bm25 import score_pairs
from rankstill.cli import format_table
from rankstill.configfile import load_config
from rankstill.metrics import estimate, paired_difference, per_query, slices
from rankstill.model_config import Distill
from rankstill.objective import Objective
from rankstill.progress import Reporter
from rankstill.rankers import load_ranker
from rankstill.steps.fit import Fit, fit, history
from rankstill.steps.label import Labelled, label, labels_of, open_labellers
from rankstill.steps.prepare import prepare_data
from rankstill.steps.run import Run
from rankstill.steps.teach import Taught, judged_split, label_max, teach
from rankstill.steps.train import start_student
from rankstill.storage import write_json

METRICS = ("ndcg@10", "pairwise_accuracy")


@dataclass(frozen=True)
class Recipe:
    """What a student learns from, and how."""

    unlabelled: bool
    """Whether unjudged pairs with soft labels are added to the judged ones."""
    hard: bool
    """Whether judgements are seen."""
    soft: bool
    """Whether soft labels are seen."""
    distill: dict[str, Any]
    peer: str = ""
    """The loss of sentence-transformers that is used in place of ours."""


RECIPES = {
    "hard": Recipe(False, True, False, {"alpha": 0.0}),
    "hard, LambdaLoss": Recipe(False, True, False, {"alpha": 0.0, "hard": "lambda"}),
    "soft": Recipe(False, False, True, {}),
    "soft + hard": Recipe(False, True, True, {"alpha": 0.7}),
    "unlabelled": Recipe(True, False, True, {}),
    "unlabelled + hard": Recipe(True, True, True, {"alpha": 0.7}),
    "unlabelled + hard, adaptive": Recipe(True, True, True, {"alpha": 0.9, "adaptive": True}),
    "unlabelled, T 0.5": Recipe(True, False, True, {"temperature": 0.5}),
    "unlabelled, T 2": Recipe(True, False, True, {"temperature": 2.0}),
    "unlabelled, MarginMSE": Recipe(True, False, True, {"alpha": 0.0, "pointwise": 0.0, "margin": 1.0}),
    "unlabelled + MarginMSE": Recipe(True, False, True, {"margin": 1.0}),
    "unlabelled + feature": Recipe(True, False, True, {"features": {"hidden": 0.1}}),
    "unlabelled + relation": Recipe(True, False, True, {"features": {"distance": 0.5, "angle": 1.0}}),
    "sentence-transformers MSE": Recipe(True, False, True, {}, peer="mse"),
    "sentence-transformers MarginMSE": Recipe(True, False, True, {}, peer="margin_mse"),
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", action="append", dest="recipes", choices=RECIPES, metavar="NAME", help="one of all")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    arguments = parser.parse_intermixed_args()
    arguments.recipes = arguments.recipes or list(RECIPES)
    config = load_config(arguments.config, arguments.overrides)
    train = config.train.model_copy(update={"max_steps": arguments.steps, "epochs": 1000, "patience": 1000})
    with Reporter() as reporter:
        run = Run(config, reporter)
        prepared = prepare_data(run)
        taught = teach(run, prepared)
        labelled = label(run, prepared, taught)
        test = judged_split(prepared.pairs, "test")
        arguments.out.mkdir(parents=True, exist_ok=True)
        for seed in range(arguments.seeds):
            for name in arguments.recipes:
                folder = arguments.out / f"{name}-{seed}".replace(" ", "_").replace(",", "")
                if not (folder / "done.json").is_file():
                    reporter.event("quality", recipe=name, seed=seed)
                    own = run.config.model_copy(update={"train": train.model_copy(update={"seed": seed})})
                    rate = run_recipe(
                        Run(own, reporter), RECIPES[name], taught, labelled, folder, label_max(prepared.pairs)
                    )
                    scored = score(folder / "model", test)
                    write_json(folder / "done.json", {"pairs_per_second": rate, "scores": scored})
        # Labelling scored the test pairs too.
        labels = labels_of(run, taught, open_labellers(run, prepared, taught), test, prepared.key)
        report = summarise(arguments, test, scores_of(test, labels))
    write_json(arguments.out / "quality.json", report)
    print(f"{len(arguments.recipes)} recipes, {arguments.seeds} seeds, {arguments.steps} steps; test split")
    print(format_table(table_rows(report)))
    if peers(arguments.recipes):
        print(format_table(peer_rows(report)))
    print("slices on which a student is above its teacher: " + ("; ".join(report["above_teacher"]) or "none"))


def run_recipe(run: Run, recipe: Recipe, taught: Taught, labelled: Labelled, folder: Path, largest: float) -> float:
    """Train the student into `folder`/model; returns the pairs a second of training."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    lists = learnt_from(labelled.train, recipe)
    config = run.config
    student = start_student(run, taught, labelled)
    if recipe.peer:
        from tests.benchmarks.peers import train_peer

        student.save(folder / "initial")
        pairs = lists.explode("items").unnest("items")
        # As many pairs a step as ours has on average, whose lists are cut at list_size.
        parts = (lists["items"].list.len() / config.train.list_size).ceil().sum()
        size = round(config.train.lists * pairs.height / parts)
        return train_peer(
            recipe.peer, folder / "initial", pairs, config.train, size, student.max_length, folder / "model"
        )
    distill = Distill.model_validate(recipe.distill)
    valid = pl.read_parquet(labelled.valid).head(40)  # nothing is chosen on it
    plan = Fit(
        task="train",
        name=f"quality-{folder.name}",
        train_lists=as_table(lists),
        valid_lists=as_table(valid),
        train=config.train,
        objective=Objective(distill, largest),
        teacher=taught.main if distill.features.any else None,
        best=False,
    )
    fit(run, student, plan, folder / "model")
    rates = [epoch["pairs_per_second"] for epoch in history(folder / "model")]
    return sum(rates) / len(rates)


def learnt_from(path: Path, recipe: Recipe) -> pl.DataFrame:
    """The lists with what a recipe may see."""
    pairs = pl.read_parquet(path).explode("items").unnest("items")
    if not recipe.unlabelled:
        pairs = pairs.filter(pl.col("label").is_not_null())
    if not recipe.hard:
        pairs = pairs.with_columns(label=pl.lit(None, pl.Float32))
    if not recipe.soft:
        pairs = pairs.with_columns(score=pl.lit(None, pl.Float32))
    items = pl.struct("item_id", "text", "label", "score", "logits").alias("items")
    return pairs.group_by("query_id", "query", maintain_order=True).agg(items)


def as_table(lists: pl.DataFrame) -> pa.Table:
    """Lists as Arrow."""
    return lists.to_arrow(compat_level=pl.CompatLevel.oldest())


def score(folder: Path, test: pl.DataFrame) -> list[float]:
    """Scores of the test pairs."""
    return load_ranker(str(folder), "student", folder).score(test).tolist()


def scores_of(pairs: pl.DataFrame, labels: pl.DataFrame) -> NDArray[np.float32]:
    """The teacher's score of each pair."""
    return pairs.join(labels, on="pair_id", how="left", maintain_order="left")["score"].to_numpy()


def summarise(arguments: argparse.Namespace, test: pl.DataFrame, teacher_B: NDArray[np.float32]) -> dict[str, Any]:
    """Metrics of every recipe, on all test queries and by source, with differences to the first, peers and teacher."""
    references = {"teacher": [teacher_B], "BM25": [score_pairs(test)]}
    tables, rates = {}, {}
    for name in arguments.recipes:
        done = [
            json.loads((arguments.out / f"{name}-{seed}".replace(" ", "_").replace(",", "") / "done.json").read_text())
            for seed in range(arguments.seeds)
        ]
        rates[name] = sum(one["pairs_per_second"] for one in done) / len(done)
        tables[name] = over_seeds(test, [one["scores"] for one in done])
    tables |= {name: over_seeds(test, scores) for name, scores in references.items()}
    parts = {"all": test["query_id"].unique(), **slices(test)}
    first = arguments.recipes[0]
    others = [first, *peers(arguments.recipes), "teacher"]
    report: dict[str, Any] = {"steps": arguments.steps, "seeds": arguments.seeds, "baseline": first, "recipes": {}}
    above = []
    for name, table in tables.items():
        entry: dict[str, Any] = {"pairs_per_second": rates.get(name), "parts": {}}
        for part, ids in parts.items():
            own = table.filter(pl.col("query_id").is_in(ids.implode()))
            entry["parts"][part] = {
                metric: {
                    **estimate(own[metric].to_list()).as_dict(),
                    **{f"minus {other}": paired_difference(own, tables[other], metric).as_dict() for other in others},
                }
                for metric in METRICS
            }
            gain = entry["parts"][part]["ndcg@10"]["minus teacher"]
            if name in arguments.recipes and part != "all" and gain["low"] is not None and gain["low"] > 0:
                above.append(f"{name} on {part} {interval(gain)}")
        report["recipes"][name] = entry
    report["above_teacher"] = above
    return report


def peers(recipes: Sequence[str]) -> list[str]:
    """Those of the recipes that are another library's."""
    return [name for name in recipes if RECIPES[name].peer]


def over_seeds(test: pl.DataFrame, scores: Sequence[Any]) -> pl.DataFrame:
    """`per_query` averaged over seeds."""
    tables = [per_query(test, pl.Series(values).to_numpy()) for values in scores]
    return pl.concat(tables).group_by("query_id", maintain_order=True).mean()


def peer_rows(report: dict[str, Any]) -> list[list[str]]:
    """Our recipes' differences to each peer's, as text, header first."""
    names = peers([name for name in report["recipes"] if name in RECIPES])
    rows = [["nDCG@10, all", *(f"minus {name}" for name in names)]]
    for name, entry in report["recipes"].items():
        if name in RECIPES and name not in names:
            gains = [entry["parts"]["all"]["ndcg@10"][f"minus {peer}"] for peer in names]
            rows.append([name, *(interval(gain) for gain in gains)])
    return rows


def interval(gain: dict[str, Any]) -> str:
    """A difference with its interval."""
    return f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def table_rows(report: dict[str, Any]) -> list[list[str]]:
    """The table as text, header first."""
    parts = [
        part for part in next(iter(report["recipes"].values()))["parts"] if part == "all" or part.startswith("source")
    ]
    base = report["baseline"]
    rows = [["recipe", *(f"{part.removeprefix('source ')}" for part in parts), f"all, minus {base!r}", "pairs/s"]]
    for name, entry in report["recipes"].items():
        cells = []
        for part in parts:
            value = entry["parts"][part]
            cells.append(f"{value['ndcg@10']['value']:.4f} {value['pairwise_accuracy']['value']:.4f}")
        gain = entry["parts"]["all"]["ndcg@10"][f"minus {base}"]
        cells.append(interval(gain))
        rows.append([name, *cells, f"{entry['pairs_per_second']:.0f}" if entry["pairs_per_second"] else "-"])
    return rows


if __name__ == "__main__":
    main()
