import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rankstill.priority import INGRESS, _may_come_back, come_first, in_idle_time

ROOT = Path(__file__).parent.parent
comes_back = pytest.mark.skipif(not _may_come_back(), reason="this process could not take its priority back")
AS_NOBODY = """
import os
from rankstill.priority import come_first, in_idle_time
os.setgid(65534)
os.setuid(65534)
with in_idle_time():
    print(os.sched_getscheduler(0))
print(os.sched_getscheduler(0))
come_first(-5)
print(os.getpriority(os.PRIO_PROCESS, 0))
"""


def policy_of(thread: threading.Thread) -> int:
    assert thread.native_id
    return os.sched_getscheduler(thread.native_id)


@comes_back
def test_all_that_starts_in_idle_time_comes_back_from_it():
    stop = threading.Event()
    early, late = (threading.Thread(target=stop.wait) for _ in range(2))
    early.start()
    with in_idle_time():
        late.start()
        threading.Thread(target=int).start()
        seen = [os.sched_getscheduler(0), policy_of(early), policy_of(late)]
    after = [os.sched_getscheduler(0), policy_of(early), policy_of(late)]
    stop.set()
    assert seen == [os.SCHED_IDLE, os.SCHED_OTHER, os.SCHED_IDLE]
    assert after == [os.SCHED_OTHER] * 3


@comes_back
def test_an_error_ends_idle_time():
    with pytest.raises(ValueError, match="model"), in_idle_time():
        raise ValueError("model")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@comes_back
def test_all_threads_and_their_children_come_first():
    stop, children = threading.Event(), []

    def start_one() -> None:
        asked.wait()
        children.append(threading.Thread(target=stop.wait))
        children[0].start()

    asked, early = threading.Event(), threading.Thread(target=stop.wait)
    mother = threading.Thread(target=start_one)
    early.start()
    mother.start()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    come_first(INGRESS)
    asked.set()
    mother.join()
    threads = [threading.main_thread(), early, *children]
    seen = [os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in threads]
    come_first(before)
    stop.set()
    assert seen == [INGRESS] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_who_could_not_come_back_stays():
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == ([str(os.SCHED_OTHER)] * 2 + ["0"], 0), done.stderr
