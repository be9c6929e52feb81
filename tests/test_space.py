import itertools
import math
import time

import pytest

from rankstill.configfile import load_config
from rankstill.errors import ConfigError
from tune.space import PRESETS, make_space

BASE = {"data": {"shop": {}}}


def space(**settings):
    given = {"preset": "none", **settings}
    return make_space(load_config({**BASE, "sweep": given}))


def first(key, dimension):
    return dimension.values[0]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
def test_presets_are_spaces_whose_every_value_is_a_setting(preset):
    found = space(preset=preset)
    assert set(found.dimensions) == set(PRESETS[preset])
    assert found.config(found.sample(first)).student.layers == 1


def test_given_dimensions_replace_those_of_the_preset_and_null_takes_one_away():
    found = space(
        preset="quick",
        space={"distill.temperature": {"choices": [1, 2]}, "distill.alpha": None, "train.epochs": {"choices": [1]}},
    )
    assert found.dimensions["distill.temperature"].choices == (1, 2)
    assert set(found.dimensions) == {*PRESETS["quick"], "train.epochs"} - {"distill.alpha"}


def test_a_dimension_on_the_command_line_is_named_as_the_setting_is():
    given = ["sweep.space={student.layers: {choices: [1, 2]}}", "sweep.space.train.epochs={choices: [1, 3]}"]
    config = load_config({**BASE, "sweep": {"preset": "none"}}, given)
    assert {name: one.choices for name, one in config.sweep.space.items()} == {
        "student.layers": (1, 2),
        "train.epochs": (1, 3),
    }


def test_settings_that_do_not_matter_are_not_drawn():
    given = {
        "student.vectors": {"choices": [8, 16], "when": {"student.family": "late"}},
        "student.width": {"choices": [32, 64], "when": {"student.family": ["bi", "late"]}},
        "student.layers": {"choices": [1, 2, 3], "when": {"student.init": "teacher"}},
        "student.family": {"choices": ["cross", "bi", "late"]},
    }
    found = space(space=given)
    assert list(found.dimensions)[-2:] == ["student.vectors", "student.width"], "behind what they depend on"
    for family, extra in (("cross", set()), ("bi", {"student.width"}), ("late", {"student.width", "student.vectors"})):
        params = found.sample(lambda key, one: family if key == "student.family" else one.values[-1])  # noqa: B023
        assert set(params) == {"student.family", "student.layers"} | extra
        assert found.config(params).student.family == family
    # 3 layers x (1 cross + 2 bi + 4 late)
    assert found.size == 3 * (1 + 2 + 4)
    given["student.layers"]["when"] = {"student.init": "base"}  # which the config's isn't
    assert space(space=given).size == 1 + 2 + 4


def test_a_range_has_no_size_and_whole_numbers_stay_whole():
    found = space(
        space={"train.epochs": {"low": 1, "high": 3, "whole": True}, "train.dropout": {"low": 0, "high": 0.2}}
    )
    assert found.size == float("inf")
    assert found.dimensions["train.epochs"].values == (1, 3)
    assert found.config({"train.epochs": 2, "train.dropout": 0.1}).train.epochs == 2


def test_every_student_that_may_come_is_named():
    found = space(space={"student.layers": {"choices": [1, 5]}, "student.family": {"choices": ["cross", "bi"]}})
    assert {(one.layers, one.family) for one in found.students().values()} == {
        (1, "cross"),
        (5, "cross"),
        (3, "cross"),
        (3, "bi"),
    }
    assert found.students()["config key 'sweep.space.student.layers' holds 5"].layers == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"'sweep.space' is empty.*name settings to vary"),
        ({"distill.temprature": {"choices": [1]}}, r"'distill.temprature' is no setting; did you mean 'distill.temper"),
        ({"train.epochs": {"choices": [1], "when": {"studnt.init": 1}}}, r"'studnt.init' is no setting; did you mean"),
        ({"distill.alpah": None}, r"'sweep.space.distill.alpah' is null, but preset 'none' varies no such setting"),
        ({"data.test": {"low": 0.1, "high": 0.2}}, r"share data and soft labels; vary student\.\*"),
        ({"train.epochs": {"low": 1, "high": 4}}, r"train\.epochs' holds 3\.12.*valid integer.*; add whole: true"),
        (
            {"train.epochs": {"choices": [1], "when": {"student.family": []}}},
            r"student\.family has no value to wait for",
        ),
        (
            {"train.epochs": {"choices": [1], "when": {"data.test": 0.1}}},
            r"when 'data\.test', which never varies; name",
        ),
        (
            {"distill.temperature": {"low": 1, "high": 2}, "distill.temperature.start": {"choices": [1]}},
            r"'sweep\.space\.distill\.temperature' and its part 'distill\.temperature\.start' both vary",
        ),
        ({"train.epochs": {"choices": [1, "x"]}}, r"space\.train\.epochs' holds 'x'.*valid integer"),
        ({"distill.alpha": {"low": 0.5, "high": 2.0}}, r"distill\.alpha' holds 2\.0.*out of range"),
        (
            {
                "train.epochs": {"choices": [1], "when": {"train.lists": 8}},
                "train.lists": {"choices": [8], "when": {"train.epochs": 1}},
            },
            r"train\.epochs, train\.lists wait for each other",
        ),
    ],
)
def test_a_space_that_can_not_be_searched_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        space(space=given)


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({}, "give either choices, or low and high"),
        ({"choices": [1], "low": 1, "high": 2}, "give either choices"),
        ({"low": 1}, "give both"),
        ({"low": 2, "high": 1}, "low 2 is not below high 1"),
        ({"low": 0, "high": 1, "log": True}, "no logarithm"),
        ({"low": 0.5, "high": 2, "whole": True}, "aren't whole"),
        ({"choices": [1], "log": True}, "drop them beside choices"),
        ({"choice": [1]}, "did you mean"),
    ],
)
def test_a_dimension_spans_something(dimension, message):
    with pytest.raises(ConfigError, match=message):
        space(space={"train.dropout": dimension})


def test_sizes_are_counted_by_hand():
    given = {"train.epochs": {"choices": [1, 2]}, "train.lists": {"choices": [4, 8, 16]}}
    assert space(space=given).size == len(list(itertools.product([1, 2], [4, 8, 16])))


def test_what_is_as_good_as_endless_is_not_counted():
    many = {f"train.{name}": {"choices": list(range(2, 42))} for name in ("epochs", "lists", "seed", "list_size")}
    start = time.monotonic()
    assert space(space=many).size == math.inf
    assert time.monotonic() - start < 60, "and not for 2.5 million"
