"""The report of a sweep: one HTML file that needs no network, and the same numbers as JSON beside it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from rankstill.storage import write_json, write_text

DATA = "/*DATA*/"


def write_report(folder: Path, data: dict[str, Any]) -> Path:
    """Write report.json and report.html; returns the latter."""
    write_json(folder / "report.json", data)
    template = files("rankstill").joinpath("report.html").read_text(encoding="utf-8")
    # Within a script element, which some texts would end, or change how it is read.
    embedded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    path = folder / "report.html"
    write_text(path, template.replace(DATA, embedded))
    return path
