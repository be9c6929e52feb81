"""API keys: who may do what, how often. Only their hashes are kept.

python -m serve.keys --file keys.yaml --name search-backend --role rank --role feedback
"""

import fcntl
import hashlib
import hmac
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankstill.cli import make_parser, run_command
from rankstill.errors import ConfigError
from rankstill.storage import make_parent, write_text

Role = Literal["rank", "feedback", "admin"]
ROLES: tuple[Role, ...] = ("rank", "feedback", "admin")
PREFIX = "rk_"
BURST_SECONDS = 2.0
"""Requests of so much time may come at once."""
LOOK_SECONDS = 1.0
"""How often it is seen whether the file of keys has changed."""
LOG = logging.getLogger("rankstill.keys")

DESCRIPTION = """Make an API key and add its hash to a file of keys. The key itself is printed once, and kept nowhere.

Where serve.keys names such a file, callers have to send `Authorization: Bearer KEY`, or `X-Api-Key`."""


class Key(BaseModel):
    """One caller."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    """Shown in logs."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key."""
    roles: tuple[Role, ...] = Field(default=("rank",), min_length=1)
    """rank asks for rankings, feedback sends events, admin chooses versions and may do all that."""
    requests_per_second: float = Field(default=0.0, ge=0)
    """More are answered 429; 0 is no limit."""

    def may(self, role: Role) -> bool:
        """Whether it has a role."""
        return role in self.roles or "admin" in self.roles


ANYONE = Key(name="anyone", sha256="0" * 64, roles=ROLES)
"""The caller of an endpoint without keys."""


class Keys:
    """All callers of an endpoint; those of a file are read again once it has changed."""

    def __init__(self, keys: tuple[Key, ...], path: str = "", stamp: tuple[int, ...] = ()) -> None:
        """`stamp` is what `path` was like before it was read."""
        self._keys, self._path, self._stamp = keys, path, stamp
        self._look = time.monotonic() + LOOK_SECONDS
        self._room: dict[str, tuple[float, float]] = {}

    @property
    def asked_for(self) -> bool:
        """Whether callers need one; those of a file from which all keys were taken can't have it."""
        return bool(self._keys or self._path)

    def find(self, presented: str) -> Key | None:
        """Whose key this is. It takes the same time whether it is nearly right or not at all."""
        self._refresh()
        hashed = hash_of(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, hashed):
                found = key
        return found

    def wait(self, key: Key) -> float:
        """Seconds after which the caller may ask again; 0, and the request counts, where it may now (token bucket)."""
        if not key.requests_per_second:
            return 0.0
        now, most = time.monotonic(), max(1.0, BURST_SECONDS * key.requests_per_second)
        room, then = self._room.get(key.name, (most, now))
        room = min(most, room + (now - then) * key.requests_per_second)
        short = max(0.0, 1.0 - room)
        self._room[key.name] = (room if short else room - 1.0, now)
        return short / key.requests_per_second

    def _refresh(self) -> None:
        """Have the keys that the file holds now; those it held before, where it can't be used."""
        now = time.monotonic()
        if not self._path or now < self._look:
            return
        self._look = now + LOOK_SECONDS
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = _listed(self._path)
            except ConfigError as error:
                LOG.warning("%s; until then keys stay as they were", error)


def hash_of(key: str) -> str:
    """SHA-256; keys are long and random, so that nothing slower is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: str) -> Keys:
    """The keys of a file, none where `path` is empty.

    Raises:
        ConfigError: it can't be read, holds something else, or no key.
    """
    if not path:
        return Keys(())
    stamp = _stamp(path)
    keys = _listed(path)
    if not keys:
        raise ConfigError(f"serve.keys={path!r} has no key; add one with python -m serve.keys, or unset it")
    return Keys(keys, path, stamp)


def _listed(path: str) -> tuple[Key, ...]:
    """The keys that a file lists, if any."""
    try:
        tree = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        keys = tuple(Key.model_validate(entry) for entry in tree["keys"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "a key"
        raise ConfigError(f"serve.keys={path!r}: {where}: {first['msg']}; make it with python -m serve.keys") from error
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "no list of keys"
        raise ConfigError(f"serve.keys={path!r} can't be read ({reason}); make it with python -m serve.keys") from error
    if len({key.name for key in keys}) < len(keys):
        raise ConfigError(f"serve.keys={path!r} has two keys of one name; rename one")
    return keys


def _stamp(path: str) -> tuple[int, ...]:
    """What tells a file from what it was before; nothing where there is none."""
    try:
        found = Path(path).expanduser().stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def add_key(path: Path, name: str, roles: tuple[Role, ...], requests_per_second: float = 0.0) -> str:
    """Make a key, add its hash to a file (only its owner may read it), and return the key.

    Raises:
        ConfigError: the file holds something else, or that name already.
    """
    made = PREFIX + secrets.token_urlsafe(32)
    key = Key(name=name, sha256=hash_of(made), roles=roles, requests_per_second=requests_per_second)
    make_parent(path, "--file")
    with _alone(path.parent):
        keys = _listed(str(path)) if path.exists() else ()
        if any(one.name == name for one in keys):
            raise ConfigError(
                f"--name {name!r} is in {str(path)!r} already; choose another, or take its lines out first"
            )
        entries = [one.model_dump(mode="json", exclude_unset=True) for one in (*keys, key)]
        write_text(path, yaml.safe_dump({"keys": entries}, sort_keys=False))
        os.chmod(path, 0o600)
    return made


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else who asks for this changes files of a folder meanwhile."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def main() -> None:
    """`python -m serve.keys`."""
    parser = make_parser("serve.keys", DESCRIPTION)
    parser.add_argument("--file", required=True, type=Path, metavar="FILE", help="file of keys, made where it isn't")
    parser.add_argument("--name", required=True, help="who gets it")
    parser.add_argument("--role", action="append", choices=ROLES, help="what it is for (default: rank); repeatable")
    parser.add_argument("--requests-per-second", type=float, default=0.0, help="more are refused; 0 is no limit")
    arguments = parser.parse_args()
    if not arguments.name.strip():
        raise ConfigError("--name is empty; give a word")
    if not 0 <= arguments.requests_per_second < math.inf:
        raise ConfigError(f"--requests-per-second is {arguments.requests_per_second:g}; give a number of 0 or more")
    print(add_key(arguments.file, arguments.name, tuple(arguments.role or ["rank"]), arguments.requests_per_second))


if __name__ == "__main__":
    run_command(main)
