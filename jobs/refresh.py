"""The loop: feedback to a fresher student, once or again and again, judged and tried on shoppers without a human."""

import re
import time
from typing import TYPE_CHECKING, Any

from rankstill.cli import add_config_arguments, format_table, make_parser, present_token, run_command
from rankstill.config import Config
from rankstill.configfile import load_config
from rankstill.errors import ConfigError, RankstillError
from rankstill.progress import Reporter

if TYPE_CHECKING:
    from rankstill.loop import Control, State
    from rankstill.rollout import Rollout
    from rankstill.steps.fresh import Upto

DESCRIPTION = """Distil a fresher student from what shoppers did since the last time, and hold it against the champion.

  python -m jobs.refresh --config FILE                  once: learn, judge, register
  python -m jobs.refresh --config FILE --canary         and try it on shoppers, until that is decided
  python -m jobs.refresh --config FILE --every 15m      look for feedback every 15 minutes, with canaries, for ever

The config is the pipeline's, whose teacher and judgements are used. One loop of a name acts at a time; one that was
stopped or killed goes on where it was. python -m jobs.deploy pause, resume, pin, unpin NAME hold it back, and so do
promote, rollback and drain. Where there is no endpoint, a student that passes is registered as challenger."""
EVERY = re.compile(r"(\d+(?:\.\d+)?)([smh])")
SECONDS = {"s": 1, "m": 60, "h": 3600}
CURVE_GROUPS = 5000
"""Groups of impressions, and of events, that the curve looks back."""
RETRY_SECONDS = 30.0


def main() -> None:
    """`python -m jobs.refresh`."""
    present_token()
    parser = make_parser("jobs.refresh", DESCRIPTION)
    parser.add_argument("--every", metavar="TIME", help="look for feedback so often, such as 15m, 30s or 2h")
    parser.add_argument("--canary", action="store_true", help="try a student that passes on shoppers")
    parser.add_argument("--dry-run", action="store_true", help="tell what feedback there is, and what drifted")
    add_config_arguments(parser)
    arguments = parser.parse_intermixed_args()
    every = _seconds(arguments.every) if arguments.every else None
    config = load_config(arguments.config, arguments.overrides)
    with Reporter() as reporter:
        engine = Engine(config, reporter)
        if arguments.dry_run:
            print(format_table(engine.outlook()))
            return
        began = len(engine.loop.state.decisions)
        with engine.loop.alone(lambda holder: reporter.event("refresh", state="waiting", holder=holder)):
            if every is None:
                engine.once(arguments.canary)
            else:
                engine.forever(every)
    from rankstill.loop import table

    print(format_table(table(engine.loop.state.decisions[began:])))


def _seconds(text: str) -> float:
    """Seconds of a time such as 15m.

    Raises:
        ConfigError: it is none.
    """
    found = EVERY.fullmatch(text)
    if not found or not float(found[1]):
        raise ConfigError(f"--every is {text!r}; give a time such as 15m, 30s or 2h")
    return float(found[1]) * SECONDS[found[2]]


class Engine:
    """What the loop of one name works with, and what it does."""

    def __init__(self, config: Config, reporter: Reporter) -> None:
        """Raises ModelError where there is no champion to start from."""
        from rankstill.event_log import EventLog
        from rankstill.loop import Loop
        from rankstill.registry import CHAMPION, open_registry
        from rankstill.steps.run import Run

        self.config, self.reporter = config, reporter
        root, name = config.storage.folder, config.name
        self.registry = open_registry(root, f"{name}@{CHAMPION}", "refresh")
        self.registry.resolve(f"{name}@{CHAMPION}", "refresh")
        self.run = Run(config, reporter)
        self.loop = Loop(root, name)
        self.log = EventLog(config.storage.feedback_log)

    def outlook(self) -> list[list[str]]:
        """What there is to learn from, as rows of a table."""
        new, drifted = self._new()
        rows = [["what", "value"], ["new events", f"{new:,} of {self.config.refresh.least_events:,} wanted"]]
        return [*rows, *([f"drift of {name}", "-" if one is None else f"{one:.3f}"] for name, one in drifted.items())]

    def once(self, canary: bool) -> None:
        """Finish what was begun; or learn, where there is something to learn from, and try it."""
        if self.loop.state.phase == "idle":
            new, drifted = self._new()
            if not self._due(new, drifted):
                least = self.config.refresh.least_events
                raise ConfigError(f"{new:,} new events; refresh.least_events={least} are wanted, wait or set it lower")
            self._begin()
        if self.loop.state.phase == "refreshing":
            self._refresh(canary)
        self._see_through()

    def forever(self, every: float) -> None:
        """Look for feedback again and again."""
        next_look = 0.0
        while True:
            try:
                state, control = self.loop.state, self.loop.control
                if state.trial:
                    self._see_through()
                elif state.phase == "refreshing":
                    self._refresh(canary=True)
                elif control.order:
                    self._obey(control)
                elif not control.paused and time.monotonic() >= next_look:
                    next_look = time.monotonic() + every
                    new, drifted = self._new()
                    if self._due(new, drifted):
                        self._begin()
                        continue
                    self.reporter.event("refresh", state="nothing to do", new_events=new)
            except RankstillError as error:  # what is wrong now may be right later
                self.reporter.event("refresh", state="failed", why=str(error))
                next_look = time.monotonic() + every
                time.sleep(min(every, RETRY_SECONDS))
            self._draw()
            time.sleep(self.config.refresh.canary.poll)

    def _new(self) -> tuple[int, dict[str, float | None]]:
        """Events since the last refresh, and how far what was shown since then differs from what was shown before."""
        from rankstill.drift import drift_since

        learnt = self.loop.state.learnt
        new = self.log.events.read(learnt[1], columns=["event_id"]).height
        if learnt[0] < 0 or not new:
            return new, dict.fromkeys(("queries", "items", "scores"))
        return new, drift_since(self.log.shown(), learnt[0])

    def _due(self, new: int, drifted: dict[str, float | None]) -> bool:
        from rankstill.drift import moved

        wanted = self.config.refresh
        if new >= wanted.least_events:
            return True
        far = moved(drifted, wanted.drift)
        if new and far:
            self.reporter.event("refresh", state="drift", **{name: round(drifted[name] or 0.0, 3) for name in far})
        return bool(new and far)

    def _begin(self) -> None:
        """Write down how far feedback counts."""
        from rankstill.steps.fresh import now_upto

        state = self.loop.state
        upto = now_upto(self.log, state.learnt[0])
        self.loop.write(state.model_copy(update={"phase": "refreshing", "upto": vars(upto)}))

    def _refresh(self, canary: bool) -> None:
        """Learn, judge and register; then begin to try it, where that is wanted and there is an endpoint."""
        from rankstill.steps.fresh import Upto
        from rankstill.steps.refresh import refresh

        state = self.loop.state
        assert state.upto is not None
        began, upto = time.monotonic(), Upto(**state.upto)
        try:
            made = refresh(self.run, upto)
        except RankstillError as error:
            done = self._learnt(state, upto).decided("failed", "", str(error))
            self.loop.write(done)
            raise
        told = made.told
        numbers = {"seconds": round(time.monotonic() - began, 1), "learnt": told["learnt"], "checks": told["checks"]}
        passed = told["passed"]
        why = "it passed the gate" if passed else "; ".join(told["refused"])
        what = "refreshed" if passed else "refused"
        done = self._learnt(self.loop.state, upto).decided(what, str(made.version), why, **numbers)
        self.reporter.event("refresh", state=what, version=str(made.version), why=why, seconds=numbers["seconds"])
        self.loop.write(done)
        if passed and canary:
            rollout = self._rollout()
            if rollout is None:
                self.reporter.event("canary", state="skipped", why="no endpoint of this name runs")
            else:
                rollout.begin(made.version)

    @staticmethod
    def _learnt(state: "State", upto: "Upto") -> "State":
        """The loop is idle again, and knows feedback up to there."""
        return state.model_copy(update={"phase": "idle", "upto": None, "learnt": (upto.impressions, upto.events)})

    def _see_through(self) -> None:
        """Try what is being tried until that is decided."""
        if self.loop.state.trial:
            rollout = self._rollout()
            if rollout is None:
                raise ConfigError(f"no endpoint that serves {self.config.name!r} runs here; start it again")
            rollout.see_through(self._draw)

    def _obey(self, control: "Control") -> None:
        """Roll back, or promote the challenger, because somebody said so while nothing was tried."""
        from rankstill.registry import CHALLENGER
        from rankstill.rollout import make_champion

        self.loop.want(order=None)
        name = self.config.name
        back = control.order == "rollback"
        challenger = f"{name}@{CHALLENGER}"
        version = self.registry.previous(name, "order") if back else self.registry.resolve(challenger, "order")
        make_champion(self.registry, self._endpoint(), version, self.config.serve.rollback_window)
        self.loop.write(self.loop.state.decided("promoted", str(version), f"somebody asked for {control.order}"))

    def _endpoint(self) -> Any:
        """The endpoint that serves the name; None where none does."""
        from rankstill.serving import running_endpoint

        endpoint = running_endpoint(lambda waits: self.reporter.event("canary", state="waiting", applications=waits))
        return endpoint if endpoint and endpoint.serves(self.config.name) else None

    def _rollout(self) -> "Rollout | None":
        from rankstill.rollout import Rollout

        endpoint = self._endpoint()
        if endpoint is None:
            return None
        return Rollout(self.config, self.loop, self.registry, endpoint, self.log, self.reporter.event)

    def _draw(self) -> None:
        """Bring the curve up to date, for the page."""
        from rankstill.curve import curve

        impressions, events = (max(-1, one.last() - CURVE_GROUPS) for one in (self.log.impressions, self.log.events))
        self.loop.draw(curve(self.log.outcomes((impressions, events))))


if __name__ == "__main__":
    run_command(main)
