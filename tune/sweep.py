"""Search temperature, alpha, loss weights, family and size of students; take the best within a budget."""

import time

from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.configfile import load_config
from rankstill.sweep_config import Dimension

DESCRIPTION = """Search for a student: train many, export, judge and time each, and take the best within sweep.budget.

Read, teach, gate and label come first, unless their output stands. A sweep that was stopped goes on where it was:
finished students are not trained again, and one that was under way continues at its last checkpoint."""


def main() -> None:
    """`python -m tune.sweep`."""
    parser = make_parser("tune.sweep", DESCRIPTION)
    parser.add_argument("--dry-run", action="store_true", help="check config and space, print what would be tried")
    add_config_arguments(parser)
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    from tune.space import make_space

    space = make_space(config)
    if arguments.dry_run:
        from rankstill.steps.train import check_models
        from rankstill.storage import check_root

        check_root(config.storage.root)
        check_models(config, space.students())
        rows = [[key, _spans(one), _conditions(one)] for key, one in space.dimensions.items()]
        print(format_table([["setting", "values", "where"], *rows]))
        print(f"{min(config.sweep.trials, space.size)} students, up to {config.train.epochs} epochs each")
        return
    from tune.run import sweep, winner_rows

    start = time.monotonic()
    swept = sweep(config, space)
    print(format_table(winner_rows(swept, config.sweep.budget)))
    print()
    print(format_table([["made", "where"], *([name, place] for name, place in swept.places.items())]))
    print(f"in {time.monotonic() - start:.0f} s")


def _spans(dimension: Dimension) -> str:
    if dimension.choices:
        return ", ".join(map(str, dimension.choices))
    return f"{dimension.low:g} to {dimension.high:g}" + (", log" if dimension.log else "")


def _conditions(dimension: Dimension) -> str:
    return ", ".join(f"{key}={value}" for key, value in dimension.when.items())


if __name__ == "__main__":
    run_command(main)
