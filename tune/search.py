"""Chooses the next student to try: Optuna behind Ray Tune's searcher."""

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from rankstill.sweep_config import Dimension, Sweep
from rankstill.text import digest
from rankstill.training import METRIC
from tune.select import excess, overshoot
from tune.space import Params, Space
from tune.trials import Trial, TrialFiles

DIED = "its process ended without a word, as one does that runs out of memory"
REDRAWN = 100
"""Times that the sampler may offer what was tried before."""


class StudentSearch(Searcher):
    """Optuna's samplers; what an earlier process of the same sweep did is told to them first, what it began is resumed.

    With limits, the best nDCG@10 within them is looked for (constrained TPE, Watanabe and Hutter 2023); without, both
    nDCG@10 and the time of a ranking (multi-objective TPE, Ozaki et al. 2022).
    """

    def __init__(
        self, space: Space, sweep: Sweep, files: TrialFiles, ending: Callable[[], bool] = lambda: False
    ) -> None:
        """`ending` tells whether the sweep is being stopped, so that what still runs is to be gone on with later."""
        super().__init__(metric=METRIC, mode="max")
        self._ending = ending
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._budget, self._files = space, sweep.budget, files
        self._limited = bool(sweep.budget.p99_ms or sweep.budget.bytes)
        up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        directions = [up] if self._limited else [up, down]
        self._study = optuna.create_study(directions=directions, sampler=_sampler(sweep))
        self._open: dict[str, optuna.Trial] = {}
        self._names: dict[str, str] = {}
        self._seen: set[str] = set()
        done = [trial for trial in files.all() if not trial.repeats]
        self._unfinished = [trial for trial in done if trial.state == "begun"]
        self._next = 1 + max((trial.number for trial in done), default=-1)
        for trial in done:
            self._seen.add(_identity(trial.params))
            if trial.state != "begun":
                self._tell(self._again(trial), trial)

    def suggest(self, trial_id: str) -> Any:
        """The settings and name of the next trial; FINISHED where all have been tried."""
        if self._unfinished:
            trial = self._unfinished.pop(0)
            asked = self._again(trial)
        else:
            for _ in range(REDRAWN):
                asked = self._study.ask()
                params = self._space.sample(_drawing(asked))
                if _identity(params) not in self._seen:
                    break
                self._study.tell(asked, state=TrialState.FAIL)
            else:
                return Searcher.FINISHED
            self._seen.add(_identity(params))
            trial = Trial(self._next, f"{self._next:03d}-{_identity(params)}", params)
            self._next += 1
            self._files.write(trial)
        self._open[trial_id], self._names[trial_id] = asked, trial.name
        return {"trial": {"name": trial.name, "params": trial.params}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Tell the sampler what became of a trial."""
        asked = self._open.pop(trial_id, None)
        if asked is not None and not self._ending():
            # One that finished or failed in its own process has said so.
            state, reason = ("failed", DIED) if error else ("stopped", "")
            self._tell(asked, self._files.end(self._names[trial_id], state, reason))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' files are all there is to know."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def _again(self, trial: Trial) -> optuna.Trial:
        """Optuna's trial with the settings of one that was chosen before."""
        dimensions = self._space.dimensions
        given = {
            key: dimensions[key].choices.index(value) if dimensions[key].choices else value
            for key, value in trial.params.items()
        }
        self._study.enqueue_trial(given)
        asked = self._study.ask()
        self._space.sample(_drawing(asked))
        return asked

    def _tell(self, asked: optuna.Trial, trial: Trial) -> None:
        if trial.state == "finished":
            variant = min(trial.variants, key=lambda one: overshoot(one, self._budget))
            for limit, over in excess(variant, self._budget).items():
                asked.set_constraint(limit, over)
            costs = [] if self._limited else [variant.p99_ms(self._budget.candidates)]
            self._study.tell(asked, [variant.ndcg["value"], *costs])
        elif trial.state == "stopped" and self._limited:
            for epoch in trial.epochs:
                asked.report(epoch[METRIC], int(epoch["epoch"]))
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, state=TrialState.FAIL)


def _sampler(sweep: Sweep) -> BaseSampler:
    if sweep.search == "random":
        return RandomSampler(seed=sweep.seed)

    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return TPESampler(
            seed=sweep.seed,
            n_startup_trials=max(4, sweep.trials // 4),
            multivariate=True,
            group=True,  # settings that only some trials have
            constant_liar=True,
        )


def _drawing(trial: optuna.Trial) -> Any:
    """`Space.sample`'s draw, by an Optuna trial."""

    def draw(key: str, dimension: Dimension) -> Any:
        if dimension.choices:
            return dimension.choices[trial.suggest_categorical(key, range(len(dimension.choices)))]
        low, high = dimension.values
        if dimension.whole:
            return trial.suggest_int(key, low, high, log=dimension.log)
        return float(f"{trial.suggest_float(key, low, high, log=dimension.log):.4g}")

    return draw


def _identity(params: Params) -> str:
    return digest(repr(sorted(params.items())), size=4)
