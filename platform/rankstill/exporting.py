"""Exports students as artifacts."""

import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankstill.artifacts import FORMAT, Artifact, seal
from rankstill.calibration import Calibration
from rankstill.cross_encoder import CrossEncoder, collate, model_inputs
from rankstill.errors import RunError
from rankstill.scoring import onnx_forward, torch_forward

ONNX_TOLERANCE = 1e-4


def export_artifact(
    student: CrossEncoder,
    folder: Path,
    made_from: dict[str, Any],
    fields: list[str],
    calibration: Calibration | None = None,
) -> Artifact:
    """Write an artifact into an empty folder.

    `made_from` says what the student came from (teacher, labels, data, config, metrics). A calibration that would turn
    the order of scores around is left out.

    Raises:
        RunError: the ONNX form gives other scores than the model.
    """
    student.save(folder)
    _export_onnx(student, folder / "model.onnx")
    manifest = {
        "format": FORMAT,
        "family": student.family,
        "precision": "float32",
        "max_length": student.max_length,
        "fields": list(fields),
        "parameters": student.parameters,
        "made_from": made_from,
    }
    if calibration and calibration.scale > 0:
        manifest["calibration"] = asdict(calibration)
    return seal(folder, manifest)


def _export_onnx(student: CrossEncoder, path: Path) -> None:
    """Export with dynamic batch and length, then compare with torch on a batch of another shape."""
    pad = student.pad_id
    pairs = student.tokenise(["a small query"] * 2, ["an item", "a somewhat longer item of more words"])
    model = student.model.cpu().eval()
    inputs = model_inputs(model, collate(pairs, [0, 1], pad))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that it doesn't need
    rows, length = torch.export.Dim("rows", min=1), torch.export.Dim("length", min=2)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes={name: {0: rows, 1: length} for name in inputs},
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # it is None only where a file name is given
        program.save(path)
    probe = student.tokenise(["query"] * 3, ["item"] * 2 + ["an item of quite a few more words than before, " * 3])
    batch = collate(probe, [0, 1, 2], pad)
    expected, found = torch_forward(student)(batch), onnx_forward(path)(batch)
    if not np.allclose(expected, found, atol=ONNX_TOLERANCE):
        worst = float(np.abs(expected - found).max())
        raise RunError(f"export: ONNX scores differ from torch by {worst:.2g}, over {ONNX_TOLERANCE:g}; not exported")
