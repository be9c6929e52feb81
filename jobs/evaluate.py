"""Evaluate a model on judgements."""

import json
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.config import Config, Data
from rankstill.configfile import load_config
from rankstill.errors import DataError

if TYPE_CHECKING:
    import polars as pl

DESCRIPTION = """Evaluate a model on judgements.

MODEL is a registry name (shop@champion, shop/7), an artifact folder, a teacher folder, a Hugging Face name,
or one of the baselines bm25 and random. Without a config, items are rendered from the fields that the model was
trained on, where it knows them (title, brand and description otherwise), and --split draws as when it was trained.
Without --split all queries count, also those that it learnt from."""


def main() -> None:
    """`python -m jobs.evaluate`."""
    parser = make_parser("jobs.evaluate", DESCRIPTION)
    parser.add_argument("--model", required=True, metavar="MODEL", help="what to evaluate")
    parser.add_argument(
        "--judgements",
        required=True,
        action="append",
        metavar="FILE",
        help="file, folder or URL of judged pairs; may be given several times",
    )
    parser.add_argument("--against", default="", metavar="MODEL", help="another model, to which differences are told")
    parser.add_argument("--split", choices=("train", "valid", "test"), help="only the queries of this split")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_config_arguments(parser, required=False)
    arguments = parser.parse_intermixed_args()
    sources = [{"path": path} for path in arguments.judgements]
    config = load_config(arguments.config or {"data": {"sources": sources}}, arguments.overrides)
    told = {text.partition("=")[0] for text in arguments.overrides}
    own = set[str]() if arguments.config else {"data.fields", "data.test", "data.valid"} - told
    report = evaluate_files(config, arguments.model, arguments.judgements, arguments.split, own, arguments.against)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    from rankstill.evaluation import metric_rows

    print(f"{report['model']}: {report['queries']} queries, {report['pairs']} pairs of {report['judgements']}")
    print(format_table(metric_rows(report)))
    print(f"{report['pairs_per_second']:,.0f} pairs/s, {report['parameters']:,} parameters, {report['bytes']:,} bytes")


def evaluate_files(
    config: Config, model: str, judgements: Sequence[str], split: str | None, own: Set[str], against: str = ""
) -> dict[str, Any]:
    """The report of a model on files, with its differences to the model `against`, paired by query.

    Column names and the rest of `data` come from the config, but for those settings in `own` (data.fields, data.test,
    data.valid) of which the model knows what it was trained with.
    """
    from rankstill.evaluation import evaluate
    from rankstill.metrics import METRICS, paired_difference
    from rankstill.rankers import load_ranker, pick_device

    device = pick_device(config.resources.device)
    models = {"--model": model, **({"--against": against} if against else {})}
    rankers = [
        load_ranker(reference, field, config.storage.folder, device, config.labels.budget(device))
        for field, reference in models.items()
    ]
    shares = {name: share for name, share in rankers[0].held_out.items() if f"data.{name}" in own}
    measured = []
    for ranker in rankers:
        fields = ranker.fields if "data.fields" in own and ranker.fields else config.data.fields
        data = config.data.model_copy(update={"fields": tuple(fields), **shares})
        measured.append(evaluate(ranker, read_files(data, judgements, split), ", ".join(judgements)))
    (report, table, _), *others = measured
    if table["ndcg@10"].null_count() == table.height:
        raise DataError(
            f"--judgements: all labels of each query of {', '.join(judgements)!r} are equal, so that rankings can't be"
            " told apart; give judgements that differ"
        )
    for other, base, _ in others:
        differences = {metric: paired_difference(table, base, metric).as_dict() for metric in METRICS}
        report["against"] = {"model": other["model"], "differences": differences}
    return report


def read_files(data: Data, judgements: Sequence[str], split: str | None) -> "pl.DataFrame":
    """Judged pairs of files; a file that `data` names is read as it says.

    Raises:
        DataError: no query of the split.
    """
    import polars as pl

    from rankstill.config import Source
    from rankstill.data import read_judgements

    known = {source.path: source for source in data.sources}
    columns = data.sources[0].columns if data.sources else {}
    sources = [known.get(path, Source(path=path, columns=columns)) for path in judgements]
    pairs = read_judgements(sources, data)
    if split:
        pairs = pairs.filter(pl.col("split") == split)
        if pairs.is_empty():
            raise DataError(f"--split {split!r}: {', '.join(judgements)!r} has no query of it; choose another")
    return pairs


if __name__ == "__main__":
    run_command(main)
