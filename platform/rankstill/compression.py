"""Smaller students: int8 in ONNX Runtime."""

import logging
import shutil
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from rankstill.artifacts import MANIFEST, WEIGHTS, Artifact, seal

KEPT = ("format", "family", "max_length", "fields", "parameters", "calibration")
"""What the manifest of an int8 form has from that of the artifact it comes from."""


def quantise_artifact(artifact: Artifact, folder: Path) -> Artifact:
    """Write an int8 form of an artifact into an empty folder: weights per channel, activations as they come.

    Weights of matrix products and of embeddings become int8 with a scale for each channel; activations are quantised
    when they are computed, so that no calibration data are needed (dynamic quantisation of ONNX Runtime). Weights are
    unsigned: products with signed ones saturate in 16 bits on a CPU without VNNI, which would then rank otherwise.
    """
    left_out = {WEIGHTS, "model.onnx", MANIFEST}
    for path in artifact.folder.iterdir():
        if path.name not in left_out:
            shutil.copy2(path, folder / path.name)
    with tempfile.TemporaryDirectory() as aside:
        graph = onnx.load(artifact.folder / "model.onnx")
        del graph.graph.value_info[:]  # the exporter's shapes, some of which the quantiser takes for contradictions
        onnx.save(graph, Path(aside, "model.onnx"))
        logging.disable(logging.WARNING)  # it advises, by the root logger, a step that this graph doesn't need
        try:
            quantize_dynamic(
                Path(aside, "model.onnx"), folder / "model.onnx", per_channel=True, weight_type=QuantType.QUInt8
            )
        finally:
            logging.disable(logging.NOTSET)
    return describe(artifact, folder, {})


def describe(artifact: Artifact, folder: Path, measured: dict[str, object]) -> Artifact:
    """Write the int8 artifact's manifest: that of the artifact it comes from, and what was measured."""
    kept = {name: artifact.manifest[name] for name in KEPT if name in artifact.manifest}
    source = artifact.manifest["files"][WEIGHTS]["sha256"]
    made_from = {**artifact.manifest["made_from"], "compressed": {"method": "int8", "weights": source, **measured}}
    return seal(folder, {**kept, "precision": "int8", "made_from": made_from})
