"""Hold a teacher against BM25 and untrained encoders before it labels anything."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankstill.calibration import calibrate
from rankstill.encoders import find_encoder
from rankstill.errors import GateError
from rankstill.metrics import paired_difference, per_query, summarise
from rankstill.rankers import load_ranker, pick_device
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run, step_key
from rankstill.steps.teach import Taught, judged_split, label_max
from rankstill.storage import write_json

GATE_QUERIES = 1000
"""Valid queries, at most, that the gate looks at."""
METRICS = ("ndcg@10", "pairwise_accuracy")


@dataclass(frozen=True)
class Gated:
    """What the gate found."""

    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """Metrics of the teacher and of what it has to beat, paired differences, calibration, and the verdict."""
        return json.loads((self.folder / "gate.json").read_text())


def gate(run: Run, prepared: Prepared, taught: Taught) -> Gated:
    """Measure the teacher on the valid judgements.

    Raises:
        GateError: it ranks them no better than BM25 or an untrained encoder, and `teacher.gate` is on.
    """
    config = run.config.teacher
    rivals = {"bm25": "bm25"}
    encoders = [member.model.folder for member in taught.ensemble.members[1:] if member.model.kind == "bi"]
    if config.base != "random" and not config.model:
        base = str(find_encoder(config.base, "teacher.base"))
        rivals["untrained base"] = base
        encoders = [folder for folder in encoders if folder != base]
    rivals |= {Path(folder).name: folder for folder in encoders}
    key = step_key(taught.key, prepared.key, sorted(rivals))
    found = Gated(run.step("gates", key, lambda folder: _measure(run, prepared, taught, rivals, folder)))
    report = found.report
    beaten = [name for name, beats in report["beats"].items() if beats]
    if len(beaten) < len(rivals):
        shown = "; ".join(
            f"{name} {values['ndcg@10']['value']:.4f}, {values['pairwise_accuracy']['value']:.4f}"
            for name, values in report["models"].items()
        )
        if config.gate:
            raise GateError(
                f"teacher: it doesn't beat {', '.join(name for name in rivals if name not in beaten)} on the valid"
                f" judgements (nDCG@10, pairwise accuracy: {shown}); train it longer, take a better one or an ensemble,"
                " or set teacher.gate to off"
            )
        run.reporter.event("gates", state="not passed", **{name: name in beaten for name in rivals})
    return found


def _measure(run: Run, prepared: Prepared, taught: Taught, rivals: dict[str, str], folder: Path) -> None:
    pairs = judged_split(prepared.pairs, "valid")
    kept = pairs["query_id"].unique().sort().head(GATE_QUERIES)
    pairs = pairs.filter(pairs["query_id"].is_in(kept.implode()))
    tables, scores = {}, {}
    for name, reference in {"teacher": str(taught.folder), **rivals}.items():
        run.reporter.event("gates", state="scoring", model=name, pairs=pairs.height)
        device = pick_device(run.config.resources.device)
        ranker = load_ranker(reference, "teacher", run.root, device, run.config.labels.budget(device))
        scores[name] = ranker.score(pairs)
        tables[name] = per_query(pairs, scores[name])
    differences = {
        name: {metric: paired_difference(tables["teacher"], tables[name], metric).as_dict() for metric in METRICS}
        for name in rivals
    }
    write_json(
        folder / "gate.json",
        {
            "queries": len(kept),
            "models": {
                name: {metric: value.as_dict() for metric, value in summarise(table).items() if metric in METRICS}
                for name, table in tables.items()
            },
            "differences": differences,
            "beats": {
                name: all((one["value"] or 0) > 0 for one in found.values()) for name, found in differences.items()
            },
            "calibration": vars(calibrate(scores["teacher"], pairs["label"].to_numpy() / label_max(pairs))),
        },
    )
