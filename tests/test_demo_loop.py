"""What the demo of the loop refuses, and what it writes."""

import polars as pl
import pytest

from jobs.demo_loop import judged, main
from rankstill.configfile import load_config
from rankstill.errors import ConfigError
from rankstill.loop import Loop
from rankstill.simulation import SimulatedShop

SHOP = SimulatedShop(items=300, queries=90, candidates=6, quiet=20)


def test_a_shop_becomes_the_data_and_nobody_elses_files_are_touched(tmp_path):
    settings = judged(SHOP, tmp_path / "made")
    config = load_config("jobs/configs/loop.yaml", [*settings, f"storage.root={tmp_path}"])
    (source,) = config.data.sources
    assert pl.read_ndjson(source.path, infer_schema_length=None).equals(SHOP.judgements())


@pytest.mark.parametrize(("words", "why"), [(["--rate", "0"], "--rate is 0"), ([], "has seen this demo")])
def test_what_can_not_be_shown_is_refused_at_once(tmp_path, monkeypatch, words, why):
    loop = Loop(tmp_path, "loop")
    loop.write(loop.state)
    given = ["jobs.demo_loop", "--config", "jobs/configs/loop.yaml", f"storage.root={tmp_path}", *words]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(ConfigError, match=why):
        main()
    assert not (tmp_path / "shop").exists()
