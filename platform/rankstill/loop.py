"""The state of the loop of one name: a small file that is whole or absent, and another that people write.

Whoever acts holds the lease, writes down what is to be done, does it, and writes down that it was. Every act can be
done twice, so that a loop which was killed anywhere begins with what it had written down last.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from rankstill.canary import Tally
from rankstill.errors import DamagedError
from rankstill.lease import Lease
from rankstill.storage import make_root, write_text
from rankstill.trees import open_tree

FOLDER = "loop"
DECISIONS = 50
"""Latest decisions that are kept here; the registry keeps what became of each version."""
Phase = Literal["idle", "refreshing", "shadow", "canary", "promoting", "withdrawing"]
Order = Literal["promote", "rollback"]


class Part(BaseModel):
    """A part of what is written down."""

    model_config = ConfigDict(extra="forbid")


class Stage(Part):
    """A share of the traffic that a challenger has, or had, and what came of it."""

    share: float
    begun: datetime
    ended: datetime | None = None
    champion: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Requests, sum of their metric, sum of its squares."""
    challenger: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def tallies(self) -> tuple[Tally, Tally]:
        """Of champion and challenger."""
        return Tally(*self.champion), Tally(*self.challenger)


class Trial(Part):
    """A challenger that is tried on shoppers."""

    champion: str
    challenger: str
    begun: datetime
    after: tuple[int, int]
    """Groups of impressions and of events before it."""
    placed: bool = False
    """Whether the endpoint has been told what this stage wants."""
    before: dict[str, dict[str, float]] = Field(default_factory=dict)
    """How versions did, as ingresses had counted when copies began."""
    stages: list[Stage] = Field(default_factory=list)
    reason: str = ""
    """Why it is promoted or withdrawn."""
    numbers: dict[str, Any] = Field(default_factory=dict)
    """Those that decided."""


class Decision(Part):
    """What became of something."""

    at: datetime
    what: str
    """refreshed, refused, promoted, withdrawn or failed."""
    version: str = ""
    why: str
    numbers: dict[str, Any] = Field(default_factory=dict)


def table(decisions: Iterable[Decision]) -> list[list[str]]:
    """Decisions as a table tells them, its header first; times are UTC."""
    rows = [[f"{one.at:%Y-%m-%d %H:%M:%S}", one.what, one.version, one.why] for one in decisions]
    return [["when", "what", "version", "why"], *rows]


class State(Part):
    """Where the loop is."""

    phase: Phase = "idle"
    upto: dict[str, Any] | None = None
    """Of the refresh that is under way: how far feedback counts."""
    learnt: tuple[int, int] = (-1, -1)
    """Groups of impressions and events that the last refresh knew."""
    trial: Trial | None = None
    decisions: list[Decision] = Field(default_factory=list)

    def decided(self, what: str, version: str, why: str, **numbers: Any) -> "State":
        """With one more decision."""
        one = Decision(at=datetime.now(UTC), what=what, version=version, why=why, numbers=numbers)
        return self.model_copy(update={"decisions": [*self.decisions, one][-DECISIONS:]})


class Curve(RootModel[dict[str, Any] | None]):
    """How shoppers take to the versions, as `curve` tells it."""

    root: dict[str, Any] | None = None


class Control(Part):
    """What people want of it."""

    paused: bool = False
    """Nothing new is begun, and what is tried stays as it is."""
    pinned: bool = False
    """The champion stays, whatever is found."""
    order: Order | None = None
    """What is to be done next, once."""


class Loop:
    """The files of one name's loop under a storage root."""

    def __init__(self, root: Path, name: str) -> None:
        self._folder, self._name = root / FOLDER, name

    def _path(self, what: str) -> Path:
        return self._folder / f"{self._name}.{what}.json"

    @property
    def exists(self) -> bool:
        """Whether it was ever started."""
        return self._path("state").exists() or self._path("curve").exists()

    @property
    def state(self) -> State:
        """Where it is.

        Raises:
            DamagedError: the file isn't what was written.
        """
        return self._read("state", State)

    @property
    def control(self) -> Control:
        """What people want."""
        return self._read("control", Control)

    def write(self, state: State) -> State:
        """Write down where it is."""
        make_root(self._folder)
        write_text(self._path("state"), state.model_dump_json(indent=2))
        return state

    def draw(self, curve: Mapping[str, Any]) -> None:
        """Write down how shoppers take to the versions (`curve`)."""
        write_text(self._path("curve"), json.dumps(curve))

    def told(self) -> dict[str, Any]:
        """Everything, for those who look."""
        curve = self._read("curve", Curve).root
        return {"state": self.state.model_dump(mode="json"), "control": self.control.model_dump(), "curve": curve}

    def want(self, **changes: Any) -> Control:
        """Write down what people want, beside what they wanted before."""
        make_root(self._folder)
        control = self.control.model_copy(update=changes)
        write_text(self._path("control"), control.model_dump_json())
        return control

    @contextmanager
    def alone(self, waiting: Any = None) -> Iterator[Lease]:
        """Act alone: others wait, until this one is done or dead."""
        make_root(self._folder)
        with Lease(open_tree(str(self._folder), "storage.root"), f"{self._name}.lease").held(waiting) as lease:
            yield lease

    def _read(self, what: str, kind: Any) -> Any:
        path = self._path(what)
        try:
            return kind.model_validate_json(path.read_bytes()) if path.exists() else kind()
        except (OSError, ValidationError) as error:
            reason = str(error)
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise DamagedError(
                f"{str(path)!r} can't be read ({reason}); restore it, or remove it to begin anew"
            ) from error
