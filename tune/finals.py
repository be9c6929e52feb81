"""The end of a sweep: its best students trained again with other seeds, and the winner's one look at the test split."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankstill.config import Config
from rankstill.evaluation import PRIMARY
from rankstill.metrics import METRICS, Estimate, estimate, paired_difference, retention
from rankstill.rankers import artifact_ranker, pick_device
from rankstill.steps.held_out import HeldOut
from rankstill.steps.run import Run
from rankstill.steps.teach import judged_split
from tune.select import choose, overshoot, pareto
from tune.trial import TrialPlan, time_forms
from tune.trials import Trial, TrialFiles, Variant, quieter, variants_of

THOROUGH: dict[str, Any] = {"parts": 4, "seconds": 6.0}
"""How long forms are timed side by side, of as many candidates as the budget is for."""
PROCESSES = 6
"""Forms are timed so often, each time in a new process: some are slower, by up to a third, for as long as they live."""
CHEAPEST = 3
"""Of the forms that can't be told from the best, so many are timed again."""


def repeats_of_finalists(config: Config, files: TrialFiles) -> list[dict[str, Any]]:
    """Names and settings of the trainings with further seeds, of the best within the budget, that aren't done."""
    settings = config.sweep
    trials = {trial.name: trial for trial in files.all()}
    forms = [one for one in variants_of(list(trials.values())) if not trials[one.trial].repeats]
    forms.sort(key=lambda one: (overshoot(one, settings.budget), -one.ndcg["value"]))
    wanted = []
    for name in list(dict.fromkeys(one.trial for one in forms))[: settings.finalists]:
        for seed in range(1, settings.stability + 1):
            params = {**trials[name].params, "train.seed": config.train.seed + seed}
            repeat = Trial(trials[name].number, f"{name}-seed{seed}", params, repeats=name)
            if repeat.name not in trials:
                files.write(repeat)
            if trials.get(repeat.name, repeat).state == "begun":
                wanted.append({"name": repeat.name, "params": repeat.params})
    return wanted


def seeded(files: TrialFiles) -> list[tuple[Variant, pl.DataFrame]]:
    """Each form of each student with its metrics by query; means over seeds where it was trained with several."""
    trials = files.all()
    found = []
    for variant in variants_of([trial for trial in trials if not trial.repeats]):
        again = [trial for trial in trials if trial.repeats == variant.trial]
        forms = [one for one in variants_of(again) if one.precision == variant.precision]
        tables = [files.table(one) for one in (variant, *forms)]
        if forms:
            mean = pl.concat(tables).group_by("query_id", maintain_order=True).agg(pl.col(METRICS).mean())
            variant = replace(variant, ndcg=estimate(mean[PRIMARY].to_list()).as_dict())
            tables = [mean]
        found.append((variant, tables[0]))
    return found


@dataclass(frozen=True)
class Choice:
    """What a sweep comes to on the valid queries."""

    variants: list[Variant]
    winner: Variant
    equal: list[Variant]
    """Forms within the budget that can't be told from the best, cheapest first."""
    pareto: list[Variant]


def settle(run: Run, plan: TrialPlan, files: TrialFiles) -> Choice:
    """Choose, after the forms in question were timed once more, side by side.

    A trial is timed when it ends, and a machine may be faster at one time than at another. In question are the Pareto
    set, the winner, and the cheapest that can't be told from the best; where new times bring in another form, all are
    timed again. Of several timings of a form the quietest counts.

    Raises:
        BudgetError: nothing is within the budget.
    """
    budget = run.config.sweep.budget
    found = seeded(files)
    tables = {variant.name: table for variant, table in found}
    settled = files.settled()
    while True:
        variants = [one.retimed(settled) for one, _ in found]
        winner, equal = choose(variants, budget, tables)
        front = pareto(variants, budget.candidates)
        wanted = {one.name for one in (*front, winner, *equal[:CHEAPEST])}
        if wanted <= settled.keys():
            return Choice(variants, winner, equal, front)
        wanted |= settled.keys()
        forms = {one.name: (one.artifact, one.runtime) for one in variants if one.name in wanted}
        run.reporter.event("sweep", state="timing side by side", students=list(forms))
        for _ in range(PROCESSES):
            timed = time_forms(run, plan, list(forms.values()), (budget.candidates,), **THOROUGH)
            settled = {name: quieter(one["latency"], settled.get(name)) for name, one in zip(forms, timed, strict=True)}
        files.settle(settled)


@dataclass(frozen=True)
class FinalLook:
    """The winner beside the teacher and BM25 on the test split, which nothing was chosen on; each by its role."""

    pairs: pl.DataFrame
    reports: dict[str, dict[str, Any]]
    tables: dict[str, pl.DataFrame]
    scores: dict[str, NDArray[np.float64]]
    unseen: pl.Series
    """Whether the item of each pair is in no judgement that was learnt from."""

    @property
    def retention(self) -> Estimate:
        """The student's nDCG@10 as a share of the teacher's."""
        return retention(self.tables["student"], self.tables["teacher"], PRIMARY)

    def told(self) -> dict[str, Any]:
        """For JSON."""
        differences = {
            f"student - {other}": paired_difference(self.tables["student"], self.tables[other], PRIMARY).as_dict()
            for other in ("teacher", "bm25")
        }
        return {"models": self.reports, "differences": differences, "retention": self.retention.as_dict()}


def look_at_test(run: Run, plan: TrialPlan, winner: Variant) -> FinalLook:
    """Score the test split with the winner, and with the teacher and BM25 where that isn't done."""
    held_out = HeldOut(run, plan.prepared)
    device = pick_device(run.config.resources.device)
    budget = run.config.labels.budget(device)
    student = held_out.evaluate(
        "student",
        f"{winner.folder.name} {winner.runtime}",
        lambda: artifact_ranker("student", winner.folder, winner.runtime, device, budget),
    )
    found = {"teacher": held_out.teacher(plan.taught), "student": student, "bm25": held_out.bm25()}
    learnt = judged_split(plan.prepared.pairs, "train")["item_id"].unique()
    return FinalLook(
        held_out.pairs,
        {role: one.report for role, one in found.items()},
        {role: one.table for role, one in found.items()},
        {role: one.scores_B for role, one in found.items()},
        ~held_out.pairs["item_id"].is_in(learnt.implode()),
    )
