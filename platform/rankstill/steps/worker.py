"""What a worker of Ray Train runs.

Ray Train counts a worker's death as a failure, after which it starts again, but for one while it hands this function
over. What takes seconds to import is imported after that, which spares the controller too.
"""

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from rankstill.train_job import TrainJob


def train_worker(config: dict[str, TrainJob]) -> None:
    """The loop of one worker (`train_loop_per_worker`); `config` holds one TrainJob under "job"."""
    from rankstill.training import TrainLink, learn

    learn(config["job"], TrainLink())


class GiveBack(WorkerGroupCallback, ControllerCallback):
    """Stops workers that came up and never trained, which Ray Train's controller leaves behind when it ends.

    Ray offers a controller's and its workers' life to callbacks of its own alone, hence the import from its inside.
    """

    def __init__(self) -> None:
        self._begun: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """They are up."""
        self._begun = worker_group

    def after_worker_group_training_start(self, worker_group: Any) -> None:  # noqa: ARG002
        """They train, and so the controller stops them."""
        self._begun = None

    async def before_controller_shutdown(self) -> None:
        """Stop those that are left."""
        if self._begun is not None and self._begun.has_started():
            self._begun.abort()
