import numpy as np
import polars as pl
import pytest
import torch
from builders import made_up_pairs, tiny_cross_encoder

from rankstill.batches import TokenisedLists, tokenise_lists
from rankstill.cross_encoder import CrossEncoder
from rankstill.data import build_lists
from rankstill.errors import ModelError
from rankstill.exporting import export_artifact
from rankstill.model_config import Distill, Prune, Student
from rankstill.objective import Objective
from rankstill.scoring import torch_scorer
from rankstill.students import make_student
from rankstill.students.cross import from_layers
from rankstill.students.pruning import importances, prune

QUERIES, TEXTS = made_up_pairs(24)
OBJECTIVE = Objective(Distill(), label_max=3.0)


def lists_for(encoder: CrossEncoder) -> TokenisedLists:
    """Six lists of four pairs, with scores of another model."""
    names = [str(number) for number in range(24)]
    pairs = pl.DataFrame({"pair_id": names, "query_id": [str(n // 4) for n in range(24)], "item_id": names})
    pairs = pairs.with_columns(query=pl.Series([QUERIES[n // 4] for n in range(24)]), text=pl.Series(TEXTS), label=None)
    scores = np.random.default_rng(0).normal(size=24) * 2
    labels = pl.DataFrame({"pair_id": names, "score": scores, "logits": [None] * 24})
    return tokenise_lists(pl.DataFrame(build_lists(pairs, labels)), encoder.tokenise)


def scores_of(encoder: CrossEncoder) -> np.ndarray:
    return torch_scorer(encoder, "cpu", "float32", 512).score(QUERIES, TEXTS)


def without(encoder: CrossEncoder, head: int, units: list[int]) -> CrossEncoder:
    """Silences a head and some units of every layer, whose places they keep."""
    with torch.no_grad():
        for layer in encoder.model.bert.encoder.layer:
            size = layer.attention.self.attention_head_size
            layer.attention.output.dense.weight[:, head * size : (head + 1) * size] = 0.0
            layer.output.dense.weight[:, units] = 0.0
    return encoder


def test_what_is_silent_goes_first_and_nothing_is_lost(tmp_path):
    units = [0, *range(3, 128, 2)]  # 64 of 128
    student = without(tiny_cross_encoder(), head=1, units=units)
    expected, lists = scores_of(student), lists_for(student)
    pruned = prune(student, Prune(heads=0.5, units=0.5), lists, lists.rows, OBJECTIVE)
    shapes = [layer.attention.self.query.weight.shape for layer in pruned.model.bert.encoder.layer]
    assert shapes == [(16, 32), (16, 32)]
    assert [layer.output.dense.in_features for layer in pruned.model.bert.encoder.layer] == [64, 64]
    assert scores_of(pruned) == pytest.approx(expected, abs=1e-5)
    artifact = export_artifact(pruned, tmp_path, {}, ["title"])  # compares what ONNX Runtime gives
    assert scores_of(artifact.encoder()) == pytest.approx(expected, abs=1e-5)
    again = prune(pruned, Prune(units=0.25), lists, lists.rows, OBJECTIVE)
    assert again.model.config.kept_units == [48, 48]
    shallow = from_layers(again, 1, 32)
    assert shallow.model.config.kept_units == [48]
    assert np.isfinite(scores_of(shallow)).all()


def test_importance_is_what_the_loss_feels():
    student = tiny_cross_encoder(layers=1)
    lists = lists_for(student)
    heads, units = importances(student, lists, lists.rows[:1], OBJECTIVE)
    layer = student.model.bert.encoder.layer[0]
    encoded = student.tokenizer(
        [QUERIES[0]] * 4, TEXTS[:4], truncation="longest_first", max_length=32, padding=True, return_tensors="pt"
    )
    teacher, unjudged = torch.tensor(lists.scores_P[:4]).unsqueeze(0), torch.full((1, 4), float("nan"))

    def slope(dense: torch.nn.Linear, columns: slice, step: float) -> float:
        """How the loss changes where what comes in by some columns is multiplied."""
        kept, losses = dense.weight.detach().clone(), []
        for factor in (1 + step, 1 - step):
            with torch.no_grad():
                dense.weight[:, columns] *= factor
                scores = student.model(**encoded).logits.T
                dense.weight.copy_(kept)
            losses.append(OBJECTIVE(scores, unjudged, teacher, torch.ones(1, 4, dtype=torch.bool)).item())
        return (losses[0] - losses[1]) / (2 * step)

    for head in range(2):
        expected = abs(slope(layer.attention.output.dense, slice(head * 16, head * 16 + 16), 0.001))
        assert heads[0][head].item() == pytest.approx(expected, rel=0.02, abs=1e-4)
    for unit in (0, 17, 99):
        expected = abs(slope(layer.output.dense, slice(unit, unit + 1), 0.1))
        assert units[0][unit].item() == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert heads[0].max() > 0.01


def test_one_of_each_stays():
    student = tiny_cross_encoder()
    lists = lists_for(student)
    pruned = prune(student, Prune(heads=0.99, units=0.999), lists, lists.rows, OBJECTIVE)
    assert (pruned.model.config.kept_heads, pruned.model.config.kept_units) == ([1, 1], [1, 1])


def test_what_is_no_bert_is_named():
    student = make_student(Student(family="bi", layers=1), tiny_cross_encoder(), seed=0)
    with pytest.raises(ModelError, match=r"student\.prune: a TowerModel can't be pruned"):
        prune(student, Prune(heads=0.5), lists_for(student), [], OBJECTIVE)
