"""What a training is, for those who start it and those who run it.

Ray Train's controller reads it too, and is spared what a worker imports.
"""

from dataclasses import dataclass
from typing import Any

from rankstill.model_config import Train
from rankstill.objective import Objective


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs to know; plain values, since it crosses processes."""

    task: str
    """Name shown with progress."""
    initial: str
    """Folder of the model before training."""
    train_lists: str
    """Parquet file (schema LISTS) to learn from."""
    valid_lists: str
    """Parquet file (schema LISTS) to choose the best epoch on."""
    max_length: int
    train: Train
    objective: Objective
    device: str
    """cpu or cuda."""
    threads: int
    """CPU threads of one worker."""
    teacher: str = ""
    """Folder of the teacher that runs beside the student, where the objective compares what is inside."""
    mailbox: Any = None
    """Handle of a relay's mailbox, where progress goes."""
