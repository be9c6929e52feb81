"""The worker loop on the shared cluster: DeepSpeed engines over gloo."""

import dataclasses
import os
import re
import signal
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import ray
import torch
from ray.exceptions import WorkerCrashedError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from safetensors.torch import load_file

from rankstill.configfile import parse_config
from rankstill.cross_encoder import CrossEncoder, load_cross_encoder
from rankstill.data import build_lists
from rankstill.encoders import random_model, random_tokenizer
from rankstill.errors import DamagedError, RunError
from rankstill.model_config import Distill, Features, Grades, RandomModel, Schedule, Train
from rankstill.objective import Objective
from rankstill.progress import Reporter
from rankstill.scoring import torch_scorer
from rankstill.steps.fit import Fit, fit, fit_here, history
from rankstill.steps.run import Run
from rankstill.students.cross import add_grades
from rankstill.training import NOT_MEASURED

pytestmark = pytest.mark.usefixtures("cluster")

WORDS = ("red", "blue", "drill", "lamp", "chair", "steel", "oak", "small")


def pairs(queries: int, split: str) -> pl.DataFrame:
    """Six items a query; the relevant ones share its word."""
    rows = [
        {
            "query_id": f"{split}{number}",
            "query": WORDS[number % 8],
            "item_id": f"{split}{number}-{place}",
            "text": f"{WORDS[(number + place // 3) % 8]} {WORDS[place]} thing",
            "label": 3.0 if place < 3 else 0.0,
            "pair_id": f"{split}{number}-{place}",
        }
        for number in range(queries)
        for place in range(6)
    ]
    return pl.DataFrame(rows)


def tiny_encoder() -> CrossEncoder:
    """Two layers with random weights, the same ones each time, at the scale that training starts from."""
    torch.manual_seed(0)
    tokenizer = random_tokenizer([" ".join(WORDS) + " thing"], 300, 32)
    return CrossEncoder(random_model(RandomModel(layers=2, width=16, heads=2), len(tokenizer), 32), tokenizer, 32)


def plan(name: str, train: Train, objective: Objective) -> Fit:
    return Fit(
        task="test",
        name=name,
        train_lists=build_lists(pairs(16, "train"), None),
        valid_lists=build_lists(pairs(6, "valid"), None),
        train=train,
        objective=objective,
    )


def run_in(folder: Path, workers: int) -> Run:
    tree = {"data": {"shop": {}}, "storage": {"root": str(folder)}, "resources": {"workers": workers, "device": "cpu"}}
    return Run(parse_config(tree), Reporter())


def scores_of(folder: Path) -> np.ndarray:
    """Scores that a trained model gives the valid pairs."""
    valid = pairs(6, "valid")
    scorer = torch_scorer(load_cross_encoder(folder, "test"), "cpu", "float32", 512)
    return scorer.score(valid["query"].to_list(), valid["text"].to_list())


def test_one_and_two_workers_learn_the_same_from_the_same_global_batch(tmp_path):
    encoder = tiny_encoder()
    hard = Objective.judgements_only(label_max=3.0)
    folders = []
    for workers, stage in ((1, 0), (2, 2)):
        # Two workers draw other dropout masks than one, and bfloat16 rounds their halves otherwise.
        train = Train(
            epochs=6, lists=4, learning_rate=1e-2, patience=6, zero_stage=stage, dropout=0.0, precision="float32"
        )
        out = tmp_path / f"out{workers}"
        out.mkdir()
        fit(run_in(tmp_path, workers), encoder, plan(f"workers{workers}", train, hard), out)
        folders.append(out)
    one, two = map(history, folders)
    assert [epoch["epoch"] for epoch in one] == [1, 2, 3, 4, 5, 6]
    assert [e["loss"] for e in two] == pytest.approx([e["loss"] for e in one], rel=1e-4)
    assert [e["ndcg@10"] for e in two] == pytest.approx([e["ndcg@10"] for e in one], rel=1e-6)
    assert one[-1]["loss"] < 0.8 * one[0]["loss"]
    # Scores and not weights: a key bias changes no attention, so its gradient is noise, which Adam scales up.
    scores = [scores_of(folder) for folder in folders]
    assert scores[0].std() > 0.5
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


HARD = Objective.judgements_only(label_max=3.0).distill


MID_EPOCH = re.compile(rf"{NOT_MEASURED}\D+epoch\W+1\b")
"""How the run's account of its checkpoints shows one within the second epoch."""


@dataclass(frozen=True)
class DiesOnce(Objective):
    """Counts its calls in a file and kills its process at a given one, once a checkpoint is known to the run."""

    calls: str = ""
    dies_at: int = 0
    known: str = ""

    def __call__(self, scores_QN, labels_QN, teacher_QN, mask_QN, progress=0.0):
        with Path(self.calls).open("a") as stream:
            stream.write("x")
        if Path(self.calls).stat().st_size == self.dies_at:
            while not Path(self.known).exists() or not MID_EPOCH.search(Path(self.known).read_text()):
                os.sched_yield()
            os._exit(1)
        return super().__call__(scores_QN, labels_QN, teacher_QN, mask_QN, progress)


def test_a_killed_worker_continues_within_the_epoch_as_if_nothing_had_been(tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    known = tmp_path / "runs" / "killed" / "ray" / "checkpoint_manager_snapshot.json"
    # Four steps an epoch, dropout among them; the second epoch's checkpoint comes after its second step.
    train = Train(epochs=2, lists=4, learning_rate=1e-2, patience=2, max_failures=1, checkpoint_steps=2)
    encoder, scores, losses, calls = tiny_encoder(), [], [], tmp_path / "calls"
    for name, dies_at in (("whole", 0), ("killed", 7)):
        objective = DiesOnce(HARD, 3.0, calls=str(calls), dies_at=dies_at, known=str(known))
        (tmp_path / name).mkdir()
        fit(run_in(tmp_path, 1), encoder, plan(name, train, objective), tmp_path / name)
        assert [epoch["steps"] for epoch in history(tmp_path / name)] == [4, 4]
        losses.append([epoch["loss"] for epoch in history(tmp_path / name)])
        scores.append(scores_of(tmp_path / name))
        assert calls.stat().st_size == (8 if name == "whole" else 7 + 2), "two steps were left to do"
        calls.unlink()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


class KillsBeforeTheFirstStep(WorkerGroupCallback):
    """Kills a worker once it has come up, when it isn't told yet what to do; and again, so often."""

    def __init__(self, calls: Path, kills: int) -> None:
        self._calls, self._kills = calls, kills

    def after_worker_group_start(self, worker_group):
        with self._calls.open("a") as stream:
            stream.write("x")
        if self._calls.stat().st_size <= self._kills:
            os.kill(worker_group.get_workers()[0].metadata.pid, signal.SIGKILL)


@pytest.mark.parametrize(("kills", "goes_on"), [(1, True), (2, False)])
def test_a_worker_killed_before_its_first_step_is_a_failure_like_any_other(tmp_path, kills, goes_on):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    train = Train(epochs=1, lists=4, learning_rate=1e-2, max_failures=1)
    given, callback = plan("killed", train, Objective(HARD, 3.0)), KillsBeforeTheFirstStep(tmp_path / "calls", kills)
    (tmp_path / "out").mkdir()
    with nullcontext() if goes_on else pytest.raises(RunError, match=r"worker's process died.*run again to continue"):
        fit(run_in(tmp_path, 1), tiny_encoder(), given, tmp_path / "out", callbacks=[callback])
    assert (tmp_path / "calls").stat().st_size == 2
    assert (tmp_path / "out" / "history.json").exists() == goes_on


def _here(folder: Path, encoder: CrossEncoder, given: Fit) -> list[float]:
    """Train in this process; what each epoch came to."""
    told: list[float] = []
    out = folder / given.name
    out.mkdir(exist_ok=True)
    fit_here(run_in(folder, 1), encoder, given, out, "cpu", 1, lambda metrics: told.append(metrics["ndcg@10"]))
    return told


def test_a_training_without_ray_train_learns_the_same_and_continues_too(tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    compiled = tmp_path / "compiled"
    environment = {"env_vars": {"TORCH_EXTENSIONS_DIR": str(compiled)}}
    here = ray.remote(num_cpus=1, max_retries=0, runtime_env=environment)(_here)
    train = Train(epochs=2, lists=4, learning_rate=1e-2, patience=2, checkpoint_steps=2)
    encoder, known, calls = tiny_encoder(), tmp_path / "known", tmp_path / "calls"
    known.write_text(f"{NOT_MEASURED} epoch: 1 ")
    (tmp_path / "train").mkdir()
    fit(run_in(tmp_path, 1), encoder, plan("train", train, Objective(HARD, 3.0)), tmp_path / "train")
    whole = ray.get(here.remote(tmp_path, encoder, plan("whole", train, Objective(HARD, 3.0))))
    assert whole == [epoch["ndcg@10"] for epoch in history(tmp_path / "whole")]
    assert len(whole) == 2
    dying = plan("killed", train, DiesOnce(HARD, 3.0, calls=str(calls), dies_at=7, known=str(known)))
    with pytest.raises(WorkerCrashedError):
        ray.get(here.remote(tmp_path, encoder, dying))
    last = max((tmp_path / "runs" / "killed" / "checkpoints").iterdir())
    for file in (last / "model" / "model.safetensors", next(last.rglob("*.pt"))):
        content = file.read_bytes()
        file.write_bytes(content[:1000])
        with pytest.raises(DamagedError, match=f"holds 1,000 of .* remove the folder '{tmp_path}/runs/killed' and run"):
            ray.get(here.remote(tmp_path, encoder, dying))
        file.write_bytes(content)
    assert ray.get(here.remote(tmp_path, encoder, dying)) == whole[1:], "the first epoch isn't done again"
    assert calls.stat().st_size == 7 + 2, "two steps were left to do"
    losses = [[epoch["loss"] for epoch in history(tmp_path / name)] for name in ("train", "whole", "killed")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert scores_of(tmp_path / "killed") == pytest.approx(scores_of(tmp_path / "whole"), abs=1e-4)
    assert list((tmp_path / "runs").iterdir()) == []
    assert not compiled.exists(), "DeepSpeed builds nothing, for which a machine would need a compiler"


def test_a_student_learns_from_the_inside_of_its_teacher(tmp_path):
    teacher = tiny_encoder()
    teacher.save(tmp_path / "teacher")
    features = Features(hidden=1.0, attention=1.0, relation=1.0, relation_heads=2, distance=1.0, angle=1.0)
    nothing_else = HARD.model_copy(
        update={"pointwise": 0.0, "alpha": Schedule(start=1.0, end=1.0), "features": features}
    )
    train = Train(epochs=6, lists=4, learning_rate=1e-2, patience=6, zero_stage=3, max_steps=22, recompute=True)
    given = plan("inside", train, Objective(nothing_else, label_max=3.0))
    out = tmp_path / "out"
    out.mkdir()
    fit(run_in(tmp_path, 1), tiny_encoder(), dataclasses.replace(given, teacher=tmp_path / "teacher"), out)
    losses = [epoch["loss"] for epoch in history(out)]
    assert losses[-1] < 0.7 * losses[0]
    assert [epoch["steps"] for epoch in history(out)] == [4, 4, 4, 4, 4, 2], "max_steps ends it"
    weights = load_file(out / "model.safetensors")
    assert set(weights) == set(load_file(tmp_path / "teacher" / "model.safetensors")), "projections stay behind"


def test_a_second_head_learns_the_teachers_grades(tmp_path):
    train_pairs = pairs(16, "train")
    relevant = train_pairs["label"].to_numpy() > 0
    logits = [[0.0, 2.0, 8.0] if high else [8.0, 2.0, 0.0] for high in relevant]
    labels = pl.DataFrame({"pair_id": train_pairs["pair_id"], "score": np.zeros(len(relevant)), "logits": logits})
    student = tiny_encoder()
    add_grades(student.model, 3)
    grades = Grades(weight=1.0, alpha=Schedule(start=1.0, end=1.0), temperature=Schedule(start=2.0, end=2.0))
    objective = Objective(Distill(pointwise=0.0, grades=grades), label_max=3.0)
    train = Train(epochs=24, lists=4, learning_rate=1e-2, patience=24, dropout=0.0)
    given = plan("grades", train, objective)
    given = dataclasses.replace(given, train_lists=build_lists(train_pairs, labels), best=False)
    out = tmp_path / "out"
    out.mkdir()
    fit(run_in(tmp_path, 1), student, given, out)
    scorer = torch_scorer(load_cross_encoder(out, "test"), "cpu", "float32", 512, grades=True)
    found = scorer.score(train_pairs["query"].to_list(), train_pairs["text"].to_list())
    assert ((found.argmax(axis=1) == 2) == relevant).mean() > 0.9


def test_a_diverged_training_ends_with_its_reason(tmp_path):
    train = Train(epochs=1, lists=4, learning_rate=1e-3, max_failures=0)
    objective = Objective(HARD.model_copy(update={"pointwise": float("inf")}), label_max=3.0)
    with pytest.raises(RunError, match=r"lower train\.learning_rate"):
        fit(run_in(tmp_path, 1), tiny_encoder(), plan("diverged", train, objective), tmp_path)
