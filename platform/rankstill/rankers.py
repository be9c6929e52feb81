"""Anything that ranks, behind one call: baselines, registered models, artifacts, cross-encoders, sentence encoders."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rankstill import bm25
from rankstill.artifacts import Artifact, is_artifact, load_artifact
from rankstill.bi_encoder import load_bi_encoder
from rankstill.configfile import load_config
from rankstill.cross_encoder import load_cross_encoder
from rankstill.encoders import find_encoder, loading
from rankstill.errors import ConfigError
from rankstill.registry import find_version
from rankstill.scoring import torch_scorer
from rankstill.teachers.ensemble import is_ensemble, read_ensemble
from rankstill.teachers.kinds import load_teacher

BASELINES = ("bm25", "random")


@dataclass(frozen=True)
class Ranker:
    """A model that scores pairs (columns query, text), [B]."""

    name: str
    score: Callable[[pl.DataFrame], NDArray[np.float64]]
    parameters: int = 0
    bytes: int = 0
    """Size of the weights on disk."""
    fields: tuple[str, ...] | None = None
    """Item fields that it was trained on, where its folder says so."""
    held_out: Mapping[str, float] = field(default_factory=dict)
    """Shares of the queries of `test` and `valid` that it was trained without, where its folder says so."""


def load_ranker(reference: str, field: str, root: Path, device: str = "cpu", token_budget: int = 2048) -> Ranker:
    """The ranker behind a baseline's name, registry reference, artifact or model folder, or Hugging Face name.

    Raises:
        ModelError: nothing usable behind the reference.
    """
    if reference == "bm25":
        return Ranker("bm25", bm25.score_pairs)
    if reference == "random":
        return Ranker("random", lambda pairs: np.random.default_rng(0).random(pairs.height))
    name = reference
    if version := find_version(reference, root, field):
        name, reference = str(version), str(version.folder)
    if is_ensemble(Path(reference)):
        return _ensemble_ranker(Path(reference), field, device, token_budget)
    artifact = load_artifact(Path(reference), field) if is_artifact(Path(reference)) else None
    if artifact and artifact.precision == "int8":
        return onnx_ranker(name, artifact, token_budget)
    folder = find_encoder(reference, field)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if _is_sentence_encoder(folder, field):
        bi_encoder = load_bi_encoder(str(folder), field, device)
        count = sum(parameter.numel() for parameter in bi_encoder.model.parameters())
        return Ranker(
            name, lambda p: bi_encoder.score(p["query"].to_list(), p["text"].to_list(), token_budget), count, size
        )
    encoder = artifact.encoder() if artifact else load_cross_encoder(folder, field)
    precision = "auto" if device.startswith("cuda") else "float32"  # on CPUs the same scores everywhere
    scorer = torch_scorer(encoder, device, precision, token_budget)
    return Ranker(
        name,
        lambda p: scorer.score(p["query"].to_list(), p["text"].to_list()).astype(np.float64),
        encoder.parameters,
        size,
        **_trained_on(folder),
    )


def artifact_ranker(name: str, folder: Path, runtime: str, device: str, token_budget: int) -> Ranker:
    """An artifact in the runtime that serves it, torch or onnx.

    Raises:
        ModelError: no whole artifact.
    """
    if runtime == "onnx":
        return onnx_ranker(name, load_artifact(folder), token_budget)
    return load_ranker(str(folder), name, folder, device, token_budget)


def _is_sentence_encoder(folder: Path, field: str) -> bool:
    """Whether a folder is in sentence-transformers' form, which it gives cross-encoders too, and no classifier's."""
    with loading(folder, field):
        architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures)
    return (folder / "modules.json").exists() and not classifies


def onnx_ranker(name: str, artifact: Artifact, token_budget: int) -> Ranker:
    """An artifact in ONNX Runtime, with as many threads as torch would take."""
    scorer = artifact.scorer("onnx", torch.get_num_threads(), token_budget)
    return Ranker(
        name,
        lambda p: scorer.score(p["query"].to_list(), p["text"].to_list()).astype(np.float64),
        artifact.manifest["parameters"],
        (artifact.folder / "model.onnx").stat().st_size,
        **{"fields": tuple(artifact.fields), **_trained_on(artifact.folder)},
    )


def _ensemble_ranker(folder: Path, field: str, device: str, token_budget: int) -> Ranker:
    ensemble = read_ensemble(folder, field)
    precision = "auto" if device.startswith("cuda") else "float32"
    models = [member.model for member in ensemble.members]
    loaded = [load_teacher(model, field, device, precision, token_budget) for model in models]
    return Ranker(
        str(folder),
        lambda p: ensemble.combine([one.score(p["query"].to_list(), p["text"].to_list()) for one in loaded]),
        sum(one.parameters for one in loaded),
        sum(path.stat().st_size for model in models for path in Path(model.folder).glob("*.safetensors")),
        **_trained_on(folder),
    )


def _trained_on(folder: Path) -> dict[str, Any]:
    """What the config that a run leaves beside what it makes says of data."""
    path = folder / "config.yaml"
    try:
        data = load_config(path).data if path.is_file() else None
    except ConfigError:  # another tool's
        data = None
    return {"fields": data.fields, "held_out": {"test": data.test, "valid": data.valid}} if data else {}


def pick_device(wanted: str) -> str:
    """Resolve "auto" to the device that this process has.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("resources.device is 'cuda' but this machine has no GPU; use auto or cpu")
    return wanted if wanted != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
