"""What a run would do, for `--dry-run`: the input is read, and a sample is labelled to tell what labelling costs."""

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from rankstill.cli import format_table
from rankstill.config import Config
from rankstill.data import fingerprint_data, prepare
from rankstill.model_config import Train
from rankstill.progress import Reporter
from rankstill.steps.prepare import Prepared
from rankstill.steps.teach import judged_split, label_max, teacher_key
from rankstill.steps.train import check_models
from rankstill.storage import check_root


def print_plan(config: Config, labels: bool) -> None:
    """Print each step with its work, and what labelling costs if `labels` are part of the run. Nothing is kept.

    Raises:
        InputError: what the run itself would refuse about the data or the models.
    """
    check_root(config.storage.root)
    with tempfile.TemporaryDirectory() as aside:
        prepared = Prepared(fingerprint_data(config.data)[:16], Path(aside))
        summary = prepare(config.data, prepared.folder)
        for remark in summary["remarks"]:
            print(f"note: {remark}")
        print(format_table(plan_rows(config, prepared, summary)))
        if labels:
            from jobs.cost import HEADER, labelling_cost
            from rankstill.steps.run import Run

            with Reporter() as reporter:
                costs = labelling_cost(Run(config, reporter), prepared)
            print("\n" + format_table([HEADER, *(cost.row() for cost in costs)]))


def plan_rows(config: Config, prepared: Prepared, summary: dict[str, Any]) -> list[list[str]]:
    """Table rows: each step, whether its output stands already, and the size of its work; header first."""
    root, key, pairs = config.storage.folder, prepared.key, prepared.pairs
    train, valid, test = (judged_split(pairs, split) for split in ("train", "valid", "test"))
    label_max(train)
    check_models(config)
    teacher = root / "teachers" / teacher_key(config.teacher, key)
    labels = config.labels
    made = labels.made_candidates * min(labels.made_queries, summary["items"])
    unlabelled = min(labels.candidates, summary["items"]) * train["query_id"].n_unique() + made
    judged = train.height + valid.height + test.height
    rejected = sum(source["rejected"] for source in summary["sources"])
    taught = "loaded as it is" if config.teacher.model else _training(train, config.teacher.train)
    rows = [
        ["data", root / "data" / key, f"{pairs.height:,} pairs, {summary['items']:,} items, {rejected} rows rejected"],
        ["teacher", teacher, taught],
        ["labels", None, f"{judged:,} judged pairs and up to {unlabelled:,} unlabelled ones"],
        ["student", None, f"{_training(train, config.train)}, besides unlabelled candidates"],
        ["report", None, f"{test.height:,} pairs of {test['query_id'].n_unique():,} queries, three models"],
        ["artifact", None, f"registered as {config.name!r}"],
    ]
    header = ["step", "stands", "work"]
    return [header, *([name, _stands(folder), work] for name, folder, work in rows)]


def _stands(folder: Path | None) -> str:
    return "-" if folder is None else "yes" if folder.is_dir() else "no"


def _training(pairs: pl.DataFrame, train: Train) -> str:
    return f"{pairs.height:,} pairs of {pairs['query_id'].n_unique():,} queries, up to {train.epochs} times"
