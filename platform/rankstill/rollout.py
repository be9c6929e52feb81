"""Tries a challenger on shoppers, step by step, and promotes or withdraws it by what comes of that."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import requests
from scipy.stats import binomtest

from rankstill.artifacts import load_artifact
from rankstill.canary import share, verdict
from rankstill.config import Config
from rankstill.errors import ConfigError, RunError
from rankstill.event_log import GAINS, EventLog
from rankstill.loop import Loop, Phase, Stage, State, Trial
from rankstill.registry import Registry, Version
from rankstill.served import Served
from rankstill.served import Version as ServedVersion
from rankstill.serving import Endpoint, app_of
from rankstill.storage import number

KEY = "RANKSTILL_API_KEY"
"""Environment variable that holds an API key of the endpoint, where it asks for keys."""
FEWEST_ANSWERS = 20
SURE = 1e-3
"""Chance of withdrawing for errors, empty answers or time by mistake."""
SPREADS = 3.09
"""Standard errors that leave so little."""
Counts = Mapping[str, float]
Say = Callable[..., None]


class Rollout:
    """One challenger on its way; `step` does what is next, and can be called again after any crash."""

    def __init__(
        self, config: Config, loop: Loop, registry: Registry, endpoint: Endpoint, log: EventLog, say: Say
    ) -> None:
        self._wanted, self._window = config.refresh.canary, config.serve.rollback_window
        self._loop, self._registry, self._endpoint, self._log, self._say = loop, registry, endpoint, log, say

    def begin(self, version: Version) -> State:
        """Begin with a challenger.

        Raises:
            ConfigError: no endpoint serves versions of its name, or it is champion already.
        """
        served = self._served(version.name)
        champion = served.champion.version
        if champion == str(version):
            raise ConfigError(f"{version} is champion already; name a challenger")
        after = self._log.impressions.last(), self._log.events.last()
        trial = Trial(champion=champion, challenger=str(version), begun=datetime.now(UTC), after=after)
        self._counts()  # which can be reached
        self._loop.want(order=None)  # one that is still there was for something else
        self._say("canary", state="begun", challenger=str(version), champion=champion)
        return self._loop.write(self._loop.state.model_copy(update={"phase": "shadow", "trial": trial}))

    def step(self) -> State:
        """Do what is next, if anything."""
        state, control = self._loop.state, self._loop.control
        trial = state.trial
        if trial is None:
            return state
        if control.order and state.phase in ("shadow", "canary"):
            self._loop.want(order=None)
            what = "promoting" if control.order == "promote" else "withdrawing"
            return self._end(state, trial, what, "somebody said so")
        if state.phase == "promoting":
            return self._promote(state, trial)
        if state.phase == "withdrawing":
            return self._withdraw(state, trial)
        if gone := self._by_hand(trial):
            return self._end(state, trial, *gone)
        if trial.placed and (reason := self._broken(trial)):
            return self._end(state, trial, "withdrawing", reason)
        if control.paused:
            return state
        if not trial.placed:
            return self._place(state, trial)
        return self._shadowed(state, trial) if state.phase == "shadow" else self._tried(state, trial)

    def see_through(self, after: Callable[[], None] = lambda: None) -> None:
        """Go on until what is tried is promoted or withdrawn; `after` each step, that is called."""
        paused = False
        while trial := self.step().trial:
            if self._loop.control.paused != paused:
                paused = not paused
                self._say("canary", state="paused" if paused else "resumed", challenger=trial.challenger)
            after()
            time.sleep(self._wanted.poll)

    def _place(self, state: State, trial: Trial) -> State:
        """Tell the endpoint what the stage wants; it is written down when that is true."""
        trial = trial.model_copy(deep=True)
        version = self._registry.resolve(trial.challenger, "canary")
        if state.phase == "shadow":
            wanted = {"shadow": 100 * self._wanted.shadow}
        else:
            wanted = {"shadow": 0.0, "weight": 100 * trial.stages[-1].share}
        self._endpoint.share(described(version), wanted, self._window)
        trial.placed = True
        if state.phase == "shadow":
            trial.before = self._counts()
        if trial.stages:
            trial.stages[-1].begun = datetime.now(UTC)
        told = {name: f"{percent:g} %" for name, percent in wanted.items()}
        self._say("canary", state=state.phase, challenger=trial.challenger, **told)
        return self._write(state, trial)

    def _shadowed(self, state: State, trial: Trial) -> State:
        """Go on to shoppers once enough copies were answered."""
        found = self._since(trial)[1]
        if found.get("copy_answered", 0) < self._wanted.copies:
            return state
        agreement = found.get("agreement", 0.0) / max(found.get("compared", 0.0), 1.0)
        if found.get("compared") and agreement < self._wanted.agreement:
            reason = f"mean rank correlation with the champion {agreement:.2f}, below {self._wanted.agreement:g}"
            return self._end(state, trial, "withdrawing", reason)
        self._say("canary", state="shadowed", copies=int(found["copy_answered"]), agreement=round(agreement, 3))
        return self._write(state, _next(trial, self._wanted.shares[0]), phase="canary")

    def _tried(self, state: State, trial: Trial) -> State:
        """Count, decide, or go on to the next stage."""
        trial = self._counted(trial)
        tallies = [stage.tallies for stage in trial.stages]
        rules = self._wanted.rules
        outcome, found = verdict(tallies, rules)
        trial.numbers = {"difference": number(found.value), "low": number(found.low), "high": number(found.high)}
        trial.numbers |= {"champion": _mean(tallies, 0), "challenger": _mean(tallies, 1), "requests": found.requests}
        spent = (datetime.now(UTC) - trial.begun).total_seconds()
        if outcome == "better" and self._loop.control.pinned:
            return self._end(state, trial, "withdrawing", "it is better, but the champion is pinned")
        if outcome != "open":
            phase = "promoting" if outcome == "better" else "withdrawing"
            return self._end(state, trial, phase, _said(outcome, trial.numbers))
        if spent > self._wanted.patience:
            return self._end(state, trial, "withdrawing", f"undecided after {spent / 3600:.1f} hours")
        stage, portion = share(tallies, rules)
        return self._write(state, _next(trial, portion) if stage >= len(trial.stages) else trial)

    def _end(self, state: State, trial: Trial, phase: Phase, reason: str) -> State:
        """Write down what is to become of the challenger, and why; then do it."""
        trial = trial.model_copy(update={"reason": reason})
        state = self._write(state, trial, phase=phase)
        return self._promote(state, trial) if phase == "promoting" else self._withdraw(state, trial)

    def _promote(self, state: State, trial: Trial) -> State:
        version = self._registry.resolve(trial.challenger, "canary")
        make_champion(self._registry, self._endpoint, version, self._window)
        return self._close(state, trial, "promoted", version)

    def _withdraw(self, state: State, trial: Trial) -> State:
        served = self._served(trial.challenger.partition("/")[0])
        if served.find(trial.challenger) and served.champion.version != trial.challenger:
            self._endpoint.drain(trial.challenger)
        return self._close(state, trial, "withdrawn", self._registry.resolve(trial.challenger, "canary"))

    def _close(self, state: State, trial: Trial, what: str, version: Version) -> State:
        """Write down what became of it; a refresh that was under way before goes on."""
        tags = {"canary": what, "canary_reason": trial.reason}
        self._registry.note(version, tags | {f"canary_{name}": value for name, value in trial.numbers.items()})
        self._say("canary", state=what, version=str(version), why=trial.reason)
        stages = [stage.model_dump(mode="json") for stage in trial.stages]
        phase = "refreshing" if state.upto else "idle"
        closed = state.model_copy(update={"phase": phase, "trial": None})
        return self._loop.write(closed.decided(what, str(version), trial.reason, **trial.numbers, stages=stages))

    def _write(self, state: State, trial: Trial, **changes: Any) -> State:
        return self._loop.write(state.model_copy(update={"trial": trial, **changes}))

    def _by_hand(self, trial: Trial) -> tuple[Phase, str] | None:
        """What somebody else did, so that there is nothing to try any more, and what becomes of the challenger."""
        served = self._served(trial.challenger.partition("/")[0])
        if served.champion.version == trial.challenger:
            return "promoting", "somebody promoted it"
        if served.champion.version != trial.champion:
            return "withdrawing", f"somebody made {served.champion.version} champion"
        if trial.placed and served.find(trial.challenger) is None:
            return "withdrawing", "somebody drained it"
        return None

    def _broken(self, trial: Trial) -> str:
        """What is surely wrong with the challenger's answers; nothing where all is well."""
        champion, challenger = self._since(trial)
        sides = _answers(champion), _answers(challenger)
        wanted, (before, now) = self._wanted, sides
        for kind, what in (("failed", "failed"), ("empty", "told nothing")):
            usual = max(wanted.errors, before[kind] / before["all"] if before["all"] else 0.0)
            if now["all"] >= FEWEST_ANSWERS and now[kind]:
                chance = binomtest(int(now[kind]), int(now["all"]), min(usual, 1.0), alternative="greater").pvalue
                if chance < SURE:
                    other = f"champion {before[kind]:.0f} of {before['all']:.0f}"
                    return f"{now[kind]:.0f} of {now['all']:.0f} answers {what} ({other})"
        if min(before["answered"], now["answered"]) >= FEWEST_ANSWERS:
            slower, spread = _slower(before, now)
            if slower - SPREADS * spread > wanted.slower_ms / 1000:
                return f"answers take {1000 * slower:.0f} ms longer than the champion's, more than {wanted.slower_ms:g}"
        compared = challenger.get("compared", 0.0)
        if compared >= FEWEST_ANSWERS:
            mean = challenger["agreement"] / compared
            spread = np.sqrt(max(challenger["agreement_squares"] / compared - mean**2, 0.0) / compared)
            if mean + SPREADS * spread < wanted.agreement:
                return f"mean rank correlation with the champion {mean:.2f}, below {wanted.agreement:g}"
        return ""

    def _counted(self, trial: Trial) -> Trial:
        """With what requests of each stage came to; those that are too young for a click don't count yet."""
        outcomes = self._log.outcomes(trial.after)
        old = datetime.now(UTC) - timedelta(seconds=self._wanted.attribution)
        least = GAINS[self._wanted.metric]
        table = outcomes.filter(pl.col("at") <= old).with_columns(value=(pl.col("gain") >= least).cast(pl.Float64))
        trial = trial.model_copy(deep=True)
        for stage in trial.stages:
            ended = stage.ended or old
            part = table.filter(pl.col("at").is_between(stage.begun, ended))
            for side, name in (("champion", trial.champion), ("challenger", trial.challenger)):
                values = part.filter(pl.col("model_version") == name)["value"]
                total = float(values.sum())
                setattr(stage, side, (float(len(values)), total, total))  # a square of 0 or 1 is itself
        return trial

    def _since(self, trial: Trial) -> tuple[Counts, Counts]:
        """What ingresses counted of champion and challenger since the trial began."""
        now = self._counts()
        found = []
        for name in (trial.champion, trial.challenger):
            before = trial.before.get(name, {})
            counts = {kind: value - before.get(kind, 0.0) for kind, value in now.get(name, {}).items()}
            # The recorder starts at nothing after a crash: then all that it knows is new.
            found.append(now.get(name, {}) if any(value < 0 for value in counts.values()) else counts)
        return found[0], found[1]

    def _counts(self) -> dict[str, dict[str, float]]:
        """What ingresses counted of each version.

        Raises:
            RunError: the endpoint doesn't answer.
        """
        key = os.environ.get(KEY, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{self._endpoint.url}/v1/models"
        try:
            answer = requests.get(url, headers=headers, timeout=10)
        except requests.RequestException as error:
            raise RunError(f"the endpoint doesn't answer at {url} ({type(error).__name__}); start it again") from error
        if answer.status_code in (401, 403):
            raise ConfigError(f"{url} answers {answer.status_code}; set {KEY} to a key with the role rank")
        if not answer.ok:
            raise RunError(f"{url} answers {answer.status_code}; see the endpoint's log")
        return {one["id"]: one["observed"] for one in answer.json()["data"]}

    def _served(self, name: str) -> Served:
        served = self._endpoint.served
        if served is None or served.name != name:
            raise ConfigError(f"no endpoint that serves {name!r} runs here; start one, or set RAY_DASHBOARD_ADDRESS")
        return served


def described(version: Version) -> ServedVersion:
    """A registered version as an endpoint knows it."""
    fields = tuple(load_artifact(version.folder, str(version)).fields)
    return ServedVersion(version=str(version), app=app_of(str(version)), fields=fields, weight=0.0)


def make_champion(
    registry: Registry, endpoint: Endpoint | None, version: Version, window: float
) -> tuple[Version, Version]:
    """Give a version all traffic, where an endpoint of its name runs, and the alias; it, and the champion before it.

    The others stay loaded for `window` seconds. Doing it again changes nothing.
    """
    if endpoint:
        endpoint.promote(described(version), window)
    return registry.promote(str(version), "promote")


def _next(trial: Trial, portion: float) -> Trial:
    """With a further stage, which the endpoint is to be told of."""
    trial, now = trial.model_copy(deep=True), datetime.now(UTC)
    if trial.stages:
        trial.stages[-1].ended = now
    trial.stages.append(Stage(share=portion, begun=now))
    trial.placed = False
    return trial


def _answers(counts: Counts) -> dict[str, float]:
    """A version's own answers and its copies together."""
    names = ("answered", "failed", "empty", "seconds", "squares")
    found = {name: counts.get(name, 0.0) + counts.get(f"copy_{name}", 0.0) for name in names}
    return {**found, "all": found["answered"] + found["failed"]}


def _slower(before: Counts, now: Counts) -> tuple[float, float]:
    """Seconds that an answer takes longer on average, and the standard error of that."""
    means, variances = [], []
    for side in (before, now):
        mean = side["seconds"] / side["answered"]
        means.append(mean)
        variances.append(max(side["squares"] / side["answered"] - mean**2, 0.0) / side["answered"])
    return means[1] - means[0], float(np.sqrt(sum(variances)))


def _mean(tallies: Sequence[Any], side: int) -> float:
    """A side's metric over all stages."""
    count = sum(pair[side].requests for pair in tallies)
    return sum(pair[side].total for pair in tallies) / count if count else 0.0


def _said(outcome: str, numbers: Mapping[str, Any]) -> str:
    words = {"better": "it is better", "worse": "it is worse", "equal": "it isn't better by what matters"}[outcome]
    means = f"{numbers['challenger']:.4f} against {numbers['champion']:.4f}"
    return f"{words}: {means}, after {numbers['requests']:.0f} of its requests"
