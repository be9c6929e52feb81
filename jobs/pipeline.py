"""Read, teach, gate, label, train, evaluate, export and register; each step is skipped when its output stands."""

import time
from dataclasses import dataclass
from typing import Any

from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.config import Config
from rankstill.configfile import load_config

VERBS = {
    "teach": "Fine-tune a teacher on the judgements, or take a ready one.",
    "label": "Score pairs with the teacher and keep the scores as soft labels.",
    "train": "Distil the teacher into a student.",
    "export": "Evaluate the student and export it as an artifact.",
    "pipeline": "Read, teach, gate, label, train, evaluate, export and register.",
}


@dataclass(frozen=True)
class Made:
    """What a run made and where, in order, and its report once there is one."""

    places: dict[str, str]
    report: dict[str, Any] | None = None


def command(verb: str) -> None:
    """`python -m jobs.<verb>`: the steps up to that verb."""
    run_command(lambda: main(verb))


def main(verb: str = "pipeline") -> None:
    """Parse, then run or plan, then print what was made."""
    steps = "\nSteps before it run too; a step whose output for the same inputs stands is skipped."
    parser = make_parser(f"jobs.{verb}", VERBS[verb] + steps)
    parser.add_argument("--dry-run", action="store_true", help="check config and input, print the plan and its cost")
    add_config_arguments(parser)
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        from jobs.plan import print_plan

        print_plan(config, labels=verb != "teach")
        return
    start = time.monotonic()
    made = run_until(config, verb)
    print_made(made, time.monotonic() - start)


def run_until(config: Config, verb: str = "pipeline") -> Made:
    """Run the steps up to `verb`."""
    from rankstill.progress import Reporter
    from rankstill.steps.begin import begin, soft_labels
    from rankstill.steps.run import Run

    with Reporter() as reporter:
        run = Run(config, reporter)
        prepared, taught = begin(run)
        places = {"data": str(prepared.folder), "teacher": str(taught.folder)}
        if verb == "teach":
            return Made(places)
        gated, labelled = soft_labels(run, prepared, taught)
        places |= {"gate": str(gated.folder / "gate.json")}
        places |= {"labels": labelled.store, "lists": str(labelled.folder)}
        if verb == "label":
            return Made(places)
        return _student(run, prepared, taught, labelled, places, verb)


def _student(run: Any, prepared: Any, taught: Any, labelled: Any, places: dict[str, str], verb: str) -> Made:
    """The steps from training on."""
    from rankstill.evaluation import PRIMARY
    from rankstill.steps.compare import compare
    from rankstill.steps.export import export_compared, register
    from rankstill.steps.train import train

    trained = train(run, prepared, taught, labelled)
    places |= {"student": str(trained.folder)}
    if verb == "train":
        return Made(places)
    compared = compare(run, prepared, taught, trained)
    artifact = export_compared(run, prepared, taught, labelled, trained, compared)
    places |= {"report": str(compared.folder / "report.json"), "artifact": str(artifact)}
    if verb == "pipeline":
        metric = compared.report["models"]["student"]["metrics"][PRIMARY]["value"]
        version = register(run, artifact, trained.folder, metric, {})
        places |= {"registered": f"{version} ({', '.join(version.aliases)})"}
    return Made(places, compared.report)


def print_made(made: Made, seconds: float) -> None:
    """The table at the end: quality and speed where measured, then where everything lies."""
    if made.report is not None:
        from rankstill.evaluation import comparison_rows

        print(format_table(comparison_rows(made.report["models"])))
        better = made.report["differences"]["student - bm25"]
        print(
            f"retention {made.report['retention']:.1%} of the teacher's nDCG@10,"
            f" {made.report['speed_up']:.1f} times its speed;"
            f" student - BM25 {better['value']:+.4f} ({better['low']:+.4f} to {better['high']:+.4f})"
        )
        print()
    print(format_table([["made", "where"], *([name, place] for name, place in made.places.items())]))
    print(f"in {seconds:.0f} s")


if __name__ == "__main__":
    command("pipeline")
