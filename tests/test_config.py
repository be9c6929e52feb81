import operator
import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from rankstill.config import EMAIL, PHONE, Labels, Serve
from rankstill.configfile import describe_fields, dump_config, load_config, parse_config
from rankstill.errors import ConfigError

SHIPPED = sorted(Path(__file__).parent.parent.joinpath("jobs", "configs").glob("*.yaml"))
SHOP = {"data": {"shop": {}}}
FILES = {"data": {"sources": [{"path": "a.jsonl"}, {"path": "b.csv"}]}}


def refusal(tree, *overrides) -> str:
    """The message with which a tree is refused; it is always one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(tree, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("pattern", [EMAIL, PHONE])
def test_looking_for_what_is_hidden_takes_no_time_for_long_words(pattern):
    """A search that takes the square of their length takes an hour, and pytest's time limit ends it."""
    for word in ("x", "1", "(", "x@", "+", "x.", "1 (", "(1x"):
        re.search(pattern, word * 300_000)
    assert not re.search(pattern, "x" * 300_000)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("mail ann@example.com", True),
        ("a.b+c@mail.example.org now", True),
        ("@home", False),
        ("3 @ 4.50", False),
        ("drill@", False),
        ("call +31 20 123 4567", True),
        ("2x4 lumber 8 ft", False),
    ],
)
def test_what_is_hidden(text, hidden):
    assert any(re.search(one, text) for one in Serve().hide) == hidden


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_parse_and_say_something(path):
    config = load_config(path)
    assert config.name == yaml.safe_load(path.read_text())["name"]
    assert config.data.shop or config.data.sources


def test_there_are_shipped_configs():
    assert {path.stem for path in SHIPPED} >= {"demo", "shop", "tiny"}


@pytest.mark.parametrize(
    ("override", "bad", "near"),
    [
        ("trian.epochs=1", "trian", "train"),
        ("train.epoch=1", "train.epoch", "train.epochs"),
        ("teacher.train.learnig_rate=1", "teacher.train.learnig_rate", "teacher.train.learning_rate"),
        ("teacher.random.layer=1", "teacher.random.layer", "teacher.random.layers"),
        ("data.shop.itmes=1", "data.shop.itmes", "data.shop.items"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(override, bad, near):
    message = refusal(SHOP, override)
    assert f"{bad!r} is unknown" in message
    assert f"did you mean {near!r}" in message


def test_an_unknown_key_of_a_list_element_is_refused_with_its_position():
    message = refusal(FILES, "data.sources.1.colums={}")
    assert "'data.sources.1.colums'" in message
    assert "'data.sources.1.columns'" in message


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("train.epochs=many", "train.epochs", "'many'"),
        ("train.epochs=0", "train.epochs", "0"),
        ("train.epochs=1.5", "train.epochs", "1.5"),
        ("train.zero_stage=4", "train.zero_stage", "4"),
        ("train.accumulate=9", "train", "accumulate is 9, of a step of 8 lists"),
        ("distill.alpha=1.01", "distill.alpha", "1.01"),
        ("distill.temperature=0", "distill.temperature", "0"),
        ("distill.temperature=warm", "distill.temperature", "{start: NUMBER, end: NUMBER}"),
        ("distill.alpha={start: 1, end: 2}", "distill.alpha", "2 is out of range"),
        ("distill.alpha={start: 1, end: 0, shape: odd}", "distill.alpha.shape", "'odd'"),
        ("teacher.kind=bi", "teacher", "name a ready model"),
        ("teacher.ensemble=[{kind: bi}]", "teacher", "ensemble.0.model is missing"),
        ("train.offload=optimizer", "train", "needs zero_stage 1"),
        ("serve.port=70000", "serve.port", "70000"),
        ("serve.runtime=jax", "serve.runtime", "'jax'"),
        ("storage.root=[a]", "storage.root", "['a']"),
        ("train=3", "train", "3"),
        ("name='has a space'", "name", "'has a space'"),
        ("name=''", "name", "''"),
        ("data.fields=[]", "data.fields", "[]"),
        ("resources.workers=0", "resources", "workers is 0"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_field(override, field, value):
    message = refusal(SHOP, override)
    assert f"{field!r}" in message
    assert value in message


@pytest.mark.parametrize("value", ["many", "1.5", "[1]"])
def test_a_field_that_takes_auto_or_a_number_is_named_as_the_user_wrote_it(value):
    message = refusal(SHOP, f"resources.workers={value}")
    assert "'resources.workers'" in message


@pytest.mark.parametrize("override", ["distill.temperature=.nan", "distill.temperature=.inf", "train.clip=.inf"])
def test_a_number_that_is_not_finite_is_refused(override):
    assert override.partition("=")[0] in refusal(SHOP, override)


def test_what_is_missing_is_named():
    assert "'data.sources.0.path' is missing" in refusal({"data": {"sources": [{}]}})
    assert "'data' is missing" in refusal({})


def test_a_number_is_a_schedule_that_stays():
    shape = {"temperature": {"start": 4, "end": 2}}
    for alpha in (0.3, "3e-1"):  # as YAML reads it
        distill = parse_config({**SHOP, "distill": {"alpha": alpha, **shape}}).distill
        assert [distill.alpha.at(share) for share in (0.0, 1.0)] == [0.3, 0.3]
    assert [distill.temperature.at(share) for share in (0.0, 0.5, 1.0)] == [4, 3, 2]


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"teacher": {"model": "m", "kind": "bi"}}, "student.init is 'teacher', but teacher.kind is 'bi'"),
        ({"student": {"family": "late"}, "distill": {"features": {"angle": 1}}}, "student.family is 'late'"),
        ({"student": {"init": "base"}, "teacher": {"base": "random"}}, "teacher.base is 'random'"),
        ({"teacher": {"base": "random", "ensemble": [{"model": "base"}]}}, "name a pretrained base"),
    ],
)
def test_what_does_not_go_together_is_refused(tree, reason):
    assert reason in refusal({**SHOP, **tree})


def test_rules_across_fields_name_both_values():
    message = refusal(SHOP, "student.random={width: 30, heads: 4}")
    assert "student.random" in message
    assert "width 30" in message
    assert "heads 4" in message
    assert "test + valid is 1.2" in refusal(SHOP, "data.test=0.7", "data.valid=0.5")


@pytest.mark.parametrize("data", [{}, {"shop": {}, "sources": [{"path": "a.jsonl"}]}, {"sources": []}])
def test_data_come_from_files_or_from_a_shop_and_not_both_or_neither(data):
    message = refusal({"data": data})
    assert "'data'" in message
    assert "not both or neither" in message


def test_overrides_start_lists_and_append_to_them():
    config = load_config(FILES, ["data.items.0.path=i.csv", "data.items.0.name=own", "data.sources.2.path=d.csv"])
    assert [(item.path, item.name) for item in config.data.items] == [("i.csv", "own")]
    assert [source.path for source in config.data.sources] == ["a.jsonl", "b.csv", "d.csv"]


@pytest.mark.parametrize("override", ["storage.root=~nobody-of-that-name/x", "train.seed=99999999999999999999"])
def test_values_that_only_the_work_would_trip_over_are_refused(override):
    assert override.partition("=")[0] in refusal(SHOP, override)


def test_overrides_reach_every_depth_and_later_ones_win():
    config = load_config(
        FILES,
        [
            "name=other",
            "train.epochs=7",
            "train.epochs=9",
            "teacher.train.learning_rate=1e-3",
            "data.sources.1.path=c.tsv",
            "data.sources.0.columns.title=product_name",
            "data.fields=[title, colour]",
            "student.random={layers: 1, width: 16}",
            "resources.actors=3",
        ],
    )
    assert config.name == "other"
    assert config.train.epochs == 9
    assert config.teacher.train.learning_rate == 1e-3
    assert [source.path for source in config.data.sources] == ["a.jsonl", "c.tsv"]
    assert config.data.sources[0].columns == {"title": "product_name"}
    assert config.data.fields == ("title", "colour")
    assert (config.student.random.layers, config.student.random.width) == (1, 16)
    assert config.resources.actors == 3
    assert FILES["data"]["sources"][1]["path"] == "b.csv", "the tree that was given stays as it was"


def test_an_override_may_hold_equals_signs_and_null():
    config = load_config(SHOP, ["data.shop=null", "data.sources=[{path: 's3://b/k?x=1'}]"])
    assert config.data.sources[0].path == "s3://b/k?x=1"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.epochs", "dotted.key=value"),
        ("=3", "dotted.key=value"),
        ("name=[1", "not valid YAML"),
        ("name=2020-13-45", "not valid YAML"),
        ("data.sources.5.path=x", "no position in a list of 2"),
        ("data.sources.first.path=x", "no position in a list of 2"),
        ("data.sources.-1.path=x", "no position in a list of 2"),
        ("data.sources.0.path.deeper=x", "has no parts"),
    ],
)
def test_a_malformed_override_is_named(override, part):
    message = refusal(FILES, override)
    assert part in message
    assert override.partition("=")[0] in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"data: [1", "not valid YAML"),
        (b"name: 2020-13-45", "not valid YAML"),
        (b"\xff\xfe\xfa", "not valid YAML"),
        (b"name: a\ntrain: {epochs: 1, seed: 2, epochs: 3}", "the key 'epochs' is given twice"),
        (b"data: {sources: [{path: a, path: b}]}", "the key 'path' is given twice at line 1, column 28"),
        (b"- 1\n- 2\n", "holds no mapping"),
        (b"", "holds no mapping"),
    ],
)
def test_a_file_that_holds_no_config_is_named(tmp_path, content, part):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert part in message
    assert str(path) in message


def test_a_file_that_names_itself_is_refused_like_any_other(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("data: &a {shop: *a}")
    assert "data.shop" in refusal(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.yaml")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize("tree", [SHOP, FILES])
def test_what_is_dumped_loads_to_the_same_config(tmp_path, tree):
    config = load_config(tree, ["train.seed=4", "storage.root=/tmp/größe"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_the_tree_is_frozen():
    config = parse_config(SHOP)
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.train = config.teacher.train


def test_every_setting_is_described_once():
    described = list(describe_fields())
    keys = [key for key, _, _ in described]
    assert len(keys) == len(set(keys))
    assert [key for key, _, meaning in described if len(meaning) < 10] == []
    assert {"name", "data.sources.0.path", "data.shop.items", "teacher.train.epochs", "serve.port"} <= set(keys)
    assert ("train.patience", "2") in [(key, default) for key, default, _ in described]


def test_a_described_default_is_the_one_that_holds():
    config = parse_config(SHOP)
    described = {
        key: default for key, default, _ in describe_fields() if not key.startswith("data.") and ".0." not in key
    }
    assert described == {key: repr(operator.attrgetter(key)(config)) for key in described}


def test_replicas_do_not_grow_to_fewer():
    with pytest.raises(ValueError, match="max_replicas is 2, fewer than the 3 replicas; give 3 or more, or 0"):
        Serve(replicas=3, max_replicas=2)


def test_batches_are_larger_on_gpus_unless_the_config_says():
    assert Labels().budget("cuda:0") > Labels().budget("cpu")
    assert Labels(token_budget=100).budget("cuda") == Labels(token_budget=100).budget("cpu") == 100
    with pytest.raises(ValueError, match="token_budget is 63; give 64 or more, or auto"):
        Labels(token_budget=63)


@pytest.mark.parametrize(
    ("settings", "device", "actors", "part"),
    [
        ({}, "cpu", 1, 4096),
        ({}, "cpu", 2, 2048),
        ({}, "cpu", 64, 2048),
        ({}, "cuda", 4, 32_768),
        ({"block": 300}, "cpu", 2, 300),
        ({"block": 300, "token_budget": 100}, "cpu", 2, 150),
    ],
)
def test_actors_share_the_pairs_in_work(settings, device, actors, part):
    assert Labels(**settings).part(device, actors) == part
