"""The DeepSpeed engine that trains: its settings, its whole weights, and safe loading of its checkpoints."""

import contextlib
import os
from typing import Any

import torch

from rankstill.cross_encoder import CrossEncoder
from rankstill.model_config import Train
from rankstill.scoring import is_bfloat16


def make_engine(encoder: CrossEncoder, train: Train, device: str, lists_per_worker: int, steps: int) -> Any:
    """Hand the model to `deepspeed.initialize`; the engine owns optimizer, schedule, precision and sharding."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # reads DS_ACCELERATOR when it is imported

    ops: Any = deepspeed.ops
    ops.__compatible_ops__ = {}  # or it compiles, for a minute, a collective that only inference uses
    deepspeed.utils.logger.setLevel("ERROR")
    optimizer = {"lr": train.learning_rate, "weight_decay": train.weight_decay, "torch_adam": True, "fused": True}
    rise = max(1, round(steps * train.warmup))

    def rate(step: int) -> float:
        return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))

    def schedule(adam: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(adam, rate)

    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if train.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    initialize: Any = deepspeed.initialize  # its annotations don't admit what its documentation does
    engine, *_ = initialize(
        model=encoder.model,
        model_parameters=[p for p in encoder.model.parameters() if p.requires_grad],
        lr_scheduler=schedule,
        config={
            "train_micro_batch_size_per_gpu": lists_per_worker // train.accumulate,
            "gradient_accumulation_steps": train.accumulate,
            "gradient_clipping": train.clip,
            "optimizer": {"type": "AdamW", "params": optimizer},
            "zero_optimization": zero,
            "zero_force_ds_cpu_optimizer": False,
            "torch_autocast": {"enabled": is_bfloat16(train.precision, device), "dtype": "bfloat16"},
            "steps_per_print": 1 << 60,
        },
    )
    if engine.world_size == 1 and train.zero_stage == 0:
        engine.enable_backward_allreduce = False  # gradients would be copied for nobody
    return engine


def one_precision(engine: Any) -> contextlib.AbstractContextManager[None]:
    """A context in which several forward passes share weights in lower precision, each converted once."""
    from deepspeed.runtime.torch_autocast import autocast_if_enabled

    return autocast_if_enabled(engine)


def whole_weights(engine: Any) -> dict[str, torch.Tensor]:
    """All weights in float32 on every rank; ZeRO-3 gathers them from the ranks."""
    import deepspeed

    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=engine.zero_optimization_stage() == 3):
        return {
            name: tensor.detach().float().cpu().clone() if tensor.is_floating_point() else tensor.cpu().clone()
            for name, tensor in engine.module.state_dict().items()
        }


def load_tensors(path: str, map_location: Any = None) -> Any:
    """What DeepSpeed reads its shards with, kept to tensors and the few DeepSpeed types that they hold: no code."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)
