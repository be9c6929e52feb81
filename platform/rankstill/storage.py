"""Writes that are whole or absent."""

import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file aside, then rename it into place."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(aside, path)
