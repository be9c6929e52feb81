import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from rankstill.errors import ConfigError
from serve import keys as module
from serve.keys import Key, Keys, add_key, hash_of, main, read_keys

HASH = "a" * 64


def test_a_key_is_known_by_its_hash_alone(tmp_path):
    path = tmp_path / "keys.yaml"
    first = add_key(path, "search", ("rank",))
    second = add_key(path, "events", ("feedback",), requests_per_second=5)
    text = path.read_text()
    assert first not in text
    assert hash_of(first) in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = read_keys(str(path))
    assert known.asked_for
    assert [found.name if (found := known.find(one)) else None for one in (first, second)] == ["search", "events"]
    assert [known.find(one) for one in ("", first[:-1], first + "x", hash_of(first))] == [None] * 4


def test_keys_that_are_made_at_the_same_time_are_all_kept(tmp_path):
    path = tmp_path / "keys.yaml"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: add_key(path, f"caller-{number}", ("rank",)), range(16)))
    known = read_keys(str(path))
    assert [found.name if (found := known.find(one)) else None for one in made] == [f"caller-{n}" for n in range(16)]


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path, monkeypatch):
    now = [50.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    path = tmp_path / "keys.yaml"
    first = add_key(path, "first", ("rank",), requests_per_second=0.5)
    known = read_keys(str(path))
    key = known.find(first)
    assert key
    assert known.wait(key) == 0
    second = add_key(path, "second", ("rank",))
    assert known.find(second) is None, "it isn't looked for at each request"
    now[0] += 1
    assert known.find(second)
    assert known.wait(key) > 0, "what it had asked for is remembered"
    path.write_text("keys: [{name: first}]")
    now[0] += 1
    assert known.find(first)
    only = yaml.safe_dump({"keys": [{"name": "second", "sha256": hash_of(second)}]})
    path.write_text(only)
    now[0] += 1
    assert known.find(first) is None, "it was taken out"
    assert known.find(second)
    path.unlink()
    now[0] += 1
    assert known.find(second)
    path.write_text("keys: []")
    now[0] += 1
    assert known.find(second) is None
    assert known.asked_for, "or anyone could come in"


def test_a_key_is_added_to_an_empty_list(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("keys: []")
    made = add_key(path, "first", ("rank",))
    assert read_keys(str(path)).find(made)


def test_roles_are_what_they_say():
    rank, admin = (Key(name="a", sha256="0" * 64, roles=(role,)) for role in ("rank", "admin"))
    assert [rank.may(role) for role in module.ROLES] == [True, False, False]
    assert [admin.may(role) for role in module.ROLES] == [True, True, True]


def test_a_key_may_ask_as_often_as_it_says(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    slow = Key(name="slow", sha256="0" * 64, requests_per_second=2)
    keys = Keys((slow,))
    assert [keys.wait(slow) for _ in range(4)] == [0, 0, 0, 0], "two seconds' worth at once"
    assert keys.wait(slow) == pytest.approx(0.5)
    now[0] += 0.25
    assert keys.wait(slow) == pytest.approx(0.25)
    now[0] += 0.25
    assert keys.wait(slow) == 0
    assert keys.wait(slow) > 0
    now[0] += 1000
    assert [keys.wait(slow) > 0 for _ in range(5)] == [False] * 4 + [True]
    assert Keys(()).wait(Key(name="free", sha256="0" * 64)) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("keys: []", "has no key"),
        ("[]", "no list of keys"),
        ("keys: [{name: a}]", "sha256"),
        ("keys: [{name: a, sha256: short}]", "sha256"),
        (f"keys: [{{name: a, sha256: {HASH}, roles: [root]}}]", "roles"),
        (f"keys: [{{name: a, sha256: {HASH}}}, {{name: a, sha256: {HASH}}}]", "two keys of one name"),
        (f"keys: [{{name: a, sha256: {HASH}, secret: x}}]", "secret"),
        ("keys: !!python/object/apply:os.getcwd []", "no list of keys"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused(tmp_path, text, says):
    path = tmp_path / "keys.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_keys(str(path))


def test_the_command_adds_keys_and_refuses_a_name_twice(tmp_path, monkeypatch, capsys):
    path = tmp_path / "made" / "keys.yaml"
    words = ["serve.keys", "--file", str(path), "--name", "shop", "--role", "rank", "--role", "feedback"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    found = read_keys(str(path)).find(capsys.readouterr().out.strip())
    assert found is not None
    assert found.roles == ("rank", "feedback")
    with pytest.raises(ConfigError, match="'shop' is in"):
        main()
    assert len(yaml.safe_load(path.read_text())["keys"]) == 1


@pytest.mark.parametrize("rate", ["-1", "nan", "inf"])
def test_a_rate_that_is_none_makes_no_key(tmp_path, monkeypatch, rate):
    path = tmp_path / "keys.yaml"
    words = ["serve.keys", "--file", str(path), "--name", "shop", f"--requests-per-second={rate}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ConfigError, match=f"--requests-per-second is {rate}; give"):
        main()
    assert not path.exists()
