import numpy as np
import polars as pl
import pytest
import torch
from builders import made_up_pairs, tiny_cross_encoder
from sklearn.linear_model import LinearRegression
from torch.nn import functional

from rankstill.artifacts import load_artifact
from rankstill.bi_encoder import load_bi_encoder
from rankstill.cross_encoder import CrossEncoder, collate, load_cross_encoder, model_inputs
from rankstill.encoders import random_model
from rankstill.errors import ConfigError, ModelError
from rankstill.exporting import export_artifact
from rankstill.model_config import RandomModel, Student
from rankstill.scoring import torch_scorer
from rankstill.students import make_student
from rankstill.students.towers import match_scale
from rankstill.towers import START_SCALE, TowerModel

FAMILIES = ("bi", "late")


@pytest.fixture(scope="module")
def teacher() -> CrossEncoder:
    return tiny_cross_encoder(layers=3)


def towers(teacher: CrossEncoder, family: str, **settings) -> CrossEncoder:
    """A student whose head weighs as a trained one's, and not as little as a new one's."""
    shape = {"layers": 2, "max_length": 32, "vectors": 4, **settings}
    student = make_student(Student(family=family, **shape), teacher, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if name.startswith(("importance", "head")):
                parameter.normal_(std=0.5)
    return student


def scored(student: CrossEncoder) -> np.ndarray:
    return torch_scorer(student, "cpu", "float32", 256).score(*made_up_pairs(20))


def tower(student: CrossEncoder) -> TowerModel:
    assert isinstance(student.model, TowerModel)
    return student.model.eval()


def alone(student: CrossEncoder, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([student.tokenizer(text, truncation=True, max_length=32)["input_ids"]])
    return ids, torch.ones_like(ids, dtype=torch.bool)


@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pairs_score_is_that_of_query_and_item_encoded_apart(teacher, family, width):
    student = towers(teacher, family, width=width)
    queries, texts = made_up_pairs(20)
    expected = []
    with torch.inference_mode():
        for query, text in zip(queries, texts, strict=True):
            if len(student.tokenizer(query, text)["input_ids"]) <= 32:
                vectors, weights = tower(student).encode_queries(*alone(student, query))
                items = tower(student).encode_items(*alone(student, text))
                assert items.shape == (1, 4 if family == "late" else 1, width or 32)
                assert vectors.shape[-1] == (width or 32)
                expected.append(tower(student).compare(vectors, weights, items).item())
            else:
                expected.append(np.nan)
    whole = ~np.isnan(expected)
    assert whole.sum() > 5
    assert scored(student)[whole] == pytest.approx(np.array(expected)[whole], abs=1e-4)
    assert np.std(scored(student)) > 0.05


def test_bi_is_the_cosine_of_mean_pooled_vectors(teacher, tmp_path):
    teacher.save(tmp_path)
    student = make_student(Student(family="bi", init=str(tmp_path), layers=3, max_length=32), teacher, 0)
    queries, texts = ["red drill", "lamp"], ["cordless drill 18v", "steel table lamp"]
    cosines = load_bi_encoder(str(tmp_path), "test").score(queries, texts)
    found = torch_scorer(student, "cpu", "float32", 256).score(queries, texts)
    assert found == pytest.approx(START_SCALE * cosines, abs=1e-4)


def test_late_is_maxsim_before_it_learns(teacher):
    student = make_student(Student(family="late", layers=2, vectors=4, max_length=32), teacher, 0)
    model = tower(student)
    with torch.inference_mode():
        query, item = alone(student, "red drill"), alone(student, "cordless drill 18v")
        vectors, weights = model.encode_queries(*query)
        items = model.encode_items(*item)
        states = model.encoder(*query).last_hidden_state[0]
        best = (functional.normalize(states, dim=-1) @ items[0].T).max(dim=-1).values
        assert model.compare(vectors, weights, items).item() == pytest.approx(
            START_SCALE * best.mean().item(), abs=1e-4
        )
        mean = functional.normalize(model.encoder(*item).last_hidden_state[0].mean(dim=0), dim=-1)
        assert items[0, 0].tolist() == pytest.approx(mean.tolist(), abs=1e-5), "the first vector is the mean"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_learns(teacher, family):
    student = towers(teacher, family, width=8)
    queries, texts = made_up_pairs(12)
    inputs = collate(student.tokenise(queries, texts), range(12), student.pad_id)
    logits = student.model(**model_inputs(student.model, inputs)).logits[:, 0]
    (logits * torch.arange(12)).sum().backward()
    still = [name for name, p in student.model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # keys have biases that softmax leaves out, positions and segments that no text here reaches
    assert [name for name in still if "key.bias" not in name and "importance.bias" not in name] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_student_scores_the_same_in_every_runtime(teacher, family, tmp_path):
    student = towers(teacher, family, width=8)
    before = scored(student)
    (tmp_path / "artifact").mkdir()
    export_artifact(student, tmp_path / "artifact", {}, ["title"])
    artifact = load_artifact(tmp_path / "artifact")
    assert artifact.manifest["family"] == family
    for runtime in ("torch", "onnx"):
        assert artifact.scorer(runtime, 1, 256).score(*made_up_pairs(20)) == pytest.approx(before, abs=1e-4)
    loaded = load_cross_encoder(tmp_path / "artifact", "test")
    assert loaded.family == family
    assert "_name_or_path" not in (tmp_path / "artifact" / "config.json").read_text()


def test_students_start_from_layers_of_the_teacher_or_at_random(teacher):
    student = make_student(Student(family="bi", layers=2), teacher, 0)
    ours, theirs = student.model.state_dict(), teacher.model.state_dict()
    key = "encoder.layer.1.output.dense.weight"
    assert torch.equal(ours[f"encoder.{key}"], theirs[f"bert.{key.replace('1', '2', 1)}"])
    random = Student(family="late", init="random", random=RandomModel(layers=1, width=16, heads=2))
    one, again, other = (make_student(random, teacher, seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["slots"], other["slots"])


def test_a_tokenizer_that_mixes_query_and_item_is_refused(teacher, monkeypatch):
    tokenizer = teacher.tokenizer
    mixed = CrossEncoder(random_model(RandomModel(), len(tokenizer), 32), tokenizer, 32)
    monkeypatch.setattr(CrossEncoder, "tokenise", lambda self, *_: tokens_without_segments)
    from builders import tokens_of_lengths

    tokens_without_segments = tokens_of_lengths([5])
    with pytest.raises(ConfigError, match="doesn't tell query and item apart"):
        make_student(Student(family="bi", layers=2), mixed, 0)


def test_a_trained_student_is_trained_on_as_it_is(teacher, tmp_path):
    first = towers(teacher, "late", vectors=4, width=16)
    first.save(tmp_path)
    again = make_student(Student(family="late", init=str(tmp_path), vectors=4, width=16, max_length=32), None, seed=1)
    np.testing.assert_array_equal(scored(again), scored(first))
    for settings, told in (
        ({"family": "late", "vectors": 8, "width": 16}, r"has vectors 4; set student\.vectors=4"),
        ({"family": "bi", "width": 16}, r"has family late; set student\.family=late"),
        ({"family": "cross"}, r"is of family late; set student\.family=late"),
    ):
        with pytest.raises(ConfigError, match=told):
            make_student(Student(init=str(tmp_path), **settings), None, seed=0)
    with pytest.raises(ModelError, match="is a two-tower student, no sentence encoder"):
        load_bi_encoder(str(tmp_path), "teacher.model")


@pytest.mark.parametrize("family", FAMILIES)
def test_new_towers_score_on_the_teachers_scale(teacher, family):
    student = make_student(Student(family=family, layers=2, max_length=32), teacher, 0)
    queries, texts = made_up_pairs(20)
    cosines = scored(student) / START_SCALE
    scores = 0.5 - 2.0 * np.sin(np.arange(20)) + 3.0 * cosines
    pairs = pl.DataFrame({"query": queries, "text": texts, "score": scores})
    unscored = pairs.head(5).with_columns(score=pl.lit(None, pl.Float64))
    match_scale(student, pl.concat([unscored, pairs]))
    line = LinearRegression().fit(cosines.reshape(-1, 1), scores)
    np.testing.assert_allclose(scored(student), line.predict(cosines.reshape(-1, 1)), rtol=1e-3)
    before = scored(student)
    match_scale(student, pairs.with_columns(score=-pl.col("score")))  # a teacher that says the opposite
    match_scale(student, unscored)
    np.testing.assert_array_equal(scored(student), before)
