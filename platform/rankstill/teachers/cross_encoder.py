"""The cross-encoder teacher: the encoder it starts from, and the fingerprint that its labels are kept under."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from rankstill.cross_encoder import CrossEncoder, load_cross_encoder
from rankstill.encoders import find_encoder, random_model, random_tokenizer
from rankstill.model_config import Teacher
from rankstill.teachers.kinds import TeacherModel
from rankstill.text import SEPARATOR, digest


def untrained_teacher(config: Teacher, texts: Iterable[str]) -> CrossEncoder:
    """The encoder that is fine-tuned, under a fresh head; `texts` teach a random one its vocabulary."""
    torch.manual_seed(config.train.seed)
    if config.base != "random":
        return load_cross_encoder(config.base, "teacher.base", config.max_length, fresh_head=True)
    tokenizer = random_tokenizer(texts, config.random.vocabulary, config.max_length)
    return CrossEncoder(random_model(config.random, len(tokenizer), config.max_length), tokenizer, config.max_length)


def model_identity(name: str, field: str) -> str:
    """Hash of a model's weights and tokenizer; "random" is its own identity."""
    return "random" if name == "random" else hash_folder(find_encoder(name, field))


def fingerprint(model: TeacherModel, fields: Sequence[str], precision: str) -> str:
    """128-bit hash of weights, tokenizer, text template, max length and precision: change any, labels are new."""
    kind = () if model.kind == "cross" else (model.kind, model.prompt, *model.answers)
    return digest(hash_folder(Path(model.folder)), SEPARATOR.join(fields), str(model.max_length), precision, *kind)


def hash_folder(folder: Path) -> str:
    """Hash over what determines a model's scores: its config, weights and tokenizer files."""
    state = hashlib.blake2b(digest_size=16)
    wanted = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    for path in sorted(folder.iterdir()):
        if path.name in wanted or path.suffix in (".safetensors", ".onnx"):
            state.update(path.name.encode())
            with path.open("rb") as stream:
                state.update(hashlib.file_digest(stream, "blake2b").digest())
    return state.hexdigest()
