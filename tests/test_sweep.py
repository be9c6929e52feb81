"""Sweeps on the shared cluster, over tiny students of a generated shop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray.tune
from ray.tune.experiment import Trial as TuneTrial

from rankstill.artifacts import load_artifact
from rankstill.cluster import Share
from rankstill.configfile import load_config
from rankstill.errors import BudgetError, ConfigError, DamagedError, RunError
from rankstill.progress import Reporter
from rankstill.quiet import QuietLock
from rankstill.registry import Registry
from rankstill.steps.run import Run
from tune.run import FailureStop, Watch, sweep, trial_needs
from tune.space import make_space
from tune.sweep import main
from tune.trials import Trial, TrialFiles, Variant, variants_of

ROOT = Path(__file__).parent.parent
SMALL = {
    "name": "swept",
    "data": {"shop": {"items": 120, "queries": 60, "candidates": 8}},
    "teacher": {
        "base": "random",
        "random": {"layers": 2, "width": 16, "heads": 2, "vocabulary": 500},
        "max_length": 32,
        "train": {"epochs": 1, "lists": 8, "learning_rate": 1e-3},
        "gate": "off",
    },
    "student": {"layers": 1, "max_length": 32},
    "train": {"epochs": 2, "lists": 8, "learning_rate": 1e-3, "precision": "float32"},
    "sweep": {
        "preset": "none",
        "space": {
            "student.layers": {"choices": [1, 2]},
            "distill.temperature": {"low": 0.5, "high": 4.0, "log": True},
        },
        "trials": 3,
        "measured": [1, 5],
        "measure_on": "node:__internal_head__",  # which Ray gives the machine where the cluster was started
        "budget": {"candidates": 5},
        "reduction": 2,
    },
}


def run(root, *overrides):
    config = load_config(SMALL, [f"storage.root={root}", *overrides])
    return sweep(config, make_space(config))


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_trial_leaves_to_its_workers_what_they_train_with(workers, device):
    share = Share(device, workers, worker_cpus=1, actors=(1, 1), actor_cpus=1, actor_gpus=1.0)
    needs = trial_needs(share, cpus=3)
    ray.tune.with_resources(lambda _: None, needs)  # which Ray takes
    assert needs.get("cpu", 0) == (3 if workers == 1 else 0)
    assert needs.get("gpu", 0) == (1 if workers == 1 and device == "cuda" else 0)


@pytest.fixture(scope="module", autouse=True)
def _hasty():
    """Side by side, forms are timed for seconds, and not for minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.finals.THOROUGH", {"parts": 2, "seconds": 2.0})
        patch.setattr("tune.finals.PROCESSES", 1)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def swept(root, cluster):
    return run(root)


def test_a_sweep_ends_in_a_registered_student_that_was_measured(swept, root):
    files = TrialFiles(Path(swept.places["sweep"]))
    trials = files.all()
    assert len(trials) == 3
    assert {trial.state for trial in trials} <= {"finished", "stopped"}
    finished = [trial for trial in trials if trial.state == "finished"]
    assert finished
    for trial in finished:
        assert [epoch["epoch"] for epoch in trial.epochs] == [1, 2]
        assert [variant.precision for variant in trial.variants] == ["float32", "int8"]
        for variant in trial.variants:
            assert set(variant.timing["latency"]) == {"1", "5"}
            assert 0 < variant.timing["latency"]["5"]["p50_ms"] <= variant.p99_ms(5)
            assert variant.bytes == load_artifact(variant.folder).model_file(variant.runtime).stat().st_size
            table = files.table(variant)
            assert table["ndcg@10"].mean() == pytest.approx(variant.ndcg["value"], abs=1e-6)
    whole = finished[0].variants[0]
    assert whole.ndcg["value"] == pytest.approx(finished[0].best, abs=1e-3), "training measures the same"
    version = Registry(root).resolve("swept@challenger", "test")
    choice, settled = swept.choice, files.settled()
    assert version.folder == choice.winner.folder
    assert choice.winner in choice.equal
    alone = {one.name: one.timing["latency"] for one in variants_of(trials)}
    for one in (choice.winner, *choice.pareto):
        assert one.p99_ms(5) == min(part[one.name]["5"]["p99_ms"] for part in (alone, settled)), "the quieter of both"
        assert one.timing["latency"]["1"] == alone[one.name]["1"]
    data = json.loads((files.folder / "report.json").read_text())
    told = {one["name"]: one["latency"] for one in data["variants"]}
    assert told[choice.winner.name] == choice.winner.timing["latency"]
    assert (data["winner"], data["state"], data["asked"]) == (choice.winner.name, "done", 3)
    assert {link["what"] for link in data["lineage"]} >= {"version swept/1", "student", "label store", "data"}
    assert len(data["agreement"]) == swept.test["models"]["student"]["pairs"]
    assert swept.test["models"]["student"]["queries"] == swept.test["models"]["teacher"]["queries"] > 0
    assert not list((root / "runs").iterdir()), "nothing of trials that were given up is left"


def test_what_was_swept_is_not_trained_again_and_more_is_added(swept, root):
    from mlflow import MlflowClient

    folder = Path(swept.places["sweep"]) / "trials"
    before, timed = stamps(folder), stamps(folder.parent)["latencies.json"]
    again = run(root)
    assert again.choice == swept.choice
    assert stamps(folder) == before
    assert stamps(folder.parent)["latencies.json"] == timed
    run(root, "sweep.trials=4")
    after = stamps(folder)
    assert len(after) == 4
    assert before.items() <= after.items()
    client = MlflowClient(tracking_uri=Registry(root).uri)
    runs = client.search_runs([client.get_experiment_by_name("swept").experiment_id])
    told = {run.data.tags["trial"]: run for run in runs if run.data.tags.get("trial")}
    trials = TrialFiles(folder.parent).all()
    assert sorted(told) == [trial.name for trial in trials], "each trial is a run of MLflow, and once"
    for trial in trials:
        run_ = told[trial.name]
        assert run_.info.status == ("FINISHED" if trial.state == "finished" else "KILLED")
        assert run_.data.params["student.layers"] == str(trial.params["student.layers"])
        assert run_.data.metrics["ndcg_at_10"] == trial.epochs[-1]["ndcg@10"]
        for variant in trial.variants:
            assert run_.data.metrics[f"{variant.precision}_bytes"] == variant.bytes


def test_a_sweep_keeps_its_students_below_a_relative_root(swept, root, monkeypatch):
    monkeypatch.chdir(root)
    again = run(".", "sweep.stop_early=false", "sweep.trials=1", "sweep.precisions=[float32]")
    assert again.choice.winner.folder.parent == root / "artifacts"


def test_a_budget_that_nothing_meets_ends_with_the_nearest(swept, root):
    with pytest.raises(
        BudgetError, match=r"no student is within the budget; the nearest, 00.*over sweep\.budget\.bytes=1"
    ):
        run(root, "sweep.budget.bytes=1")


def test_finalists_are_trained_again_with_other_seeds(swept, root):
    seeds = run(root, "sweep.stability=1", "sweep.finalists=1")
    files = TrialFiles(Path(seeds.places["sweep"]))
    (repeat,) = [trial for trial in files.all() if trial.repeats]
    original = files.read(repeat.repeats)
    assert repeat.state == original.state == "finished"
    assert repeat.params == {**original.params, "train.seed": 1}
    assert repeat.student != original.student


def test_trials_that_all_fail_alike_end_the_sweep_with_the_reason(swept, root):
    with pytest.raises(RunError, match=r"3 trials in a row failed for the same reason: .*at least 500 lists a step"):
        run(root, "sweep.trials=6", "train.lists=500", "train.accumulate=500")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.cpus=4096", r"sweep\.cpus is 4096 but no machine has more than \d+ CPUs"),
        ("sweep.measure_on=nowhere", r"sweep\.measure_on is 'nowhere' but no machine of the cluster has that resource"),
    ],
)
def test_what_the_cluster_has_not_is_refused_before_anything_is_trained(cluster, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, override)
    assert not (tmp_path / "teachers").exists()


def test_a_damaged_trial_is_named_and_times_are_taken_again(tmp_path):
    files = TrialFiles(tmp_path)
    files.write(Trial(number=0, name="000", params={}))
    (tmp_path / "trials" / "000.json").write_text('{"number": 0')
    with pytest.raises(DamagedError, match=r"sweep: '.*000.json' can't be read .*; remove it, another takes its place"):
        files.all()
    (tmp_path / "latencies.json").write_text("{")
    assert files.settled() == {}
    (tmp_path / "tables" / "000 float32.parquet").write_bytes(b"PAR1")
    variant = Variant("000", "float32", "", "openvino", {}, {})
    with pytest.raises(
        DamagedError, match=r"'.*000 float32.parquet' can't be read; remove '.*000.json', another takes"
    ):
        files.table(variant)


def test_a_report_is_not_written_beside_what_is_timed(tmp_path):
    config = load_config(SMALL, [f"storage.root={tmp_path}"])
    run_, files, told = Run(config, Reporter()), TrialFiles(tmp_path / "sweeps" / "a"), threading.Event()
    files.write(Trial(number=0, name="00", params={}, state="finished"))
    watch = Watch(run_, files, 1, told.set, FailureStop())
    ended = TuneTrial("rankstill", stub=True, config={"trial": {"name": "00"}})
    telling = threading.Thread(target=watch.on_trial_complete, args=(1, [ended], ended))
    with QuietLock(run_.root).alone():
        telling.start()
        assert not told.wait(0.3)
    telling.join()
    assert told.is_set()


def test_a_killed_sweep_goes_on_where_it_was(swept, root, tmp_path, monkeypatch, capsys):
    left = shutil.ignore_patterns("sweeps", "students", "artifacts", "registry")
    shutil.copytree(root, tmp_path / "root", ignore=left)
    (tmp_path / "config.yaml").write_text(json.dumps({**SMALL, "storage": {"root": str(tmp_path / "root")}}))
    words = ["--config", str(tmp_path / "config.yaml"), "sweep.stop_early=false", "sweep.precisions=[float32]"]
    first = subprocess.Popen(
        [sys.executable, "-m", "tune.sweep", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "platform"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ended() -> dict[str, dict]:
        told = [json.loads(path.read_text()) for path in (tmp_path / "root").glob("sweeps/*/trials/[!.]*.json")]
        return {trial["name"]: trial for trial in told if trial["state"] != "begun"}

    while not ended():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = ended()
    assert len(before) < 3
    monkeypatch.setattr(sys, "argv", ["tune.sweep", *words])
    main()
    after = ended()
    assert [trial["state"] for trial in after.values()] == ["finished"] * 3
    assert {name: after[name] for name in before} == before
    told = capsys.readouterr().out
    assert "nDCG@10 (valid)" in told
    assert "swept/1 (challenger, champion)" in told
