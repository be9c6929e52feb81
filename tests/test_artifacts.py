import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from builders import made_up_pairs, tiny_cross_encoder
from onnx.numpy_helper import to_array
from scipy.stats import spearmanr

from rankstill import runtimes
from rankstill.artifacts import is_artifact, load_artifact
from rankstill.calibration import Calibration
from rankstill.compression import quantise_artifact
from rankstill.errors import ModelError
from rankstill.exporting import export_artifact
from rankstill.rankers import load_ranker
from rankstill.runtimes import has_vnni, with_signed_weights

MADE_FROM = {"teacher": "f00", "metrics": {"ndcg@10": 0.5}}


@pytest.fixture(scope="module")
def student():
    return tiny_cross_encoder()


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    """One export for the whole file; tests that change it work on copies."""
    folder = tmp_path_factory.mktemp("export") / "artifact"
    folder.mkdir()
    return export_artifact(student, folder, MADE_FROM, ["title", "brand"], Calibration(2.0, -0.5, 0.2, 0.1))


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported.folder, tmp_path / "copy")


def refusal(folder) -> str:
    """The one line with which an artifact is refused."""
    with pytest.raises(ModelError) as caught:
        load_artifact(folder, "serve.model")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("serve.model: ")
    assert str(folder) in str(caught.value)
    return str(caught.value)


def edit_manifest(folder, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_whoever_may_read_the_manifest_may_read_every_file(exported):
    assert len({path.stat().st_mode for path in exported.folder.iterdir()}) == 1


def test_what_is_exported_loads(exported):
    loaded = load_artifact(exported.folder)
    assert loaded == exported
    assert loaded.fields == ["title", "brand"]
    assert loaded.manifest["made_from"] == MADE_FROM
    assert loaded.manifest["max_length"] == loaded.encoder().max_length == 32
    assert loaded.manifest["parameters"] == loaded.encoder().parameters
    assert is_artifact(exported.folder)
    assert not is_artifact(exported.folder.parent)


def test_the_manifest_names_every_file_with_its_size(exported):
    on_disk = {path.name: path.stat().st_size for path in exported.folder.iterdir() if path.name != "manifest.json"}
    assert {name: entry["bytes"] for name, entry in exported.manifest["files"].items()} == on_disk
    assert {"model.safetensors", "model.onnx", "config.json", "tokenizer.json"} <= set(on_disk)


def test_all_runtimes_score_as_the_student_did(student, exported):
    queries, texts = made_up_pairs(50)
    runtimes = ("torch", "onnx", "openvino", "auto")
    found = {runtime: exported.scorer(runtime, token_budget=300).score(queries, texts) for runtime in runtimes}
    assert found["torch"].std() > 0.1
    for runtime in runtimes:
        np.testing.assert_allclose(found[runtime], found["torch"], atol=1e-4)
    for query, text, score in zip(queries[:5], texts[:5], found["torch"][:5], strict=True):
        inputs = student.tokenizer(query, text, truncation="longest_first", max_length=32, return_tensors="pt")
        assert student.model(**inputs).logits.item() == pytest.approx(score, abs=1e-5)


def test_a_runtime_is_chosen_that_has_the_student(exported, tmp_path):
    small = quantise_artifact(exported, tmp_path)
    late = replace(exported, manifest={**exported.manifest, "family": "late"})
    wanted = ("auto", "torch", "onnx")
    assert [exported.resolve(one) for one in wanted] == ["openvino", "torch", "onnx"]
    assert [late.resolve(one) for one in wanted] == ["torch", "torch", "onnx"]
    assert [small.resolve(one) for one in (*wanted, "openvino")] == ["onnx"] * 4
    assert small.model_file("torch").name == "model.onnx"
    with pytest.raises(ModelError, match=r"serve\.runtime: OpenVINO doesn't run students of family late"):
        late.resolve("openvino")


@pytest.mark.parametrize("pairs", [1, 2, 7])
@pytest.mark.parametrize("words", [0, 1, 60])
def test_onnx_takes_any_batch_and_any_length(exported, pairs, words):
    queries, texts = ["drill"] * pairs, ["steel " * words] * pairs
    expected, found = (exported.scorer(runtime).score(queries, texts) for runtime in ("torch", "onnx"))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "config.json", "tokenizer.json"])
def test_one_flipped_bit_is_found(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    message = refusal(copied)
    assert name in message
    assert "sha256" in message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    assert f"lacks {name!r}" in refusal(copied)


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".hidden", "added_tokens.json"])
def test_an_extra_file_is_named(copied, name):
    (copied / name).write_text("x")
    assert f"holds {name!r}" in refusal(copied)


def test_an_extra_folder_is_named(copied):
    (copied / "more").mkdir()
    assert "holds 'more'" in refusal(copied)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", ".", "", "sub/../config.json"])
def test_a_manifest_can_not_point_outside_its_folder(copied, name):
    (copied.parent / "outside").write_text("x")
    edit_manifest(copied, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    assert f"lacks {name!r}" in refusal(copied)


def test_an_unknown_format_is_named(copied):
    edit_manifest(copied, lambda manifest: manifest.update(format=99))
    assert "format 99" in refusal(copied)


@pytest.mark.parametrize("content", ["", "[]", "3", "{not json", '{"files": {}}', '{"format": 1, "files": [1]}'])
def test_an_unreadable_manifest_is_named(copied, content):
    (copied / "manifest.json").write_text(content)
    assert "manifest.json" in refusal(copied)


@pytest.mark.parametrize("key", ["files", "format", "max_length", "fields"])
def test_a_manifest_without_what_serving_needs_is_named(copied, key):
    edit_manifest(copied, lambda manifest: manifest.pop(key))
    assert "manifest.json" in refusal(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "tokenizer.json"])
def test_a_manifest_that_does_not_vouch_for_the_model_is_refused(copied, name):
    (copied / name).unlink()
    edit_manifest(copied, lambda manifest: manifest["files"].pop(name))
    assert name in refusal(copied)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), "2", None])
def test_a_calibration_that_turns_the_order_around_is_refused(copied, scale):
    edit_manifest(copied, lambda manifest: manifest["calibration"].update(scale=scale))
    assert "lacks 'a whole max_length, fields or calibration'" in refusal(copied)


def test_a_calibration_that_would_turn_the_order_around_is_left_out(student, tmp_path):
    artifact = export_artifact(student, tmp_path, {}, ["title"], Calibration(-1.0, 0.0, 0.2, 0.1))
    assert artifact.calibration == (1.0, 0.0)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert "manifest.json" in refusal(tmp_path / "absent")


def test_signed_weights_give_the_same_products(exported, tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    small = quantise_artifact(exported, tmp_path / "small")
    path = small.folder / "model.onnx"
    before, after = (
        {entry.name: to_array(entry).astype(int) for entry in model.graph.initializer if entry.data_type in (2, 3)}
        for model in (onnx.load(path), onnx.load_from_string(with_signed_weights(path)))
    )
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert len(moved) >= 10
    for name in moved:
        assert np.array_equal(before[name] - 128, after[name])
    assert with_signed_weights(exported.folder / "model.onnx") == str(exported.folder / "model.onnx")
    if has_vnni():
        signed = small.scorer().score(*made_up_pairs(60))
        monkeypatch.setattr(runtimes, "has_vnni", lambda: False)
        assert np.array_equal(signed, small.scorer().score(*made_up_pairs(60)))


def test_an_int8_artifact_scores_nearly_the_same_and_is_smaller(exported, tmp_path):
    (tmp_path / "small").mkdir()
    small = load_artifact(quantise_artifact(exported, tmp_path / "small").folder)
    ours, theirs = (one.scorer("onnx").score(*made_up_pairs(60)) for one in (small, exported))
    assert spearmanr(ours, theirs).statistic > 0.99
    assert not np.array_equal(ours, theirs)
    assert np.array_equal(small.scorer("torch").score(*made_up_pairs(60)), ours), "it runs in ONNX Runtime only"
    sizes = [(one.folder / "model.onnx").stat().st_size for one in (small, exported)]
    assert sizes[0] < 0.7 * sizes[1]
    kinds = {one.data_type for one in onnx.load(small.folder / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 not in kinds, "products with signed weights saturate without VNNI"
    assert onnx.TensorProto.UINT8 in kinds
    assert not (small.folder / "model.safetensors").exists()
    assert small.precision == "int8"
    assert small.calibration == exported.calibration == (2.0, -0.5)
    assert small.manifest["made_from"]["teacher"] == "f00"
    weights = exported.manifest["files"]["model.safetensors"]["sha256"]
    assert small.manifest["made_from"]["compressed"] == {"method": "int8", "weights": weights}
    assert load_ranker(str(small.folder), "test", tmp_path).bytes == sizes[0]
    with pytest.raises(ModelError, match="is int8, which torch doesn't run"):
        small.encoder()
