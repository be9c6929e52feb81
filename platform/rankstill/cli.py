"""What every command shares: arguments, exit codes, and the table at its end."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rankstill.configfile import describe_fields
from rankstill.errors import RankstillError

FULL_DISK = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full")
"""How the system, and SQLite, say that there is no room."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of a command."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with 2."""
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def make_parser(verb: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser for `python -m VERB`; a wrong argument ends with exit code 2."""
    return Parser(
        prog=f"python -m {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """`--config FILE` and the overrides, with every setting listed in the help."""
    parser.add_argument("--config", metavar="FILE", required=required, help="YAML file, such as jobs/configs/demo.yaml")
    parser.add_argument("overrides", metavar="dotted.key=value", nargs="*", help="settings that replace the file's")
    rows = [f"  {key + (' = ' + default if default else ''):<44}  {text}" for key, default, text in describe_fields()]
    parser.epilog = "\n".join([parser.epilog or "", "settings (dotted.key = default):", *rows])


def present_token() -> None:
    """Have Ray present this user's token, where there is one, to clusters that ask for it; before ray is imported."""
    if (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0 done, 2 bad input or config, 1 anything else, 130 interrupted.

    An error raised on purpose becomes one line on stderr; anything else keeps its traceback.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except RankstillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; what was finished stands, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if full := _full_disk(error):
            print(f"error: {full}; make room and run again, which continues where this stopped", file=sys.stderr)
            sys.exit(1)
        raise
    sys.exit(0)


def _full_disk(error: BaseException | None) -> str:
    """What an error says of a disk without room, where that is behind it; libraries have errors of their own for it."""
    while error is not None:
        found = next((text for text in FULL_DISK if text in str(error)), "")
        if found:
            place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
            return found[0].lower() + found[1:] + place
        error = error.__cause__ or error.__context__
    return ""


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side under the first row, the header; columns of numbers are right-aligned."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(cell[:1] in "-+" or cell[:1].isdigit() for cell in column[1:]) for column in columns]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])
