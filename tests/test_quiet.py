import threading
import time

from rankstill.quiet import QuietLock


def test_what_is_timed_waits_for_work_and_work_for_it(tmp_path):
    said, begun = [], threading.Event()

    def work() -> None:
        with QuietLock(tmp_path).shared():
            begun.set()
            time.sleep(0.4)
            said.append("work ends")

    def more_work() -> None:
        with later.shared():
            said.append("more work")

    later = QuietLock(tmp_path)
    first, second = threading.Thread(target=work), threading.Thread(target=more_work)
    first.start()
    begun.wait()
    alone = QuietLock(tmp_path)
    with alone.alone():
        said.append("alone")
        second.start()
        time.sleep(0.3)
        said.append("still alone")
    for thread in (first, second):
        thread.join()
    assert said == ["work ends", "alone", "still alone", "more work"]
    assert later.waited >= 0.29, "while the other was alone"
    with later.shared():
        time.sleep(0.2)
    assert later.waited - 0.29 < 0.2, "what is done is no waiting"


def test_work_is_done_side_by_side(tmp_path):
    together = threading.Barrier(2, timeout=10)

    def work() -> None:
        with QuietLock(tmp_path).shared():
            together.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together.broken


def test_other_roots_are_other_work(tmp_path):
    done = []

    def work(root: str) -> threading.Thread:
        def locked() -> None:
            with QuietLock(tmp_path / root).shared():
                done.append(root)

        thread = threading.Thread(target=locked)
        thread.start()
        thread.join(timeout=0.5)
        return thread

    with QuietLock(tmp_path / "a").alone():
        waiting = work("a")
        assert not work("b").is_alive()
        assert waiting.is_alive()
        assert done == ["b"]
    waiting.join()
    assert done == ["b", "a"]
