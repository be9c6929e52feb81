"""Who gets the cores: first what answers, then all else, and loading in idle time."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
"""A folder for each thread of this process, where the system tells of them."""
FIRST, INGRESS, RANKER = -20, -10, -5
"""Niceness. FIRST is of what measures; the ingress takes little, and what it refuses must not wait for rankers."""


def come_first(niceness: int) -> None:
    """Give all threads of this process, and so those that they start, a niceness, where it may take it.

    Below 0 that needs CAP_SYS_NICE.
    """
    with suppress(FileNotFoundError, PermissionError):
        for thread in TASKS.iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)


@contextmanager
def in_idle_time() -> Iterator[None]:
    """Run only when nothing else wants the cores; afterwards this thread, and those started meanwhile, are as before.

    Where the process may not take its priority back (on Linux that needs CAP_SYS_NICE), nothing changes.
    """
    if not _may_come_back():
        yield
        return
    before = {one.name for one in TASKS.iterdir()}
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        for thread in {one.name for one in TASKS.iterdir()} - before:
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


def _may_come_back() -> bool:
    """Whether a thread that ran in idle time could be as before, tried by one that has nothing else to do."""
    if not TASKS.is_dir():
        return False
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_there_and_back).result()


def _there_and_back() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True
