"""Evaluate a model on judgements."""

import json
from typing import Any

from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.config import Config
from rankstill.configfile import load_config

DESCRIPTION = """Evaluate a model on judgements.

MODEL is a registry name (shop@champion, shop/7), an artifact folder, a teacher folder, a Hugging Face name,
or one of the baselines bm25 and random. Without a config, items are rendered from the fields that the model was
trained on, where it knows them (title, brand and description otherwise)."""


def main() -> None:
    """`python -m jobs.evaluate`."""
    parser = make_parser("jobs.evaluate", DESCRIPTION)
    parser.add_argument("--model", required=True, metavar="MODEL", help="what to evaluate")
    parser.add_argument("--judgements", required=True, metavar="FILE", help="file, folder or URL of judged pairs")
    parser.add_argument("--split", choices=("train", "valid", "test"), help="only the queries of this split")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_config_arguments(parser, required=False)
    arguments = parser.parse_intermixed_args()
    config = load_config(
        arguments.config or {"data": {"sources": [{"path": arguments.judgements}]}}, arguments.overrides
    )
    own_fields = arguments.config is None and not any(text.startswith("data.fields") for text in arguments.overrides)
    report = evaluate_file(config, arguments.model, arguments.judgements, arguments.split, own_fields)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    from rankstill.evaluation import metric_rows

    print(f"{report['model']}: {report['queries']} queries, {report['pairs']} pairs of {report['judgements']}")
    print(format_table(metric_rows(report)))
    print(f"{report['pairs_per_second']:,.0f} pairs/s, {report['parameters']:,} parameters, {report['bytes']:,} bytes")


def evaluate_file(config: Config, model: str, judgements: str, split: str | None, own_fields: bool) -> dict[str, Any]:
    """The report of a model on one file.

    Column names come from the config, and so do the item fields, unless `own_fields` asks for those that the model
    was trained on, where it knows them.
    """
    import polars as pl

    from rankstill.config import Source
    from rankstill.data import read_judgements
    from rankstill.errors import DataError
    from rankstill.evaluation import evaluate
    from rankstill.rankers import load_ranker, pick_device

    device = pick_device(config.resources.device)
    ranker = load_ranker(model, "--model", config.storage.folder, device, config.labels.token_budget)
    data = config.data
    if own_fields and ranker.fields:
        data = data.model_copy(update={"fields": ranker.fields})
    known = {source.path: source for source in data.sources}
    columns = data.sources[0].columns if data.sources else {}
    pairs = read_judgements(known.get(judgements, Source(path=judgements, columns=columns)), data)
    if split:
        pairs = pairs.filter(pl.col("split") == split)
        if pairs.is_empty():
            raise DataError(f"--split {split!r}: {judgements!r} has no query of it; choose another")
    report, table = evaluate(ranker, pairs, judgements)
    if table["ndcg@10"].null_count() == table.height:
        raise DataError(
            f"--judgements: all labels of each query of {judgements!r} are equal, so that rankings can't be told apart;"
            " give judgements that differ"
        )
    return report


if __name__ == "__main__":
    run_command(main)
