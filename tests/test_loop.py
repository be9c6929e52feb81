import threading

import pytest

from rankstill.errors import DamagedError
from rankstill.loop import Loop


def test_what_is_written_down_is_there_for_the_next(tmp_path):
    loop = Loop(tmp_path, "shop")
    assert not loop.exists
    state = loop.write(loop.state.model_copy(update={"phase": "refreshing", "upto": {"events": 3}}))
    assert Loop(tmp_path, "shop").state == state
    assert Loop(tmp_path, "other").state.phase == "idle"
    assert loop.exists


def test_what_people_want_is_kept_beside_what_they_wanted(tmp_path):
    loop = Loop(tmp_path, "shop")
    loop.want(paused=True)
    assert loop.want(pinned=True).model_dump() == {"paused": True, "pinned": True, "order": None}
    assert not loop.want(paused=False).paused
    assert Loop(tmp_path, "shop").control.pinned


def test_only_the_latest_decisions_are_kept(tmp_path):
    state = Loop(tmp_path, "shop").state
    for number in range(60):
        state = state.decided("refreshed", f"shop/{number}", "it passed")
    assert [state.decisions[0].version, state.decisions[-1].version, len(state.decisions)] == ["shop/10", "shop/59", 50]


def test_a_damaged_state_is_told_and_not_forgotten(tmp_path):
    loop = Loop(tmp_path, "shop")
    loop.write(loop.state)
    (tmp_path / "loop" / "shop.state.json").write_text('{"phase": "nowhere"}')
    with pytest.raises(DamagedError, match=r"shop\.state\.json' can't be read .*phase.*restore it, or remove it"):
        _ = loop.state


def test_two_loops_do_not_act_at_a_time(tmp_path):
    order, waited = [], []

    def second():
        with Loop(tmp_path, "shop").alone(waited.append):
            order.append("second")

    with Loop(tmp_path, "shop").alone():
        thread = threading.Thread(target=second)
        thread.start()
        while not waited:
            thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "process" in waited[0]
