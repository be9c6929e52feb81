"""Writes that are whole or absent."""

import json
import math
import os
import shutil
import socket
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankstill.errors import ConfigError, DamagedError

END_BYTES = 1 << 16
"""So much of a file's beginning and end is held against a checksum; the whole of large files would take too long."""


def make_root(root: str | Path) -> Path:
    """The storage root as an absolute folder that exists and can be written.

    Raises:
        ConfigError: it can't be.
    """
    with _of_root(root):
        folder = Path(root).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def check_root(root: str | Path) -> None:
    """See whether a storage root can be made and written, and leave nothing there.

    Raises:
        ConfigError: it can't be.
    """
    with _of_root(root):
        folder = Path(root).expanduser().resolve()
        there = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryDirectory(dir=there):
            pass


@contextmanager
def _of_root(root: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home, a null byte
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"storage.root={str(root)!r} can't be written ({reason}); give a folder that can") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file aside, then rename it into place."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def number(value: float) -> float | None:
    """As JSON has it: null for what isn't finite."""
    return float(value) if math.isfinite(value) else None


def write_text(path: Path, text: str) -> None:
    """Write a text file aside, then rename it into place."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its name once it is whole."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def work_folder(root: Path, name: str) -> Iterator[Path]:
    """A new folder <root>/partial/<name>.<host>.<pid>.<random> to build in; what isn't renamed away is removed.

    Folders that killed processes of this host left there are removed first.
    """
    partial = root / "partial"
    host = socket.gethostname().replace(".", "-")
    for left in partial.glob(f"*.{host}.*.*"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = partial / f"{name}.{host}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_sizes(folder: Path, sizes: Path) -> None:
    """Write down how long each file in a folder is, and a checksum of its ends, for `check_sizes`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes.parent.mkdir(parents=True, exist_ok=True)
    write_json(sizes, {str(path.relative_to(folder)): [path.stat().st_size, _ends(path)] for path in files})


def check_sizes(folder: Path, sizes: Path, remove: Path | None = None) -> None:
    """Make sure that a folder's files are as long as they were, and begin and end so; later ones may be there too.

    `remove` is the folder without which the next run makes all anew, where that isn't `folder` itself.

    Raises:
        DamagedError: they aren't.
    """
    remedy = f"remove the folder {str(remove or folder)!r} and run again, which makes it anew"
    try:
        known = []
        for name, one in json.loads(sizes.read_text(encoding="utf-8")).items():
            size, ends = (one, None) if isinstance(one, int) else one
            known.append((name, size, ends))
    except FileNotFoundError:  # of a folder from before sizes were written; in older ones they are without checksums
        return
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{str(sizes)!r} doesn't tell the sizes of files; {remedy}") from error
    for name, size, ends in known:
        path = folder / name
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise DamagedError(f"{str(path)!r} holds {found:,} of {size:,} bytes; {remedy}")
        if size and ends is not None and _ends(path) != ends:
            raise DamagedError(f"{str(path)!r} isn't what was written; {remedy}")


def _ends(path: Path) -> int:
    """Checksum of a file's beginning and end."""
    with path.open("rb") as stream:
        begin = zlib.crc32(stream.read(END_BYTES))
        stream.seek(max(stream.tell(), path.stat().st_size - END_BYTES))
        return zlib.crc32(stream.read(), begin)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def make_parent(path: Path, field: str) -> None:
    """Make the folder that `path` is to be in.

    Raises:
        ConfigError: it can't be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{field}: {str(path)!r} can't be written ({error.strerror}); give another folder") from error
