import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from rankstill.errors import ModelError
from rankstill.teachers.ensemble import Ensemble, Member, read_ensemble
from rankstill.teachers.kinds import TeacherModel

CROSS = TeacherModel("cross", "/models/cross", 64)
BI = TeacherModel("bi", "/models/bi", 64)
CAUSAL = TeacherModel("causal", "/models/lm", 64, "Is {text} a {query}?", ("no", "yes"))


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_the_mean_is_of_standardised_scores_on_the_scale_of_the_first():
    ours, others = scores(-1, 0, 1), scores(0.3, 0.9, 0.9)  # means 0 and 0.7, deviations sqrt(2/3) and sqrt(0.08)
    ensemble = Ensemble.standardised([CROSS, BI], [3.0, 1.0], [ours, others], scores(0, 1, 1))
    z = 0.2 / np.sqrt(0.08) * np.sqrt(2 / 3)
    assert ensemble.combine([ours, others]) == pytest.approx(scores(-0.75 - 0.25 * 2 * z, 0.25 * z, 0.75 + 0.25 * z))
    # Statistics are those of then, whatever is scored now.
    assert ensemble.combine([scores(1), scores(0.7)]) == pytest.approx(scores(0.75))


def test_one_member_alone_keeps_its_scores():
    assert Ensemble((Member(CROSS, 1.0),)).combine([scores(3, -2)]) == pytest.approx(scores(3, -2))


def test_a_member_that_tells_nothing_apart_is_refused():
    with pytest.raises(ModelError, match="'/models/bi' gives all pairs the same score"):
        Ensemble.standardised([CROSS, BI], [1.0, 1.0], [scores(1, 2), scores(1, 1)], scores(0, 1))


def test_cosines_become_the_logits_of_what_was_judged():
    draw = np.random.default_rng(0)
    cosines = draw.uniform(0.2, 0.8, 2000)
    logits = 12 * cosines - 5
    judged = (draw.random(2000) < 1 / (1 + np.exp(-logits))).astype(float)
    alone = Ensemble.standardised([BI], [1.0], [cosines], judged)
    found = alone.combine([cosines])
    fitted = LogisticRegression(C=np.inf).fit(cosines[:, None], judged)
    assert found == pytest.approx(fitted.decision_function(cosines[:, None]), abs=1e-2)
    assert np.abs(found - logits).mean() < 0.3
    # Beside others they are on that scale too, and a list that takes one member's scores has them on it.
    both = Ensemble.standardised([BI, CROSS], [1.0, 1.0], [cosines, logits], judged)
    assert both.combine([cosines, logits]) == pytest.approx(found, abs=1e-2)
    pairs = pl.DataFrame({"query_id": ["a", "a"], "item_id": ["1", "2"], "label": [2.0, 0.0]})
    chosen = both.choose(pairs, [scores(0.3, 0.7), scores(3.4, -1.4)])
    assert chosen == pytest.approx(alone.combine([scores(0.7, 0.3)]), abs=1e-2)
    # High cosines that go with low judgements stay as they are.
    assert Ensemble.standardised([BI], [1.0], [cosines], 1 - judged).combine([cosines]) == pytest.approx(cosines)


def test_each_list_is_labelled_by_the_member_that_agrees_with_it():
    pairs = pl.DataFrame(
        {
            "query_id": ["a", "a", "a", "b", "b", "c", "c"],
            "item_id": list("1234567"),
            "label": [2.0, 0.0, None, 2.0, 0.0, None, None],
        }
    )
    ours, others = scores(1, 0, 5, 0, 1, 1, 0), scores(0, 1, 7, 1, 0, 0, 1)  # the first is right on a, the other on b
    ensemble = Ensemble((Member(CROSS, 0.5, mean=1.0, std=2.0), Member(BI, 0.5, mean=0.0, std=1.0)))
    mean = ensemble.combine([ours, others])
    expected = [1, 0, 5, 1 + 2 * 1, 1 + 2 * 0, mean[5], mean[6]]
    assert ensemble.choose(pairs, [ours, others]).tolist() == pytest.approx(expected)


def test_a_draw_gets_the_mean():
    pairs = pl.DataFrame({"query_id": ["a", "a"], "item_id": ["1", "2"], "label": [2.0, 0.0]})
    ensemble = Ensemble((Member(CROSS, 0.5), Member(BI, 0.5)))
    assert ensemble.choose(pairs, [scores(1, 0), scores(5, 1)]).tolist() == [3.0, 0.5]


def test_an_ensemble_is_read_as_it_was_written(tmp_path):
    members = Member(CROSS, 0.2, 0.1, 2.0), Member(BI, 0.3, -1.5, 0.25), Member(CAUSAL, 0.5)
    ensemble = Ensemble(members, scale=9.0, offset=-4.0)
    ensemble.write(tmp_path)
    assert read_ensemble(tmp_path, "test") == ensemble


@pytest.mark.parametrize("text", ["", "{}", '{"members": [{"weight": 1}]}', '{"members": 3}'])
def test_a_broken_manifest_is_refused(tmp_path, text):
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(ModelError, match=r"test: .* has no readable ensemble\.json"):
        read_ensemble(tmp_path, "test")
