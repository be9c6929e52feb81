"""Make a student smaller, and refuse it where that costs quality."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.config import NAME, Config
from rankstill.configfile import load_config
from rankstill.errors import ConfigError

DESCRIPTION = """Quantise a student to int8, for ONNX Runtime on CPUs.

Both forms score the judgements. The small one is refused where the rank correlation of its scores with the original's
is below 0.99, or where its nDCG@10 is lower by a paired interval that excludes zero. With --name it is registered."""

CANDIDATES = 50
"""Of the rankings that both forms are timed on, as they are served."""


def main() -> None:
    """`python -m jobs.compress`."""
    parser = make_parser("jobs.compress", DESCRIPTION)
    parser.add_argument("--model", required=True, metavar="MODEL", help="registry name or artifact folder of a student")
    parser.add_argument("--judgements", required=True, metavar="FILE", help="file, folder or URL of judged pairs")
    parser.add_argument("--split", choices=("train", "valid", "test"), default="valid", help="the queries that count")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the new artifact")
    parser.add_argument("--name", help="register it under this name, as challenger")
    add_config_arguments(parser, required=False)
    arguments = parser.parse_intermixed_args()
    if arguments.name and not re.fullmatch(NAME, arguments.name):
        raise ConfigError(f"--name {arguments.name!r} is no name; use up to 64 letters, digits, dots, _ and -")
    from rankstill.evaluation import comparison_rows

    tree = arguments.config or {"data": {"sources": [{"path": arguments.judgements}]}}
    config = load_config(tree, arguments.overrides)
    start = time.monotonic()
    out = Path(arguments.out).absolute()
    measured = compress(config, arguments.model, arguments.judgements, arguments.split, out)
    print(format_table(comparison_rows(measured["models"])))
    times = [
        f"{form} {one['p50_ms']:.1f} ms (p50), {one['p99_ms']:.1f} ms (p99)"
        for form, one in measured["latency"].items()
    ]
    print(f"rank correlation {measured['correlation']:.4f}; a ranking of {CANDIDATES}: {'; '.join(times)}")
    if arguments.name:
        from rankstill.registry import Registry

        value = measured["models"]["int8"]["metrics"]["ndcg@10"]["value"]
        version = Registry(config.storage.folder).register(arguments.name, out, {"ndcg": f"{value:.6f}"})
        print(f"registered {version} ({', '.join(version.aliases)})")
    print(f"{out} in {time.monotonic() - start:.0f} s")


def compress(config: Config, model: str, judgements: str, split: str, out: Path) -> dict[str, Any]:
    """Write an int8 artifact to the new folder `out`; returns both reports, how they compare, and what rankings take.

    Raises:
        GateError: it loses quality.
        ConfigError: `out` is there already.
    """
    import polars as pl

    from rankstill.artifacts import load_artifact
    from rankstill.compression import describe, quantise_artifact
    from rankstill.config import Source
    from rankstill.data import read_judgements
    from rankstill.errors import DataError
    from rankstill.evaluation import check_fidelity
    from rankstill.registry import find_version
    from rankstill.storage import make_parent
    from rankstill.timing import Timing, choose_rankings, time_alone

    if out.exists():
        raise ConfigError(f"--out {str(out)!r} is there already; give a new folder")
    version = find_version(model, config.storage.folder, "--model")
    artifact = load_artifact(version.folder if version else Path(model), "--model")
    if artifact.precision == "int8":
        raise ConfigError(f"--model {model!r} is int8 already; give the float32 artifact")
    columns = config.data.sources[0].columns if config.data.sources else {}
    data = config.data.model_copy(update={"fields": tuple(artifact.fields)})
    pairs = read_judgements([Source(path=judgements, columns=columns)], data).filter(pl.col("split") == split)
    if pairs.is_empty():
        raise DataError(f"--split {split!r}: {judgements!r} has no query of it; choose another")
    make_parent(out, "--out")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as parent:
        aside = Path(parent, out.name)
        aside.mkdir()
        small = quantise_artifact(artifact, aside)
        measured = check_fidelity(artifact, small, pairs, judgements, config.labels.budget("cpu"))
        forms = ((str(artifact.folder), "auto"), (str(aside), "auto"))
        timing = Timing(forms, os.cpu_count() or 1, (CANDIDATES,), choose_rankings(pairs, CANDIDATES), parts=3)
        timed = time_alone(config.storage.folder, timing)
        measured["latency"] = {
            form: one["latency"][str(CANDIDATES)] for form, one in zip(measured["models"], timed, strict=True)
        }
        describe(artifact, aside, {"judgements": Path(judgements).name, "split": split, **measured})
        os.replace(aside, out)
    return measured


if __name__ == "__main__":
    run_command(main)
