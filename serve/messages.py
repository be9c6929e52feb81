"""What the ingress asks of rankers, and what they answer; light to import, as the ingress is."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankstill.text import normalise


@dataclass(frozen=True)
class ScoreRequest:
    """Documents of one request."""

    query: str
    texts: list[str]
    """Of each document; empty where only its id was given."""
    ids: list[str] = field(default_factory=list)
    """Item id of each document, empty where it has none; an empty list where none has."""
    max_tokens_per_doc: int | None = None
    seconds: float = 60.0
    """Within which the answer is of use."""

    @property
    def bare(self) -> tuple[int, ...]:
        """Documents of which there is nothing but an id."""
        return tuple(place for place, one in enumerate(self.ids) if one and not normalise(self.texts[place]))


GREETING = ScoreRequest("warm up", ["the title of an item has a few words"] * 16)
"""What rankers are asked before anybody waits for them."""


@dataclass(frozen=True)
class Scores:
    """Answer to a ScoreRequest, in the order of its documents."""

    logits_N: NDArray[np.float32]
    relevance_N: NDArray[np.float64]
    """In [0, 1]: how relevant a document is, calibrated where the student's artifact says how."""
    tokens: int
    """That the student read."""
    truncated: int
    """Documents that were longer than it reads."""
    known: int = 0
    """Documents whose vectors were known ahead."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That each stage took."""
    fill: float = 0.0
    """Share of the token budget that the last batch used."""
    busy: float = 0.0
    """Seconds for which a replica computes such a request where it has nothing else to do."""


@dataclass(frozen=True)
class Refusal:
    """What a replica answers where it can't give scores."""

    reason: str
    """overloaded, late or unknown."""
    seconds: float = 0.0
    """After which to try again."""
    places: tuple[int, ...] = ()
    """Documents that are unknown here: an id without a text, of an item that isn't in the index."""
