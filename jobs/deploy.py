"""Which version is champion: promote one, roll back, list them, see what one was made from."""

from pathlib import Path
from typing import TYPE_CHECKING

from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.configfile import load_config
from rankstill.errors import ConfigError

if TYPE_CHECKING:
    from rankstill.registry import Registry

DESCRIPTION = """Promote a version to champion, or look at the registry.

  python -m jobs.deploy --model shop@challenger    make it champion
  python -m jobs.deploy rollback shop              make the champion before this one champion again
  python -m jobs.deploy list [shop]                versions and their aliases
  python -m jobs.deploy lineage shop@champion      what it was made from, down to the files of labels, all verified

The registry is that of storage.root, or the one that MLFLOW_TRACKING_URI names."""
ACTIONS = {"promote": 0, "rollback": 1, "list": None, "lineage": 1}
"""What there is to do, and the names that each wants."""


def main() -> None:
    """`python -m jobs.deploy`."""
    parser = make_parser("jobs.deploy", DESCRIPTION)
    parser.add_argument("--model", metavar="REF", help="version to promote, such as shop@challenger or shop/7")
    add_config_arguments(parser, required=False)
    parser.usage = (
        "python -m jobs.deploy --model REF | rollback NAME | list [NAME] | lineage REF  [dotted.key=value ...]"
    )
    arguments = parser.parse_intermixed_args()
    words = [word for word in arguments.overrides if "=" not in word]
    settings = [word for word in arguments.overrides if "=" in word]
    action, *names = words or ["promote" if arguments.model else "list"]
    wanted = ACTIONS.get(action, 0)
    if action not in ACTIONS or (wanted is not None and len(names) != wanted) or len(names) > 1:
        raise ConfigError(f"{' '.join(words)!r} is nothing to do here; see python -m jobs.deploy --help")
    if bool(arguments.model) != (action == "promote"):
        raise ConfigError("--model goes with nothing but settings; write --model REF, or an action with its name")
    root = load_config(arguments.config or {"data": {"shop": {}}}, settings).storage.folder
    from rankstill.registry import open_registry

    registry = open_registry(root, arguments.model or (names or ["list"])[0])
    if action == "promote":
        version, before = registry.promote(arguments.model, "--model")
        _say(str(version), str(before))
    elif action == "rollback":
        version, before = registry.rollback(names[0], "rollback")
        _say(str(version), str(before))
    elif action == "list":
        rows = [[str(one), ", ".join(one.aliases), str(one.folder)] for one in registry.versions(*names)]
        print(format_table([["version", "aliases", "artifact"], *rows]))
    else:
        _trace(registry, root, names[0])


def _say(now: str, before: str) -> None:
    print(f"{now} is champion" + (f", in place of {before}" if before != now else " already"))


def _trace(registry: "Registry", root: Path, reference: str) -> None:
    """Print a version's lineage.

    Raises:
        DamagedError: a part of it is gone, or not what it was.
    """
    from rankstill.errors import DamagedError
    from rankstill.lineage import lineage

    version = registry.resolve(reference, "lineage")
    links = list(lineage(root, version))
    print(format_table([["what", "where", "state"], *([link.what, link.where, link.state] for link in links)]))
    broken = [link for link in links if not link.sound]
    if broken:
        raise DamagedError(
            f"lineage: {len(broken)} of {len(links)} links of {version} don't hold, first {broken[0].what}"
            f" {broken[0].where!r} ({broken[0].state}); bring the files back, or distil a new version"
        )


if __name__ == "__main__":
    run_command(main)
