from dataclasses import replace

import pytest
from ray.tune.search import Searcher

from rankstill.configfile import load_config
from tune.search import StudentSearch
from tune.select import overshoot
from tune.space import make_space
from tune.trials import Trial, TrialFiles, Variant


def searching(folder, dimensions, **settings):
    given = {"preset": "none", "space": dimensions, **settings}
    config = load_config({"data": {"shop": {}}, "sweep": given})
    files = TrialFiles(folder)
    return StudentSearch(make_space(config), config.sweep, files), files


def finish(search, files, key, trial_id, ndcg, p99=10.0, size=100):
    """What a trial and Ray Tune do at its end."""
    trial = files.read(key)
    timing = {"latency": {"50": {"p99_ms": p99}}, "bytes": size}
    made = Variant(key, "float32", "/a", "torch", {"value": ndcg, "low": ndcg, "high": ndcg}, timing)
    epochs = ({"epoch": 1.0, "ndcg@10": ndcg},)
    files.write(replace(trial, state="finished", variants=(made,), epochs=epochs))
    search.on_trial_complete(trial_id, {})


ALPHA = {"distill.alpha": {"low": 0.0, "high": 1.0}}


def test_a_finite_space_is_tried_once_each_and_then_it_ends(tmp_path):
    dimensions = {"train.epochs": {"choices": [1, 2, 3]}, "train.lists": {"choices": [4, 8]}}
    search, files = searching(tmp_path, dimensions, search="random")
    seen = []
    for number in range(6):
        given = search.suggest(str(number))
        finish(search, files, given["trial"]["name"], str(number), 0.5)
        seen.append(tuple(sorted(given["trial"]["params"].items())))
    assert len(set(seen)) == 6
    assert search.suggest("6") == Searcher.FINISHED


@pytest.mark.parametrize("limits", [{}, {"p99_ms": 20}])
def test_it_finds_what_is_good_sooner_than_chance(tmp_path, limits):
    def mean_of_last(search):
        searcher, files = searching(tmp_path / search, ALPHA, search=search, budget=limits, trials=40)
        found = []
        for number in range(40):
            given = searcher.suggest(str(number))
            alpha = given["trial"]["params"]["distill.alpha"]
            finish(searcher, files, given["trial"]["name"], str(number), 1 - (alpha - 0.8) ** 2)
            found.append((alpha - 0.8) ** 2)
        return sum(found[20:]) / 20

    assert mean_of_last("tpe") < 0.5 * mean_of_last("random")


def test_limits_keep_the_search_where_they_are_met(tmp_path):
    """Quality grows with alpha, and so does time: the best within the limit is at 0.5."""
    search, files = searching(tmp_path, ALPHA, budget={"p99_ms": 50}, trials=60)
    for number in range(60):
        given = search.suggest(str(number))
        alpha = given["trial"]["params"]["distill.alpha"]
        finish(search, files, given["trial"]["name"], str(number), alpha, p99=1 + 98 * alpha)
    budget = load_config({"data": {"shop": {}}, "sweep": {"budget": {"p99_ms": 50}}}).sweep.budget
    late = [trial.variants[0] for trial in files.all()[30:]]
    assert sum(overshoot(one, budget) == 0 for one in late) > 10
    within = [one.ndcg["value"] for one in late if not overshoot(one, budget)]
    assert max(within) > 0.45


def test_repeats_of_finalists_are_none_of_its_trials(tmp_path):
    search, files = searching(tmp_path, ALPHA)
    first = search.suggest("0")["trial"]
    finish(search, files, first["name"], "0", 0.7)
    params = {**first["params"], "train.seed": 1}
    files.write(Trial(0, f"{first['name']}-seed1", params, repeats=first["name"]))
    again, _ = searching(tmp_path, ALPHA)
    assert again.suggest("0")["trial"]["name"].startswith("001-")


def test_what_runs_while_the_sweep_is_stopped_is_gone_on_with_later(tmp_path):
    config = load_config({"data": {"shop": {}}, "sweep": {"preset": "none", "space": ALPHA}})
    files, stopped = TrialFiles(tmp_path), []
    search = StudentSearch(make_space(config), config.sweep, files, ending=lambda: bool(stopped))
    first = search.suggest("0")["trial"]
    stopped.append(True)
    search.on_trial_complete("0", {})
    assert files.read(first["name"]).state == "begun"


def test_another_process_knows_what_was_done_and_resumes_what_was_begun(tmp_path):
    dimensions = {**ALPHA, "train.epochs": {"choices": [1, 2]}}
    search, files = searching(tmp_path, dimensions)
    first, second, third = (search.suggest(str(number))["trial"] for number in range(3))
    finish(search, files, first["name"], "0", 0.7)
    search.on_trial_complete("1", {})  # given up by the scheduler
    again, _ = searching(tmp_path, dimensions)
    assert [(trial.name, trial.state) for trial in files.all()] == [
        (first["name"], "finished"),
        (second["name"], "stopped"),
        (third["name"], "begun"),
    ]
    assert again.suggest("0")["trial"] == third
    fourth = again.suggest("1")["trial"]
    assert fourth["name"].startswith("003-")
    finish(again, files, third["name"], "0", 0.9)
    again.on_trial_complete("1", None, error=True)
    assert [trial.state for trial in files.all()] == ["finished", "stopped", "finished", "failed"]
    assert "out of memory" in files.all()[3].reason
