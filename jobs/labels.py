"""Look after a label store: show, verify, compact, diff."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rankstill.cli import format_table, make_parser, run_command
from rankstill.errors import RunError

if TYPE_CHECKING:
    import argparse

    import ray.data

    from rankstill.labels import LabelStore

DESCRIPTION = """Look after a label store.

STORE is the folder or URL of one teacher's labels, <root>/labels/<fingerprint>; jobs.label prints it.

show     what teacher the labels are of, and what each run added
verify   read everything: hashes, counts, pairs doubled, scores not finite; exit code 1 where something is wrong
compact  merge small files into few, in one step that readers don't notice
diff     how the labels of two teachers agree"""


def main() -> None:
    """`python -m jobs.labels`."""
    parser = make_parser("jobs.labels", DESCRIPTION)
    parser.add_argument("action", choices=ACTIONS, metavar="show|verify|compact|diff")
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="the second store of diff")
    parser.add_argument(
        "--keep-hours",
        type=float,
        default=24.0,
        metavar="N",
        help="compact: hours for which replaced files stay, for readers that have begun (24)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_intermixed_args()
    if (arguments.other is None) == (arguments.action == "diff"):
        parser.error("diff takes two stores, the others one")
    if not arguments.keep_hours >= 0:
        parser.error(f"--keep-hours is {arguments.keep_hours}; give 0 or more")
    ACTIONS[arguments.action](arguments)


def as_dataset(store: "LabelStore") -> "ray.data.Dataset":
    """The labels of a store, for Ray Data to read in parallel."""
    import ray.data

    return ray.data.read_parquet([file.path for file in store.files()], filesystem=store.tree)


def show(arguments: "argparse.Namespace") -> None:
    """What a store holds."""
    from rankstill.labels import open_store

    store = open_store(arguments.store, field="STORE")
    commits = store.commits()
    told = [{"run": one.run, "rows": one.rows, "files": len(one.files), **one.told} for one in commits]
    if arguments.json:
        print(json.dumps({"teacher": store.teacher, "commits": told}, indent=2))
        return
    print(format_table([["teacher", "value"], *([name, str(value)] for name, value in store.teacher.items())]) + "\n")
    rows = [["run", "committed", "labels", "rejected", "files", "MB", "pairs/s"]]
    for commit in commits:
        rejected = sum(file.rows for file in commit.files if file.rejects)
        size = sum(file.bytes for file in commit.files) / 1e6
        rate = str(commit.told.get("pairs_per_second", "-"))
        counts = (f"{commit.rows:,}", f"{rejected:,}", f"{len(commit.files):,}", f"{size:,.1f}", rate)
        rows.append([commit.run, commit.told["committed_at"], *counts])
    print(format_table(rows))
    print(f"{sum(one.rows for one in commits):,} labels")


def check(arguments: "argparse.Namespace") -> None:
    """Verify a store.

    Raises:
        RunError: something is wrong with it.
    """
    from rankstill.label_care import verify
    from rankstill.labels import open_store

    audit = verify(open_store(arguments.store, field="STORE"))
    if arguments.json:
        print(json.dumps({**vars(audit), "clean": audit.clean}, indent=2))
    else:
        header = ["commits", "files", "labels", "rejected", "leftover files"]
        counts = (audit.commits, audit.files, audit.rows, audit.rejected, len(audit.orphans))
        print(format_table([header, [f"{count:,}" for count in counts]]))
    if not audit.clean:
        raise RunError(
            f"{arguments.store!r} is damaged: {'; '.join(audit.lines())}; restore the files, or let `jobs.labels"
            " compact` keep what is sound and jobs.label label the rest again"
        )
    if not arguments.json:
        left = (
            "; leftover files of runs without a commit are taken over by the next jobs.label" if audit.orphans else ""
        )
        print(f"clean{left}")


def merge(arguments: "argparse.Namespace") -> None:
    """Compact a store."""
    from rankstill.label_care import compact
    from rankstill.labels import open_store

    _print(compact(open_store(arguments.store, field="STORE"), arguments.keep_hours), arguments.json)


def diff(arguments: "argparse.Namespace") -> None:
    """Compare two stores."""
    from rankstill.label_care import compare
    from rankstill.labels import open_store

    report = compare(open_store(arguments.store, field="STORE"), open_store(arguments.other, field="OTHER"))
    moved = report.pop("moved_most", [])
    if arguments.json:
        print(json.dumps({**report, "moved_most": moved}, indent=2))
        return
    agreement = report.pop("order_agreement", None)
    if agreement:
        report["pairs of items ordered alike"] = (
            f"{agreement['value']} [{agreement['low']}, {agreement['high']}] over {agreement['queries']:,} queries"
        )
    _print(report, False)
    if moved:
        rows = [[f"{one['score']:.3f}", f"{one['other']:.3f}", one["item_id"], one["query"]] for one in moved]
        print("\n" + format_table([["left", "right", "item", "query"], *rows]))


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print(format_table([["what", "value"], *([name, str(value)] for name, value in report.items())]))


ACTIONS: "dict[str, Callable[[argparse.Namespace], None]]" = {
    "show": show,
    "verify": check,
    "compact": merge,
    "diff": diff,
}


if __name__ == "__main__":
    run_command(main)
