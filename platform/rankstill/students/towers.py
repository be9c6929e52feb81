"""Students with two towers, around an encoder of a teacher, of a folder, or at random."""

import numpy as np
import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rankstill.bi_encoder import TOKEN_BUDGET, load_bi_encoder
from rankstill.cross_encoder import CrossEncoder, load_cross_encoder
from rankstill.encoders import find_encoder, random_model
from rankstill.errors import ConfigError
from rankstill.model_config import Student
from rankstill.scoring import torch_scorer
from rankstill.students.cross import take_layers
from rankstill.towers import TowerConfig, TowerModel, is_tower


def make_towers(config: Student, teacher: CrossEncoder | None) -> CrossEncoder:
    """An untrained two-tower student around an encoder from `config.init`, as a sentence encoder where that is one.

    Raises:
        ConfigError: more layers than the encoder has, or a tokenizer that doesn't tell query and item apart.
    """
    if continues_towers(config):
        return _continued(config)
    encoder, tokenizer = _encoder_of(config, teacher)
    cls_id = tokenizer.cls_token_id
    tower = TowerConfig(
        config.family,
        {name: value for name, value in encoder.config.to_dict().items() if name != "_name_or_path"},
        config.vectors if config.family == "late" else 1,
        config.width,
        cls_id if isinstance(cls_id, int) else 0,
    )
    model = TowerModel(tower)
    weights = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler.")}
    model.encoder.load_state_dict(weights)
    longest = min(config.max_length, getattr(encoder.config, "max_position_embeddings", 1 << 30))
    student = CrossEncoder(model, tokenizer, longest)
    if not student.tokenise(["query"], ["item"]).segment_ids[0].any():
        raise ConfigError(
            f"student.init {config.init!r}: its tokenizer doesn't tell query and item apart; take one that gives"
            " token_type_ids, such as BERT's, or family cross"
        )
    return student


def continues_towers(config: Student) -> bool:
    """Whether the student starts from towers that were trained before. Raises ModelError where that is no model."""
    return config.init not in ("teacher", "random") and is_tower(find_encoder(config.init, "student.init"))


def match_scale(student: CrossEncoder, pairs: pl.DataFrame) -> None:
    """Give untrained towers the scale and the offset that bring their cosines closest to the teacher's scores.

    They change little in training, where each step moves a weight by no more than the learning rate: the encoder would
    have to bend until its cosines spread as the teacher's scores do, and forget what it knew of other texts. `pairs`
    has the columns query, text and score, which may be null.
    """
    pairs = pairs.drop_nulls("score")
    model = student.model
    assert isinstance(model, TowerModel)
    scorer = torch_scorer(student, "cpu", "float32", TOKEN_BUDGET)
    logits_B = scorer.score(pairs["query"].to_list(), pairs["text"].to_list())
    cosines_B = (logits_B - model.offset.item()) / model.scale.item()
    if pairs.height < 2 or np.ptp(cosines_B) == 0:
        return
    scale, offset = np.polyfit(cosines_B, pairs["score"].to_numpy(), 1)
    if scale > 0:
        model.scale.data.fill_(scale)
        model.offset.data.fill_(offset)


def _continued(config: Student) -> CrossEncoder:
    """A two-tower student that was trained before, as it is.

    Raises:
        ConfigError: one of another shape.
    """
    student = load_cross_encoder(config.init, "student.init", config.max_length)
    assert isinstance(student.model, TowerModel)
    shape = student.model.config
    wanted = {"family": config.family, "width": config.width}
    if config.family == "late":
        wanted["vectors"] = config.vectors
    for name, value in wanted.items():
        if (found := getattr(shape, name)) != value:
            raise ConfigError(f"student.init {config.init!r} has {name} {found}; set student.{name}={found}")
    return student


def _encoder_of(config: Student, teacher: CrossEncoder | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    if config.init not in ("teacher", "random"):
        loaded = load_bi_encoder(config.init, "student.init")
        return take_layers(loaded.model, min(config.layers, loaded.model.config.num_hidden_layers)), loaded.tokenizer
    assert teacher is not None
    if config.init == "teacher":
        return take_layers(_encoder_in(teacher.model), config.layers), teacher.tokenizer
    return _encoder_in(random_model(config.random, len(teacher.tokenizer), config.max_length)), teacher.tokenizer


def _encoder_in(model: PreTrainedModel) -> PreTrainedModel:
    """A classifier without its head."""
    encoder = model.base_model
    assert isinstance(encoder, PreTrainedModel)
    return encoder
