"""Which version is champion: promote one, roll back, list them, see what one was made from."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rankstill.cli import add_config_arguments, format_table, make_parser, present_token, run_command
from rankstill.config import NAME
from rankstill.configfile import load_config
from rankstill.errors import ConfigError
from rankstill.progress import Reporter

if TYPE_CHECKING:
    from rankstill.config import Config
    from rankstill.registry import Registry, Version
    from rankstill.serving import Endpoint

DESCRIPTION = """Say which version is champion and what else is served, or look at the registry.

  python -m jobs.deploy --model shop@challenger              make it champion
  python -m jobs.deploy --model shop@challenger --weight 10  give it 10 percent of the traffic
  python -m jobs.deploy --model shop@challenger --shadow 50  give it copies of 50 percent, whose answers nobody gets
  python -m jobs.deploy --model shop@challenger --canary     try it on more and more shoppers first
  python -m jobs.deploy rollback shop              make the champion before this one champion again
  python -m jobs.deploy drain shop/7               take a version out of the endpoint
  python -m jobs.deploy pause|resume shop          let the loop, and a canary, stay as it is; or go on
  python -m jobs.deploy pin|unpin shop             keep the champion, whatever is found; or not
  python -m jobs.deploy loop shop                  where the loop is, and what it decided
  python -m jobs.deploy list [shop]                versions, their aliases, and their share of the traffic
  python -m jobs.deploy lineage shop@champion      what it was made from, down to the files of labels, all verified

A running endpoint is changed through Ray Serve's REST interface at RAY_DASHBOARD_ADDRESS: a version is loaded and warm
before it gets traffic, and one that loses it stays loaded for serve.rollback_window seconds. Where no endpoint runs,
the registry alone is changed. The registry is that of storage.root, or the one that MLFLOW_TRACKING_URI names."""
CONTROLS = {"pause": ("paused", True), "resume": ("paused", False), "pin": ("pinned", True), "unpin": ("pinned", False)}
ACTIONS = {"promote": 0, "rollback": 1, "drain": 1, "list": None, "lineage": 1, "loop": 1, **dict.fromkeys(CONTROLS, 1)}
"""What there is to do, and the names that each wants."""


def main() -> None:
    """`python -m jobs.deploy`."""
    present_token()
    parser = make_parser("jobs.deploy", DESCRIPTION)
    parser.add_argument("--model", metavar="REF", help="version to promote, such as shop@challenger or shop/7")
    parser.add_argument(
        "--weight", type=float, metavar="PERCENT", help="its share of the traffic, instead of all of it"
    )
    parser.add_argument(
        "--shadow", type=float, metavar="PERCENT", help="share of the others' requests that it gets too"
    )
    parser.add_argument("--canary", action="store_true", help="let shoppers decide, as refresh.canary says")
    add_config_arguments(parser, required=False)
    parser.usage = (
        "python -m jobs.deploy --model REF [--weight PERCENT | --shadow PERCENT | --canary] | rollback NAME |"
        " drain REF | pause|resume|pin|unpin NAME | loop NAME | list [NAME] | lineage REF  [dotted.key=value ...]"
    )
    arguments = parser.parse_intermixed_args()
    words = [word for word in arguments.overrides if "=" not in word]
    settings = [word for word in arguments.overrides if "=" in word]
    action, *names = words or ["promote" if arguments.model else "list"]
    wanted = ACTIONS.get(action, 0)
    if action not in ACTIONS or len(names) > 1:
        raise ConfigError(f"{' '.join(words)!r} is nothing to do here; see python -m jobs.deploy --help")
    if wanted is not None and len(names) != wanted:
        raise ConfigError(f"{action} takes {'a name' if wanted else 'no name'}; see python -m jobs.deploy --help")
    if bool(arguments.model) != (action == "promote"):
        raise ConfigError("--model goes with nothing but settings; write --model REF, or an action with its name")
    shares = {name: value for name in ("weight", "shadow") if (value := getattr(arguments, name)) is not None}
    _check_shares(shares, action)
    if names and action not in ("drain", "lineage") and not re.fullmatch(NAME, names[0]):
        raise ConfigError(f"{action} takes a name without version, such as shop; not {names[0]!r}")
    if arguments.canary and (shares or action != "promote"):
        raise ConfigError("--canary goes with --model alone; write --model REF --canary")
    config = load_config(arguments.config or {"data": {"shop": {}}}, settings)
    from rankstill.registry import open_registry
    from rankstill.rollout import described, make_champion
    from rankstill.serving import running_endpoint

    root = config.storage.folder
    registry = open_registry(root, arguments.model or (names or [""])[0])
    if action == "lineage":
        _trace(registry, root, names[0])
        return
    if action == "loop" or action in CONTROLS:
        _loop(registry, root, names[0], action)
        return
    if arguments.canary:
        _see_through(registry, config, registry.resolve(arguments.model, "--model"))
        return
    if action == "drain" and _withdrawn(registry, config, registry.resolve(names[0], "drain")):
        return
    with Reporter() as reporter:
        endpoint = running_endpoint(lambda waits: reporter.event("deploy", state="waiting", applications=waits))
        if action == "list":
            _list(registry, endpoint, names)
        elif action == "drain":
            version = registry.resolve(names[0], "drain")
            _served_by(endpoint, version.name).drain(str(version))
            print(f"{version} is not served any more")
        elif shares:
            version = registry.resolve(arguments.model, "--model")
            _served_by(endpoint, version.name).share(described(version), shares, config.serve.rollback_window)
            print(f"{version} has " + " and ".join(f"a {name} of {value:g} %" for name, value in shares.items()))
        else:
            back = action == "rollback"
            version = registry.previous(names[0], action) if back else registry.resolve(arguments.model, "--model")
            own = endpoint if endpoint and endpoint.serves(version.name) else None
            where = "the registry and the endpoint" if own else "the registry; no endpoint of it runs"
            version, before = make_champion(registry, own, version, config.serve.rollback_window)
            instead = f", in place of {before}" if before.number != version.number else " already"
            print(f"{version} is champion{instead} (in {where})")


def _check_shares(shares: dict[str, float], action: str) -> None:
    if shares and action != "promote":
        raise ConfigError("--weight and --shadow go with --model; write --model REF --weight PERCENT")
    for name, value in shares.items():
        most = 100 if name == "shadow" else 99
        if not 0 <= value <= most:
            raise ConfigError(f"--{name} is {value:g}; give percent, from 0 to {most}")


def _withdrawn(registry: "Registry", config: "Config", version: "Version") -> bool:
    """Withdraw a version, if it is what shoppers try; whether it was."""
    from rankstill.loop import Loop

    loop = Loop(config.storage.folder, version.name)
    trial = loop.state.trial
    if trial is None or trial.challenger != str(version):
        return False
    loop.want(order="rollback")
    try:
        _see_through(registry, config, version, end=True)
    except Held as holder:
        print(f"{version} is being tried by {holder}, which withdraws it at its next step")
    return True


class Held(Exception):  # noqa: N818 (no error)
    """Another process is at it, which this names."""


def _see_through(registry: "Registry", config: "Config", version: "Version", end: bool = False) -> None:
    """Try a version on shoppers until that is decided, or finish a trial that was begun; or only `end` that.

    Raises:
        ConfigError: nothing serves its name, or something else is being tried.
        Held: it is to end, and another process tries it.
    """
    from rankstill.event_log import EventLog
    from rankstill.loop import Loop
    from rankstill.rollout import Rollout
    from rankstill.serving import running_endpoint

    def wait(who: str) -> None:
        if end:
            raise Held(who)
        reporter.event("canary", state="waiting", holder=who)

    loop = Loop(config.storage.folder, version.name)
    with Reporter() as reporter, loop.alone(wait):
        endpoint = running_endpoint(lambda waits: reporter.event("canary", state="waiting", applications=waits))
        endpoint, log = _served_by(endpoint, version.name), EventLog(config.storage.feedback_log)
        rollout = Rollout(config, loop, registry, endpoint, log, reporter.event)
        tried = loop.state.trial
        if tried and tried.challenger != str(version):
            raise ConfigError(
                f"{tried.challenger} is being tried; go on with it (--model {tried.challenger} --canary), or withdraw"
                f" it (drain {tried.challenger})"
            )
        if not tried and not end:
            rollout.begin(version)
        rollout.see_through()
    last = loop.state.decisions[-1]
    print(f"{last.version} was {last.what}: {last.why}")


def _loop(registry: "Registry", root: Path, name: str, action: str) -> None:
    """Hold the loop back, or tell where it is."""
    from rankstill.loop import Loop, table

    registry.resolve(f"{name}@champion", action)
    loop = Loop(root, name)
    if action in CONTROLS:
        field, value = CONTROLS[action]
        control = loop.want(**{field: value})
        print(f"{name}: paused {str(control.paused).lower()}, pinned {str(control.pinned).lower()}")
        return
    state, control = loop.state, loop.control
    tried = f", {state.trial.challenger} against {state.trial.champion}" if state.trial else ""
    held = "".join(f", {word}" for word in ("paused", "pinned") if getattr(control, word))
    print(f"{name}: {state.phase}{tried}{held}")
    print(format_table(table(state.decisions)))


def _served_by(endpoint: "Endpoint | None", name: str) -> "Endpoint":
    """An endpoint that serves versions of a name.

    Raises:
        ConfigError: there is none.
    """
    if endpoint is None or not endpoint.serves(name):
        raise ConfigError(f"no endpoint that serves {name!r} runs here; start one, or set RAY_DASHBOARD_ADDRESS")
    return endpoint


def _list(registry: "Registry", endpoint: "Endpoint | None", names: list[str]) -> None:
    served = endpoint.served if endpoint else None
    shares = {one.version: one for one in served.versions} if served else {}
    whole = sum(one.weight for one in shares.values()) or 1.0
    rows = [["version", "aliases", "traffic", "shadow", "artifact"]]
    versions = registry.versions(*names)
    if names and not versions:
        raise ConfigError(f"list: {names[0]!r} has no versions; see python -m jobs.deploy list")
    for one in versions:
        found = shares.get(str(one))
        told = [f"{found.weight / whole:.1%}", f"{found.shadow:.0%}"] if found else ["", ""]
        rows.append([str(one), ", ".join(one.aliases), *told, str(one.folder)])
    print(format_table(rows))


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
