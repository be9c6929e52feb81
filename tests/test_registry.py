import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.deploy import main
from rankstill.errors import ConfigError, ModelError
from rankstill.registry import Record, Registry, Version, find_version, is_reference

PATH = str(Path(__file__).parent.parent / "platform")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """One registry for the file, since MLflow takes seconds to start; each test uses a name of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Registry(tmp_path_factory.mktemp("storage"))


@pytest.fixture
def artifact(tmp_path):
    """Makes folders that stand for artifacts."""

    def make(name: str):
        folder = tmp_path / name
        folder.mkdir()
        return folder

    return make


def test_the_first_version_is_champion_and_challenger(registry, artifact):
    folder = artifact("a")
    version = registry.register("first", folder, {"teacher": "f00"})
    assert version == Version("first", 1, folder.resolve(), version.aliases)
    assert sorted(version.aliases) == ["challenger", "champion"]
    assert str(version) == "first/1"


def test_a_later_version_challenges_the_champion(registry, artifact):
    one, two = artifact("one"), artifact("two")
    registry.register("later", one, {})
    assert registry.register("later", two, {}).number == 2
    assert registry.resolve("later@champion", "model").number == 1
    assert registry.resolve("later@challenger", "model").folder == two.resolve()
    assert registry.resolve("later/1", "model").folder == one.resolve()
    assert registry.resolve("later/1", "model").aliases == ("champion",)
    assert registry.resolve("later/2", "model").aliases == ("challenger",)


def test_an_artifact_that_is_registered_again_keeps_its_version(registry, artifact):
    one, two = artifact("one"), artifact("two")
    registry.register("again", one, {})
    registry.register("again", two, {})
    assert registry.register("again", one, {}).number == 1
    assert registry.resolve("again@challenger", "model").number == 1
    with pytest.raises(ModelError):
        registry.resolve("again/3", "model")


def test_the_same_artifact_may_have_two_names(registry, artifact):
    folder = artifact("a")
    registry.register("name-one", folder, {})
    registry.register("name-two", artifact("b"), {})
    assert registry.register("name-two", folder, {}).number == 2


def test_a_second_registry_on_the_same_storage_sees_the_same(registry, artifact, monkeypatch):
    registry.register("shared", artifact("a"), {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    assert Registry(artifact("elsewhere")).resolve("shared@champion", "model").number == 1


@pytest.mark.parametrize("reference", ["nobody@champion", "nobody/1", "known@nothing", "known/9", "known/0", "known/x"])
def test_what_is_not_registered_is_named_with_what_is(registry, artifact, reference):
    registry.register("known", artifact("a"), {})
    with pytest.raises(ModelError) as caught:
        registry.resolve(reference, "serve.model")
    message = str(caught.value)
    assert message.startswith("serve.model: ")
    assert repr(reference) in message
    there = message.rpartition("; ")[2]
    if reference.startswith("known"):
        assert there.startswith("name one of ")
        assert "known@champion, known/" in there
    else:
        assert there.startswith("it has ")
        assert "known" in there
    assert "\n" not in message


def test_a_version_whose_files_are_gone_is_named(registry, artifact):
    folder = artifact("a")
    registry.register("gone", folder, {})
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match=r"model: the files of 'gone@champion' are gone"):
        registry.resolve("gone@champion", "model")


def test_an_artifact_in_a_folder_with_blanks(registry, artifact):
    folder = artifact("my shop #1 %20 größe")
    assert registry.register("blanks", folder, {}).folder == folder.resolve()


def test_looking_for_a_version_leaves_no_empty_registry(registry, artifact, monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelError, match=r"--model: .* has no registry to find 'shop@champion' in"):
        find_version("shop@champion", tmp_path / "nothing", "--model")
    assert not (tmp_path / "nothing").exists()
    registry.register("there", artifact("a"), {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    found = find_version("there@champion", tmp_path, "--model")
    assert found is not None
    assert found.number == 1
    assert find_version(str(tmp_path), tmp_path, "--model") is None


@pytest.mark.parametrize("text", ["shop@champion", "shop/7", "a.b-c_d/12"])
def test_references(text):
    assert is_reference(text)


@pytest.mark.parametrize("text", ["shop", "shop/x", "a/b/7", "/7", "bm25", "cross-encoder/ms-marco", "dir@x/model", ""])
def test_what_is_no_reference(text):
    assert not is_reference(text)


def test_a_promoted_version_can_be_rolled_back(registry, artifact):
    for name in ("one", "two", "three"):
        registry.register("rolled", artifact(name), {})
    with pytest.raises(ModelError, match="had one champion only"):
        registry.previous("rolled", "rollback")
    with pytest.raises(ModelError, match="rollback: no 'unknown@champion' in the registry"):
        registry.previous("unknown", "rollback")
    now, before = registry.promote("rolled@challenger", "--model")
    assert (now.number, before.number) == (3, 1)
    assert "champion" in now.aliases
    assert registry.promote("rolled/3", "--model")[1].number == 3, "nothing to do"
    now, before = registry.promote(str(registry.previous("rolled", "rollback")), "rollback")
    assert (now.number, before.number) == (1, 3)
    assert registry.previous("rolled", "rollback").number == 3, "and back again"
    registry.promote("rolled@previous", "rollback")
    aliases = {version.number: set(version.aliases) for version in registry.versions("rolled")}
    assert aliases == {1: {"previous"}, 2: set(), 3: {"champion", "challenger"}}


def test_what_a_version_came_from_is_a_run_of_mlflow(registry, artifact):
    from mlflow import MlflowClient

    epochs = [{"epoch": 1.0, "ndcg@10": 0.5, "loss": 2.0}, {"epoch": 2.0, "ndcg@10": 0.6, "loss": 1.0}]
    params = {f"distill.{number}": number for number in range(150)}
    version = registry.register("logged", artifact("a"), {}, Record("student", params, epochs, {"data": "d00"}))
    client = MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)
    run = client.get_run(str(client.get_model_version("logged", str(version.number)).run_id))
    assert len(run.data.params) == 150
    assert run.data.params["distill.7"] == "7"
    assert run.data.tags["data"] == "d00"
    history = client.get_metric_history(run.info.run_id, "ndcg_at_10")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.6)]
    assert run.info.status == "FINISHED"


def test_what_was_not_registered_is_a_run_too_and_one_only(registry):
    from mlflow import MlflowClient

    trial = Record("sweep 000-a", {"distill.alpha": 0.5}, [{"epoch": 1.0, "ndcg@10": 0.5}], {"trial": "a"}, "KILLED")
    for _ in range(2):
        registry.record("tried", trial)
    client = MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments() if one.name == "tried"])
    assert (run.info.run_name, run.info.status) == ("sweep 000-a", "KILLED")
    assert run.data.metrics == {"ndcg_at_10": 0.5}
    assert registry.versions("tried") == []


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "sqlite:////proc/none/x.db"])
def test_a_registry_that_can_not_be_reached_is_named(uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=rf"the registry {uri} can't be used \(.+\); .*MLFLOW_TRACKING_URI"):
        Registry(tmp_path)


def test_a_damaged_registry_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "mlflow.db").write_text("garbage " * 200)
    with pytest.raises(ConfigError, match=r"mlflow\.db can't be used \(.*not a database"):
        Registry(tmp_path)


def test_writers_at_the_same_time_lose_nothing_even_the_first(artifact, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folders = [artifact(f"many{number}") for number in range(4)]
    script = (
        "import sys; from pathlib import Path; from rankstill.registry import Registry;"
        " Registry(Path(sys.argv[1])).register('many', Path(sys.argv[2]), {})"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(folder)], env={**os.environ, "PYTHONPATH": PATH}
        )
        for folder in folders
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    found = Registry(tmp_path).versions("many")
    assert [version.number for version in found] == [1, 2, 3, 4]
    assert {version.folder for version in found} == {folder.resolve() for folder in folders}


def test_the_command_promotes_lists_and_rolls_back(registry, artifact, monkeypatch, capsys):
    root = Path(registry.uri.removeprefix("sqlite:///")).parent.parent
    for name in ("x", "y"):
        registry.register("said", artifact(name), {})

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # so that no cluster beside this test is asked

    def deploy(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["jobs.deploy", *words, f"storage.root={root}"])
        main()
        return capsys.readouterr().out

    alone = " (in the registry; no endpoint of it runs)\n"
    assert deploy("--model", "said@challenger") == f"said/2 is champion, in place of said/1{alone}"
    assert deploy("--model", "said/2") == f"said/2 is champion already{alone}"
    assert deploy("rollback", "said") == f"said/1 is champion, in place of said/2{alone}"
    listed = deploy("list", "said").splitlines()
    assert listed[2].split()[:2] == ["said/1", "champion"]
    assert "challenger" in listed[3]
    for words, says in (
        (["promote"], "--model goes with"),
        (["rollback"], "rollback takes a name"),
        (["rollback", "a", "b"], "nothing to do here"),
        (["lineage"], "lineage takes a name"),
        (["--model", "said/1", "list"], "--model goes with"),
        (["x"], "nothing to do here"),
    ):
        with pytest.raises(ConfigError, match=says):
            deploy(*words)
    with pytest.raises(ModelError, match="name one of"):
        deploy("--model", "said/9")
    for words, says in (
        (["--model", "said/2", "--weight", "10"], "no endpoint that serves 'said' runs here"),
        (["drain", "said/2"], "no endpoint that serves 'said' runs here"),
        (["--model", "said/2", "--weight", "100"], "--weight is 100"),
        (["--model", "said/2", "--shadow", "-1"], "--shadow is -1"),
        (["list", "--weight", "5"], "go with --model"),
    ):
        with pytest.raises(ConfigError, match=says):
            deploy(*words)
