"""Students with two towers, around an encoder of a teacher, of a folder, or at random."""

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rankstill.bi_encoder import load_bi_encoder
from rankstill.cross_encoder import CrossEncoder, load_cross_encoder
from rankstill.encoders import find_encoder, random_model
from rankstill.errors import ConfigError
from rankstill.model_config import Student
from rankstill.students.cross import take_layers
from rankstill.towers import TowerConfig, TowerModel, is_tower


def make_towers(config: Student, teacher: CrossEncoder | None) -> CrossEncoder:
    """An untrained two-tower student around an encoder from `config.init`, as a sentence encoder where that is one.

    Raises:
        ConfigError: more layers than the encoder has, or a tokenizer that doesn't tell query and item apart.
    """
    if config.init not in ("teacher", "random") and is_tower(find_encoder(config.init, "student.init")):
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
