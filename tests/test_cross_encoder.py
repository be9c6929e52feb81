import shutil
import struct

import numpy as np
import orjson
import polars as pl
import pytest
import torch
from builders import made_up_pairs, tiny_cross_encoder
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as PeerCrossEncoder

from rankstill import cross_encoder
from rankstill.cross_encoder import collate, load_cross_encoder, model_inputs, tokenise_pairs
from rankstill.errors import ModelError
from rankstill.rankers import load_ranker
from rankstill.scoring import torch_scorer
from rankstill.students.cross import from_layers


@pytest.fixture(scope="module")
def encoder():
    return tiny_cross_encoder()


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    """A whole model folder; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("model") / "whole"
    encoder.save(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def refusal(folder, **options) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        load_cross_encoder(folder, "teacher.model", **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("teacher.model: ")
    assert repr(str(folder)) in str(caught.value)
    return str(caught.value)


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


def scores(encoder) -> np.ndarray:
    return torch_scorer(encoder, "cpu", "float32", 256).score(*made_up_pairs(20))


def test_what_is_saved_loads_to_the_same_scores(encoder, saved):
    loaded = load_cross_encoder(saved, "model")
    np.testing.assert_array_equal(scores(loaded), scores(encoder))
    assert loaded.max_length == 32
    assert loaded.parameters == sum(tensor.size for tensor in load_numpy(saved / "model.safetensors").values())


def test_only_safetensors_are_written(saved):
    names = {path.name for path in saved.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_a_shorter_length_holds_and_a_longer_one_is_cut_to_what_the_model_takes(saved):
    assert load_cross_encoder(saved, "model", 16).max_length == 16
    assert load_cross_encoder(saved, "model", 4096).max_length == 32


def test_a_loaded_model_does_not_drop_out(saved):
    assert not load_cross_encoder(saved, "model").model.training


def test_a_folder_that_is_not_there(tmp_path):
    assert "no model folder" in refusal(tmp_path / "absent")


def test_a_folder_without_config(copied):
    (copied / "config.json").unlink()
    assert "no config.json" in refusal(copied)


def test_a_folder_without_weights(copied):
    (copied / "model.safetensors").unlink()
    assert "no weights" in refusal(copied)


def test_weights_that_are_pickled_are_never_opened(copied):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    assert "safetensors" in refusal(copied)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: struct.pack("<Q", 20) + b"{not a json header}!" + data[28:],
    ],
    ids=["cut", "empty", "overwritten", "header"],
)
def test_damaged_weights(copied, damage):
    path = copied / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "can't be loaded" in refusal(copied)


def test_a_damaged_config(copied):
    (copied / "config.json").write_text("{not json")
    assert "can't be loaded" in refusal(copied)


def test_a_config_of_an_unknown_kind_of_model(copied):
    edit_config(copied, model_type="no-such-model")
    assert "can't be loaded" in refusal(copied)


def test_a_folder_without_a_tokenizer(copied):
    for path in copied.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(copied)


def test_a_damaged_tokenizer(copied):
    (copied / "tokenizer.json").write_text("{not json")
    assert "can't be loaded" in refusal(copied)


def test_a_model_with_code_of_its_own_is_refused_without_running_it(copied):
    (copied / "code.py").write_text("raise SystemExit('ran')")
    edit_config(
        copied, model_type="own", auto_map={"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M"}
    )
    assert "can't be loaded" in refusal(copied)


def test_a_model_of_two_classes_scores_by_their_difference(copied):
    weights = load_file(copied / "model.safetensors")
    one = torch_scorer(load_cross_encoder(copied, "test"), "cpu", "float32", 512).score(["drill"], ["lamp"])
    weights["classifier.weight"] = torch.cat([torch.zeros(1, 32), weights["classifier.weight"]])
    weights["classifier.bias"] = torch.cat([torch.zeros(1), weights["classifier.bias"]])
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    edit_config(copied, id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    two = load_cross_encoder(copied, "test")
    assert torch_scorer(two, "cpu", "float32", 512).score(["drill"], ["lamp"]) == pytest.approx(one, abs=1e-5)
    assert from_layers(two, 1, 32).model.config.num_labels == 1, "a student scores"
    assert load_cross_encoder(copied, "test", fresh_head=True).model.config.num_labels == 1, "one to fine-tune scores"


def without(folder, prefix: str) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if not key.startswith(prefix)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_encoder_without_a_head_is_no_cross_encoder_but_may_get_a_fresh_one(encoder, copied):
    without(copied, "classifier")
    assert "classifier" in refusal(copied)
    torch.manual_seed(0)
    first = load_cross_encoder(copied, "teacher.base", fresh_head=True)
    torch.manual_seed(1)
    second = load_cross_encoder(copied, "teacher.base", fresh_head=True)
    assert first.model.classifier.weight.shape == (1, 32)
    assert not torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    key = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(first.model.state_dict()[key], encoder.model.state_dict()[key])


def test_a_model_that_lacks_a_layer_is_refused_even_with_a_fresh_head(copied):
    without(copied, "bert.encoder.layer.1.")
    assert "bert.encoder.layer.1." in refusal(copied)
    assert "bert.encoder.layer.1." in refusal(copied, fresh_head=True)


def test_weights_of_another_shape_are_refused(copied):
    edit_config(copied, intermediate_size=64)
    assert "can't be loaded" in refusal(copied)


def test_tokens_have_segments_and_special_ones(encoder):
    pairs = encoder.tokenise(["lamp"], ["red chair"])
    assert encoder.tokenizer.convert_ids_to_tokens(pairs.input_ids[0]) == [
        "[CLS]",
        "lamp",
        "[SEP]",
        "red",
        "chair",
        "[SEP]",
    ]
    assert pairs.segment_ids[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_rows_are_padded_to_the_longest_of_them(encoder):
    pairs = tokenise_pairs(encoder.tokenizer, ["lamp"] * 3, ["", "red chair", "red chair " * 9], 32)
    batch = collate(pairs, [1, 0], encoder.pad_id)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0]]
    assert batch["input_ids"][0].tolist() == pairs.input_ids[1].tolist()
    assert batch["input_ids"][1].tolist() == [*pairs.input_ids[0].tolist(), encoder.pad_id, encoder.pad_id]


def test_a_model_without_segments_gets_none():
    encoder = tiny_cross_encoder()
    batch = collate(encoder.tokenise(["lamp"], ["chair"]), [0], encoder.pad_id)
    assert set(model_inputs(encoder.model, batch)) == {"input_ids", "token_type_ids", "attention_mask"}
    encoder.model.config.type_vocab_size = 1
    assert set(model_inputs(encoder.model, batch)) == {"input_ids", "attention_mask"}


def test_pairs_are_tokenised_in_chunks_that_nobody_notices(monkeypatch):
    encoder = tiny_cross_encoder()
    queries, texts = made_up_pairs(20)
    whole = encoder.tokenise(queries, texts)
    monkeypatch.setattr(cross_encoder, "TOKENISER_PAIRS", 7)
    chunked = encoder.tokenise(queries, texts)
    assert [ids.tolist() for ids in chunked.input_ids] == [ids.tolist() for ids in whole.input_ids]
    assert [ids.tolist() for ids in chunked.segment_ids] == [ids.tolist() for ids in whole.segment_ids]
    assert chunked.truncated.tolist() == whole.truncated.tolist()
    assert 0 < whole.truncated.sum() < 20


def test_a_cross_encoder_of_sentence_transformers_is_taken_for_one(tmp_path):
    tiny_cross_encoder(max_length=64).save(tmp_path / "ours")
    peer = PeerCrossEncoder(str(tmp_path / "ours"), num_labels=1, device="cpu")
    peer.save_pretrained(str(tmp_path / "theirs"))
    pairs = pl.DataFrame({"query": ["red drill", "lamp"], "text": ["steel drill red", "chair"]})
    expected = peer.predict(pairs.rows(), activation_fn=torch.nn.Identity(), show_progress_bar=False)
    found = load_ranker(str(tmp_path / "theirs"), "test", tmp_path).score(pairs)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
