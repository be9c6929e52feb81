import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rankstill.configfile import load_config
from rankstill.errors import DamagedError
from rankstill.progress import Reporter
from rankstill.steps.run import Run


def make_run(root, stream=None) -> Run:
    return Run(load_config({"data": {"shop": {}}, "storage": {"root": str(root)}}, []), Reporter(stream))


def test_of_two_runs_that_make_the_same_one_makes_it_and_the_other_waits(tmp_path):
    began, go_on, made = threading.Event(), threading.Event(), []

    def build(folder):
        began.set()
        assert go_on.wait(10)
        (folder / "data").write_text("x")
        made.append(folder)

    said = tmp_path / "said"
    with ThreadPoolExecutor() as pool, said.open("w") as stream:
        first = pool.submit(make_run(tmp_path).step, "kind", "key", build)
        assert began.wait(10)
        second = pool.submit(make_run(tmp_path, stream).step, "kind", "key", build)
        while "waiting" not in said.read_text():
            time.sleep(0.05)
        go_on.set()
        assert first.result(20) == second.result(20) == tmp_path / "kind" / "key"
    assert len(made) == 1
    assert [json.loads(line)["state"] for line in said.read_text().splitlines()] == ["waiting", "stands"]
    assert not list((tmp_path / "partial").iterdir())


def test_a_step_whose_output_was_cut_off_does_not_stand(tmp_path):
    folder = make_run(tmp_path).step("kind", "key", lambda folder: (folder / "data").write_text("whole"))
    (folder / "data").write_text("who")
    with pytest.raises(DamagedError, match="data' holds 3 of 5 bytes"):
        make_run(tmp_path).step("kind", "key", lambda _: pytest.fail("it isn't made beside what is damaged"))
