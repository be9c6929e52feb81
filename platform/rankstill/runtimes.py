"""Inference engines other than torch, on CPU: a collated batch of token ids in, arrays out."""

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from onnx.numpy_helper import from_array, to_array
from torch import Tensor, nn

from rankstill.errors import ConversionError

Floats = NDArray[np.float32]
Batch = dict[str, NDArray[np.int64]]
"""input_ids, attention_mask and, where the model has segments, token_type_ids, each [B, L]."""
PROBES = ((["a query"] * 2, ["an item", "another one"]), (["lamp"] * 3, ["a", "of steel " * 9, "b"]))
"""Queries and texts of two batches of different shapes."""
Engine = Callable[[Batch], Floats]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
"""Largest difference to torch in float32, absolute for small values and relative for large ones."""


def onnx_engine(path: Path, threads: int = 0) -> Engine:
    """An exported model in ONNX Runtime; 0 threads leaves the number to it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait for one another's part spin on a core that others need, and go on after the last batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = with_signed_weights(path) if has_vnni() else str(path)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}

    def run(batch: Batch) -> Floats:
        (found,) = session.run(["logits"], {name: batch[name] for name in names})
        return np.asarray(found, dtype=np.float32)

    return run


def has_vnni() -> bool:
    """Whether this machine's CPU multiplies unsigned with signed bytes by one instruction, which doesn't saturate."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(told.split())


def with_signed_weights(path: Path) -> bytes | str:
    """A model whose products have signed bytes as weights; its path, where it has no unsigned ones in this file.

    Weights and their zero points are less by 128, so that products are the same, to the bit. For these ONNX Runtime has
    kernels that use VNNI, and for unsigned weights it has not.
    """
    model = onnx.load(path, load_external_data=False)
    if any(entry.external_data for entry in model.graph.initializer):
        return str(path)
    uses = Counter(name for node in model.graph.node for name in node.input)
    kept = {entry.name: entry for entry in model.graph.initializer if uses[entry.name] == 1}
    found = False
    for node in model.graph.node:
        if node.op_type != "MatMulInteger" or len(node.input) < 4:
            continue
        weights, zeros = (kept.get(node.input[place]) for place in (1, 3))
        if weights and zeros and weights.data_type == zeros.data_type == onnx.TensorProto.UINT8:
            found = True
            for entry in (weights, zeros):
                signed = (to_array(entry).astype(np.int16) - 128).astype(np.int8)
                entry.CopyFrom(from_array(signed, entry.name))
    return model.SerializeToString() if found else str(path)


def openvino_engine(
    model: nn.Module,
    function: Callable[[dict[str, Tensor]], Tensor],
    example: Mapping[str, Tensor],
    probe: Mapping[str, Tensor],
    threads: int,
    precision: str,
) -> Engine:
    """A function of inputs that runs a model, in OpenVINO.

    It is traced on `example` and held against torch on `probe`, a batch of another shape. `precision` is float32 or
    bfloat16; what comes out is float32.

    Raises:
        ConversionError: OpenVINO can't convert it, or gives other numbers than torch.
    """
    module = _Traceable(model, function, tuple(example))
    logging.getLogger("openvino").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of branches that a trace fixes; the probe shows whether that matters
            converted = openvino.convert_model(module, example_input=tuple(example.values()))
            expected = module(*probe.values()).float().numpy()
    except Exception as error:  # its frontend raises whatever it meets
        reason = " ".join(str(error).split())[:160]
        raise ConversionError(f"OpenVINO can't convert the model ({reason}); use torch") from error
    for name, entry in zip(example, converted.inputs, strict=True):
        entry.get_tensor().set_names({name})
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several engines of one machine would be pinned to the same core
    }
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    turn = threading.Lock()

    def run(batch: Batch) -> Floats:
        inputs = {name: batch[name] for name in example}
        with turn:  # a request is for one thread at a time
            return np.array(request.infer(inputs, share_inputs=True)[0], dtype=np.float32)

    found = run({name: value.numpy() for name, value in probe.items()})
    limit = TOLERANCE[precision]
    if not np.allclose(found, expected, atol=limit, rtol=limit):
        worst = float(np.abs(found - expected).max())
        raise ConversionError(f"OpenVINO's scores differ from torch's by {worst:.2g}; use torch")
    return run


class _Traceable(nn.Module):
    """A function of named tensors as a module of positional ones, which a trace can follow."""

    def __init__(
        self, model: nn.Module, function: Callable[[dict[str, Tensor]], Tensor], names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.model = model  # whose weights a trace looks for among its module's
        self._function = function
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs of the function."""
        return self._function(dict(zip(self._names, inputs, strict=True)))
