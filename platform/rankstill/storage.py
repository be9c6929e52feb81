"""Writes that are whole or absent."""

import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from rankstill.errors import ConfigError


def make_root(root: str | Path) -> Path:
    """The storage root as an absolute folder that exists and can be written.

    Raises:
        ConfigError: it can't be.
    """
    folder = Path(root).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"storage.root={str(root)!r} can't be written ({error.strerror}); give a folder that can"
        ) from error
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file aside, then rename it into place."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(aside, path)
