"""Artifacts: an exported student with everything that serving it needs, and a manifest that vouches for it.

manifest.json      what it was made from, hashes of every file, metrics
config.json, tokenizer*.json
model.safetensors  weights, for torch; an int8 artifact has none
model.onnx         the same model for ONNX Runtime

torch is imported once a model is wanted, so that who reads manifests starts in no time.
"""

import hashlib
import json
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankstill.errors import ConversionError, ModelError
from rankstill.storage import write_json

if TYPE_CHECKING:
    from rankstill.cross_encoder import CrossEncoder
    from rankstill.scoring import PairScorer

MANIFEST = "manifest.json"
FORMAT = 1
NEEDED = ("model.onnx", "config.json", "tokenizer.json")
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Artifact:
    """A verified artifact folder."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fields(self) -> list[str]:
        """Item fields that make up an item's text."""
        return self.manifest["fields"]

    @property
    def precision(self) -> str:
        """float32 or int8."""
        return self.manifest.get("precision", "float32")

    @property
    def family(self) -> str:
        """cross, bi or late."""
        return self.manifest.get("family", "cross")

    @property
    def calibration(self) -> tuple[float, float]:
        """Scale and offset with which sigmoid(scale * score + offset) estimates label / largest label."""
        given = self.manifest.get("calibration", {"scale": 1.0, "offset": 0.0})
        return given["scale"], given["offset"]

    def resolve(self, runtime: str) -> str:
        """The runtime that `runtime` means: torch, openvino or onnx. Int8 has ONNX Runtime only, whatever it says.

        Raises:
            ModelError: OpenVINO, for a student that encodes items by themselves.
        """
        if self.precision == "int8":
            return "onnx"
        if runtime == "auto":
            return "openvino" if self.family == "cross" else "torch"
        if runtime == "openvino" and self.family != "cross":
            raise ModelError(f"serve.runtime: OpenVINO doesn't run students of family {self.family}; use auto or torch")
        return runtime

    def model_file(self, runtime: str = "torch") -> Path:
        """The weights that a runtime loads."""
        return self.folder / ("model.onnx" if self.resolve(runtime) == "onnx" else WEIGHTS)

    def scorer(self, runtime: str = "torch", threads: int = 1, token_budget: int = 2048) -> "PairScorer":
        """The student in one of its runtimes (see `resolve`), on CPU.

        Raises:
            ModelError: OpenVINO can't run it, and is asked for by name.
        """
        import torch

        from rankstill.cross_encoder import load_tokenizer
        from rankstill.scoring import PairScorer, onnx_forward, openvino_scorer, torch_forward

        chosen = self.resolve(runtime)
        if chosen == "onnx":
            forward = onnx_forward(self.folder / "model.onnx", threads)
            return PairScorer(forward, load_tokenizer(self.folder, "model"), self.manifest["max_length"], token_budget)
        torch.set_num_threads(threads)
        encoder = self.encoder()
        if chosen == "openvino":
            try:
                return openvino_scorer(encoder, threads, "float32", token_budget)
            except ConversionError:
                if runtime == "openvino":
                    raise
        return PairScorer(torch_forward(encoder), encoder.tokenizer, encoder.max_length, token_budget)

    def encoder(self) -> "CrossEncoder":
        """The student in torch.

        Raises:
            ModelError: an int8 artifact, which has no weights for torch.
        """
        from rankstill.cross_encoder import load_cross_encoder

        if self.precision == "int8":
            raise ModelError(f"model: {str(self.folder)!r} is int8, which torch doesn't run; take the float32 artifact")
        return load_cross_encoder(self.folder, "model", self.manifest["max_length"])


def seal(folder: Path, manifest: dict[str, Any]) -> Artifact:
    """Make a folder of model files an artifact: write its manifest, with versions and the hash of every file.

    Whoever may read the manifest may read every file; safetensors makes its own for their owner alone.
    """
    files = {
        path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "onnxruntime")}
    manifest = {**manifest, "versions": versions, "python": platform.python_version(), "files": files}
    write_json(folder / MANIFEST, manifest)
    for name in files:
        (folder / name).chmod((folder / MANIFEST).stat().st_mode)
    return Artifact(folder, manifest)


def load_artifact(folder: Path, field: str = "model") -> Artifact:
    """Open an artifact after checking the hash of every file.

    Raises:
        ModelError: no manifest, an unknown format, a file that is missing, changed or extra.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        known = manifest["format"] == FORMAT
        length, fields = manifest["max_length"], manifest["fields"]
        whole = isinstance(length, int) and length > 0 and isinstance(fields, list) and fields != []
        scale, offset = Artifact(folder, manifest).calibration
        numbers = all(isinstance(one, int | float) and math.isfinite(one) for one in (scale, offset))
        whole = whole and numbers and scale > 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{field}: {str(folder)!r} has no readable {MANIFEST}; export the student again") from error
    if not known:
        raise ModelError(f"{field}: {str(folder)!r} has format {manifest['format']!r}, not {FORMAT}; export it again")
    needed = NEEDED if manifest.get("precision") == "int8" else (WEIGHTS, *NEEDED)
    absent = [name for name in needed if name not in files]
    if absent or not whole:
        missing = absent[0] if absent else "a whole max_length, fields or calibration"
        raise ModelError(f"{field}: the manifest of {str(folder)!r} lacks {missing!r}; export the student again")
    for name, expected in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{field}: {str(folder)!r} lacks {name!r}; copy or export the artifact again")
        if (found := _sha256(folder / name)) != expected:
            raise ModelError(
                f"{field}: {name!r} in {str(folder)!r} has sha256 {found[:16]}…, the manifest says {expected[:16]}…;"
                " the file was changed or cut short, export the artifact again"
            )
    extra = sorted(p.name for p in folder.iterdir() if p.name not in files and p.name != MANIFEST)
    if extra:
        raise ModelError(f"{field}: {str(folder)!r} holds {extra[0]!r}, which the manifest doesn't name; remove it")
    return Artifact(folder, manifest)


def is_artifact(folder: Path) -> bool:
    """Whether a folder claims to be an artifact."""
    return (folder / MANIFEST).is_file()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
