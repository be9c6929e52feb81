"""A challenger's way, with a real log and a real registry of artifacts, before an endpoint that keeps its word."""

import json
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from builders import tiny_cross_encoder

import jobs.deploy
from rankstill import serving
from rankstill.configfile import load_config
from rankstill.errors import ConfigError, RunError
from rankstill.event_log import EventLog
from rankstill.exporting import export_artifact
from rankstill.loop import Loop
from rankstill.registry import Registry
from rankstill.rollout import Rollout
from rankstill.served import Served, Version

CANARY = {"shares": [0.1, 0.5], "requests": [20], "attribution": 0.0, "effect": 0.2, "copies": 20}
CONFIG = load_config({"data": {"shop": {}}, "refresh": {"canary": CANARY}}, [])


class Front:
    """What `Endpoint` promises, of versions that are kept here, and an HTTP server that tells how they do."""

    def __init__(self) -> None:
        self.served = Served(name="shop", versions=(Version(version="shop/1", fields=("title",)),))
        self.observed: dict[str, dict[str, float]] = {}
        front = self

        class Models(BaseHTTPRequestHandler):
            def do_GET(self):
                data = [{"id": one.version, "observed": front.observed.get(one.version, {})} for one in front.versions]
                body = json.dumps({"data": data}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Models)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def versions(self):
        return self.served.versions

    def share(self, version, percent, _window):
        if self.served.find(version.version) is None:
            self.served = self.served.joined(version)
        if "shadow" in percent:
            self.served = self.served.shadowed(version.version, percent["shadow"] / 100)
        if "weight" in percent:
            self.served = self.served.shared(version.version, percent["weight"] / 100)

    def promote(self, version, _window):
        if self.served.find(version.version) is None:
            self.served = self.served.joined(version)
        self.served = self.served.promoted(version.version, 1.0)

    def serves(self, name):
        return name == "shop"

    def drain(self, version):
        self.served = self.served.without(version)

    def saw(self, version: str, **counts: float) -> None:
        own = self.observed.setdefault(version, {})
        for name, value in counts.items():
            own[name] = own.get(name, 0.0) + value


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry = Registry(root)
        for seed in (0, 1):
            folder = root / f"artifact{seed}"
            folder.mkdir()
            export_artifact(tiny_cross_encoder(seed, layers=1), folder, {}, ["title"])
            registry.register("shop", folder, {})
        yield registry


@pytest.fixture
def front():
    front = Front()
    yield front
    front.server.shutdown()
    front.server.server_close()


@pytest.fixture
def made(tmp_path, registry, front):
    registry.promote("shop/1", "test")
    told = []
    log, loop = EventLog(str(tmp_path / "feedback")), Loop(tmp_path, "shop")
    rollout = Rollout(CONFIG, loop, registry, front, log, lambda *said, **more: told.append((said, more)))
    return rollout, loop, log


def answers(count: int, seconds: float = 0.05, **more: float) -> dict[str, float]:
    return {"answered": count, "seconds": count * seconds, "squares": count * seconds**2, **more}


def copies(count: int, agreement: float = 0.9, seconds: float = 0.05) -> dict[str, float]:
    found = {f"copy_{name}": value for name, value in answers(count, seconds).items()}
    return {**found, "compared": count, "agreement": count * agreement, "agreement_squares": count * agreement**2}


def shop(log: EventLog, version: str, requests: int, clicked: int, event: str = "click") -> None:
    """Requests of a moment ago, after so many of which something was done."""
    now, start = datetime.now(UTC), log.impressions.read().height
    rows = [
        {"request_id": f"{version}-{start + n}", "query": "drill", "model_version": version, "at": now, "items": []}
        | {"user": None, "swap": None, "propensity": 1.0}
        for n in range(requests)
    ]
    log.impressions.add(rows)
    events = [
        {"event_id": f"{event} {row['request_id']}", "event": event, "request_id": row["request_id"], "position": 0}
        | {"at": now}
        for row in rows[:clicked]
    ]
    log.events.add(events)


def shadowed(rollout, loop, front, registry):
    """Begin, and have enough copies answered well."""
    rollout.begin(registry.resolve("shop/2", "test"))
    rollout.step()
    front.saw("shop/1", **answers(50))
    front.saw("shop/2", **copies(30))
    rollout.step()
    rollout.step()
    assert (loop.state.phase, front.served.known("shop/2").weight) == ("canary", pytest.approx(0.1))


def test_copies_come_first_and_then_a_little_traffic(made, front, registry):
    rollout, loop, _ = made
    rollout.begin(registry.resolve("shop/2", "test"))
    assert loop.state.phase == "shadow"
    rollout.step()
    assert (front.served.known("shop/2").shadow, front.served.known("shop/2").weight) == (0.5, 0.0)
    front.saw("shop/2", **copies(19))
    assert rollout.step().phase == "shadow"
    front.saw("shop/2", **copies(1))
    assert rollout.step().phase == "canary"
    rollout.step()
    assert (front.served.known("shop/2").shadow, front.served.known("shop/2").weight) == (0.0, pytest.approx(0.1))


def test_a_better_one_is_promoted_after_further_stages(made, front, registry):
    rollout, loop, log = made
    shadowed(rollout, loop, front, registry)
    shop(log, "shop/1", 200, 60)
    shop(log, "shop/2", 25, 12)
    state = rollout.step()
    assert [stage.share for stage in state.trial.stages] == [0.1, 0.5]
    assert state.trial.stages[0].challenger == (25.0, 12.0, 12.0)
    rollout.step()
    assert front.served.known("shop/2").weight == pytest.approx(0.5)
    shop(log, "shop/1", 1000, 300)
    shop(log, "shop/2", 1000, 500)
    state = rollout.step()
    assert (state.phase, state.trial) == ("idle", None)
    assert front.served.versions[0].version == "shop/2"
    assert registry.resolve("shop@champion", "test").number == 2
    (decision,) = state.decisions
    assert (decision.what, decision.version) == ("promoted", "shop/2")
    assert decision.numbers["challenger"] == pytest.approx(512 / 1025)
    assert decision.numbers["low"] > 0
    assert registry.notes(registry.resolve("shop/2", "test"))["canary"] == "promoted"


@pytest.mark.parametrize(("clicked", "why"), [(150, "it is worse"), (300, "it isn't better by what matters")])
def test_one_that_is_not_better_is_withdrawn(made, front, registry, clicked, why):
    rollout, loop, log = made
    shadowed(rollout, loop, front, registry)
    shop(log, "shop/1", 6000, 1800)
    for _ in range(6):
        shop(log, "shop/2", 1000, clicked)
    state = rollout.step()
    assert state.decisions[-1].what == "withdrawn"
    assert state.decisions[-1].why.startswith(why)
    assert [one.version for one in front.versions] == ["shop/1"]
    assert registry.resolve("shop@champion", "test").number == 1


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"copy_failed": 5, **copies(40)}, "5 of 45 answers failed"),
        ({"copy_empty": 40, **copies(40)}, "40 of 40 answers told nothing"),
        (copies(40, seconds=0.35), "answers take 300 ms longer"),
        (copies(40, agreement=0.0), "mean rank correlation with the champion 0.00"),
    ],
)
def test_a_broken_one_never_answers_a_shopper(made, front, registry, broken, why):
    rollout, loop, _ = made
    rollout.begin(registry.resolve("shop/2", "test"))
    rollout.step()
    front.saw("shop/1", **answers(100))
    front.saw("shop/2", **broken)
    state = rollout.step()
    assert state.phase == "idle"
    assert state.decisions[-1].why.startswith(why)
    assert [one.version for one in front.versions] == ["shop/1"]
    assert not any(one.weight for one in front.versions[1:])
    assert loop.state == state


def test_failures_that_the_champion_has_too_are_not_the_challengers(made, front, registry):
    rollout, loop, _ = made
    rollout.begin(registry.resolve("shop/2", "test"))
    rollout.step()
    front.saw("shop/1", failed=100, **answers(400))
    front.saw("shop/2", copy_failed=5, **copies(15))
    assert rollout.step().phase == "shadow"
    assert loop.state.trial is not None


def test_what_people_do_counts(made, front, registry):
    rollout, loop, _ = made
    shadowed(rollout, loop, front, registry)
    loop.want(paused=True)
    front.saw("shop/2", **answers(100))
    before = loop.state
    assert rollout.step() == before
    front.saw("shop/2", failed=60)
    assert rollout.step().decisions[-1].why.startswith("60 of"), "a broken one goes though all is paused"
    loop.want(paused=False)
    shadowed(rollout, loop, front, registry)
    loop.want(order="promote")
    state = rollout.step()
    assert (state.decisions[-1].why, loop.control.order) == ("somebody said so", None)
    assert registry.resolve("shop@champion", "test").number == 2


def test_one_that_somebody_drained_is_given_up(made, front, registry):
    rollout, loop, _ = made
    shadowed(rollout, loop, front, registry)
    front.drain("shop/2")
    assert rollout.step().decisions[-1].why == "somebody drained it"


def test_an_order_from_before_is_not_for_this_one(made, front, registry):
    rollout, loop, _ = made
    loop.want(order="promote")
    rollout.begin(registry.resolve("shop/2", "test"))
    assert (rollout.step().phase, front.served.champion.version) == ("shadow", "shop/1")


def test_one_that_is_paused_is_told_so_once(made, front, registry):
    rollout, loop, told = made[0], made[1], []
    rollout._say = lambda *_, **more: told.append(more["state"])
    loop.want(paused=True)
    rollout.begin(registry.resolve("shop/2", "test"))
    looks = iter([None, None, {"paused": False}, None, {"order": "rollback"}])
    rollout._wanted = CONFIG.refresh.canary.model_copy(update={"poll": 0.01})
    rollout.see_through(lambda: loop.want(**(next(looks) or {})))
    assert told == ["begun", "paused", "shadow", "resumed", "withdrawn"]


@pytest.mark.parametrize("placed", [False, True])
def test_the_command_withdraws_what_nobody_tries_any_more(made, front, registry, monkeypatch, capsys, placed):
    """Also where it is paused, or wasn't yet served."""
    rollout, loop, _ = made
    rollout.begin(registry.resolve("shop/2", "test"))
    if placed:
        rollout.step()
    loop.want(paused=True)
    monkeypatch.setattr(serving, "running_endpoint", lambda _: front)
    monkeypatch.setattr(jobs.deploy, "present_token", lambda: None)  # which is for processes that begin with it
    monkeypatch.setattr("rankstill.registry.open_registry", lambda *_: registry)
    monkeypatch.setattr(sys, "argv", ["deploy", "drain", "shop/2", f"storage.root={loop._folder.parent}"])
    jobs.deploy.main()
    assert loop.state.trial is None
    assert front.served.find("shop/2") is None
    assert "shop/2 was withdrawn: somebody said so" in capsys.readouterr().out


def test_the_command_leaves_it_to_who_tries_it(made, front, registry, monkeypatch, capsys):
    rollout, loop, _ = made
    rollout.begin(registry.resolve("shop/2", "test"))
    rollout.step()
    monkeypatch.setattr(serving, "running_endpoint", lambda _: front)
    monkeypatch.setattr(jobs.deploy, "present_token", lambda: None)  # which is for processes that begin with it
    monkeypatch.setattr("rankstill.registry.open_registry", lambda *_: registry)
    monkeypatch.setattr(sys, "argv", ["deploy", "drain", "shop/2", f"storage.root={loop._folder.parent}"])
    with loop.alone():
        jobs.deploy.main()
        assert "which withdraws it at its next step" in capsys.readouterr().out
        assert rollout.step().decisions[-1].what == "withdrawn"
    assert front.served.find("shop/2") is None


def test_one_that_somebody_promoted_is_champion(made, front, registry):
    """Though it was the endpoint alone that was told."""
    rollout, loop, _ = made
    shadowed(rollout, loop, front, registry)
    front.promote(front.served.known("shop/2"), 3600.0)
    decision = rollout.step().decisions[-1]
    assert (decision.what, decision.why) == ("promoted", "somebody promoted it")
    assert registry.resolve("shop@champion", "test").number == 2


def test_a_refresh_that_waits_for_a_trial_goes_on_after_it(made, front, registry):
    rollout, loop, _ = made
    upto = {"impressions": 3, "events": 2}
    loop.write(loop.state.model_copy(update={"phase": "refreshing", "upto": upto}))
    shadowed(rollout, loop, front, registry)
    front.drain("shop/2")
    state = rollout.step()
    assert (state.phase, state.upto, state.trial) == ("refreshing", upto, None)


def test_a_pinned_champion_stays(made, front, registry):
    rollout, loop, log = made
    shadowed(rollout, loop, front, registry)
    loop.want(pinned=True)
    shop(log, "shop/1", 1000, 300)
    shop(log, "shop/2", 1000, 500)
    assert rollout.step().decisions[-1].why == "it is better, but the champion is pinned"
    assert registry.resolve("shop@champion", "test").number == 1


@pytest.mark.parametrize("dies_in", ["share", "promote", "_close"])
def test_a_rollout_that_dies_in_the_middle_ends_as_it_would_have(made, front, registry, monkeypatch, dies_in):
    """Whatever was half done is done again."""
    rollout, loop, log = made
    died = []

    def dying(original):
        def once(*given):
            result = original(*given)
            if not died:
                died.append(True)
                raise KeyboardInterrupt  # after it acted, before that is written down
            return result

        return once

    owner = rollout if dies_in == "_close" else front
    monkeypatch.setattr(owner, dies_in, dying(getattr(owner, dies_in)))
    rollout.begin(registry.resolve("shop/2", "test"))
    shopped = False
    for _ in range(12):
        try:
            state = rollout.step()
        except KeyboardInterrupt:
            state = loop.state
        if state.phase == "shadow" and state.trial.placed:
            front.saw("shop/1", **answers(50))
            front.saw("shop/2", **copies(30))
        if state.phase == "canary" and state.trial.placed and not shopped:
            shopped = True
            shop(log, "shop/1", 1000, 300)
            shop(log, "shop/2", 1000, 500)
        if state.phase == "idle":
            break
    assert died
    assert [one.what for one in loop.state.decisions] == ["promoted"]
    assert registry.resolve("shop@champion", "test").number == 2
    assert front.served.versions[0].version == "shop/2"


def test_requests_count_once_shoppers_had_time_to_click(made, front, registry, monkeypatch):
    rollout, loop, log = made
    shadowed(rollout, loop, front, registry)
    shop(log, "shop/2", 5, 1)
    monkeypatch.setattr(rollout, "_wanted", CONFIG.refresh.canary.model_copy(update={"attribution": 60.0}))
    assert rollout.step().trial.stages[0].challenger == (0.0, 0.0, 0.0)
    state = loop.state
    state.trial.stages[0].begun = datetime.now(UTC) - timedelta(minutes=5)
    loop.write(state)
    assert rollout.step().trial.stages[0].challenger == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("metric", "counted"), [("click", 5.0), ("purchase", 2.0)])
def test_what_counts_are_clicks_and_more_or_purchases(made, front, registry, monkeypatch, metric, counted):
    rollout, loop, log = made
    shadowed(rollout, loop, front, registry)
    monkeypatch.setattr(rollout, "_wanted", CONFIG.refresh.canary.model_copy(update={"metric": metric}))
    shop(log, "shop/2", 4, 3)
    shop(log, "shop/2", 3, 2, "purchase")
    assert rollout.step().trial.stages[0].challenger == (7.0, counted, counted)


def test_an_endpoint_that_is_gone_is_told(made, front, registry):
    rollout, _, _ = made
    front.server.shutdown()
    front.server.server_close()
    with pytest.raises(RunError, match=r"doesn't answer at http://127\.0\.0\.1"):
        rollout.begin(registry.resolve("shop/2", "test"))


def test_a_champion_is_not_tried(made, registry):
    with pytest.raises(ConfigError, match="shop/1 is champion already"):
        made[0].begin(registry.resolve("shop/1", "test"))
