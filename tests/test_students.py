from pathlib import Path

import pytest
import torch
from builders import made_up_pairs, tiny_cross_encoder
from pydantic import ValidationError

from rankstill.configfile import load_config
from rankstill.cross_encoder import load_cross_encoder
from rankstill.errors import ConfigError, ModelError
from rankstill.exporting import export_artifact
from rankstill.model_config import RandomModel, Student
from rankstill.scoring import torch_scorer
from rankstill.steps.train import resolved_student
from rankstill.students import make_student
from rankstill.students.cross import from_layers, pick_layers

TINY = Path(__file__).parent.parent / "jobs" / "configs" / "tiny.yaml"


@pytest.fixture(scope="module")
def teacher():
    return tiny_cross_encoder(layers=5)


@pytest.mark.parametrize(
    ("depth", "count", "layers"),
    [
        (6, 1, [0]),
        (6, 2, [0, 5]),
        (6, 3, [0, 3, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (12, 4, [0, 4, 7, 11]),
        (5, 3, [0, 2, 4]),
        (1, 1, [0]),
    ],
)
def test_layers_are_evenly_spaced(depth, count, layers):
    assert pick_layers(depth, count) == layers


def test_picked_layers_rise_from_the_first_to_the_last_whatever_the_depth():
    for depth in range(1, 40):
        for count in range(2, depth + 1):
            layers = pick_layers(depth, count)
            assert len(layers) == count
            assert sorted(set(layers)) == layers
            assert (layers[0], layers[-1]) == (0, depth - 1)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_a_students_layers_are_copies_of_the_teachers(teacher, layers):
    student = from_layers(teacher, layers, 16)
    ours, theirs = student.model.state_dict(), teacher.model.state_dict()
    taken = pick_layers(5, layers)
    assert student.model.config.num_hidden_layers == len(student.model.bert.encoder.layer) == layers
    for key, tensor in ours.items():
        head, mark, rest = key.partition("encoder.layer.")
        if mark:
            number, _, part = rest.partition(".")
            key = f"{head}{mark}{taken[int(number)]}.{part}"
        assert torch.equal(tensor, theirs[key]), key
        assert tensor.data_ptr() != theirs[key].data_ptr(), "a copy, so that training leaves the teacher alone"
    assert student.max_length == 16
    assert teacher.model.config.num_hidden_layers == 5


def test_a_student_of_all_layers_scores_as_its_teacher(teacher):
    student = from_layers(teacher, 5, 32)
    inputs = teacher.tokenizer(["red chair"], ["steel lamp"], return_tensors="pt")
    with torch.inference_mode():
        expected, found = teacher.model.eval()(**inputs).logits, student.model.eval()(**inputs).logits
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_student_is_no_longer_sighted_than_its_teacher(teacher):
    assert from_layers(teacher, 2, 500).max_length == 32


def test_more_layers_than_the_teacher_has(teacher):
    with pytest.raises(ConfigError, match=r"student\.layers is 6 but the teacher has 5"):
        from_layers(teacher, 6, 32)


def test_a_teacher_whose_layers_can_not_be_told_apart():
    odd = tiny_cross_encoder()
    odd.model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"student\.init"):
        from_layers(odd, 2, 32)


def test_layers_are_found_where_another_list_has_their_number():
    # two heads or two anything must not be taken for two layers
    assert from_layers(tiny_cross_encoder(layers=2), 1, 32).model.config.num_hidden_layers == 1


def test_a_random_student_is_decided_by_its_seed(teacher):
    config = Student(init="random", random=RandomModel(layers=1, width=16, heads=2), max_length=24)
    first, again, other = (make_student(config, teacher, seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    student = make_student(config, teacher, 1)
    assert (student.model.config.num_hidden_layers, student.model.config.hidden_size) == (1, 16)
    assert student.model.config.vocab_size == len(teacher.tokenizer)
    assert student.max_length == 24


def test_a_student_from_a_folder_has_that_folders_weights_and_tokenizer(teacher, tmp_path):
    pretrained = tiny_cross_encoder(seed=5, layers=1)
    pretrained.save(tmp_path)
    student = make_student(Student(init=str(tmp_path), max_length=20), teacher, 0)
    key = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(student.model.state_dict()[key], pretrained.model.state_dict()[key])
    assert student.tokenizer.get_vocab() == load_cross_encoder(tmp_path, "x").tokenizer.get_vocab()
    assert student.max_length == 20


def test_a_student_takes_layers_of_the_base_and_all_of_a_folder(tmp_path):
    base = tiny_cross_encoder(seed=5, layers=4)
    base.save(tmp_path)
    config = load_config(TINY, [f"teacher.base={tmp_path}", "student.init=base", "student.layers=2"])
    student = make_student(resolved_student(config), None, 0)
    ours, theirs = student.model.state_dict(), base.model.state_dict()
    assert student.model.config.num_hidden_layers == 2
    for new, old in ((0, 0), (1, 3)):
        key = "bert.encoder.layer.{}.output.dense.weight"
        assert torch.equal(ours[key.format(new)], theirs[key.format(old)])
    named = config.student.model_copy(update={"init": str(tmp_path)})
    assert make_student(resolved_student(config, named), None, 0).model.config.num_hidden_layers == 4


def test_a_folder_that_is_not_there_is_named_with_its_setting(teacher, tmp_path):
    with pytest.raises(ModelError, match=r"^student\.init: "):
        make_student(Student(init=str(tmp_path / "absent")), teacher, 0)


def test_the_teachers_student_takes_its_layers(teacher):
    assert (
        make_student(Student(init="teacher", layers=2, max_length=32), teacher, 0).model.config.num_hidden_layers == 2
    )


def test_a_second_head_leaves_the_score_as_it_is(teacher, tmp_path):
    plain = make_student(Student(layers=2), teacher, seed=0)
    graded = make_student(Student(layers=2, grades=4), teacher, seed=0)
    assert (plain.grades, graded.grades) == (0, 4)
    export_artifact(graded, tmp_path, {}, ["title"])  # compares what ONNX Runtime gives
    loaded = load_cross_encoder(tmp_path, "test")
    assert loaded.grades == 4
    queries, texts = made_up_pairs(9)
    expected = torch_scorer(plain, "cpu", "float32", 512).score(queries, texts)
    assert torch_scorer(loaded, "cpu", "float32", 512).score(queries, texts) == pytest.approx(expected, abs=1e-5)
    logits = torch_scorer(loaded, "cpu", "float32", 512, grades=True).score(queries, texts)
    assert logits.shape == (9, 4)
    assert logits.std() > 0


@pytest.mark.parametrize("settings", [{"grades": 1}, {"grades": 3, "family": "late"}])
def test_grades_that_can_not_be(settings):
    with pytest.raises(ValidationError, match=r"give 2 or more, of family cross, or 0"):
        Student(**settings)
