"""Configuration of the loop: when a student is refreshed, what it has to show, and how it is tried on shoppers."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from rankstill.model_config import Section

if TYPE_CHECKING:
    from rankstill.canary import Rules


class Canary(Section):
    """How a challenger is tried on shoppers."""

    metric: Literal["click", "purchase"] = "click"
    """What a request counts as a success for: that anything was clicked (or more), or bought."""
    shares: tuple[float, ...] = Field(default=(0.01, 0.05, 0.25, 0.5), min_length=1)
    """The challenger's share of the traffic, stage by stage."""
    requests: tuple[int, ...] = (200, 1000, 5000)
    """Its requests in each stage but the last, after which the next one begins."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that a challenger which is no better is promoted."""
    effect: float = Field(default=0.05, gt=0)
    """Gain that matters, as a share of the champion's metric; a challenger that surely gains less is given up."""
    most: int = Field(default=200_000, ge=1)
    """Requests of the challenger after which one that has shown nothing is given up."""
    patience: float = Field(default=1_209_600.0, gt=0)
    """Seconds after which it is given up in any case."""
    attribution: float = Field(default=60.0, ge=0)
    """Seconds for which shoppers have time to click before a request counts."""
    shadow: float = Field(default=0.5, gt=0, le=1)
    """Share of the requests of which a challenger gets copies first, whose answers nobody sees."""
    copies: int = Field(default=200, ge=20)
    """Copies that it has to answer before it answers shoppers."""
    agreement: float = Field(default=0.3, ge=-1, le=1)
    """Mean rank correlation with the champion's answers, on copies, below which a challenger is refused."""
    errors: float = Field(default=0.005, ge=0, lt=1)
    """Share of failed answers that is nobody's fault; a challenger with surely more than this and the champion goes."""
    slower_ms: float = Field(default=50.0, gt=0)
    """Milliseconds that its mean answer may take longer than the champion's."""
    poll: float = Field(default=2.0, gt=0)
    """Seconds between looks."""

    @model_validator(mode="after")
    def _staged(self) -> "Canary":
        if len(self.requests) != len(self.shares) - 1:
            raise ValueError(
                f"requests has {len(self.requests)} numbers for {len(self.shares)} shares; give one for each but the"
                " last"
            )
        if not all(0 < share < 1 for share in self.shares) or min(self.requests, default=1) < 1:
            raise ValueError("shares or requests are out of range; give shares in (0, 1), and requests of 1 or more")
        return self

    @property
    def rules(self) -> "Rules":
        """For `verdict`."""
        from rankstill.canary import Rules  # which imports numpy, and a config is read by every --help

        most = (*map(float, self.requests), float("inf"))
        return Rules(self.alpha, self.effect, self.most, tuple(zip(self.shares, most, strict=True)))


class Refresh(Section):
    """When and how a student learns from what shoppers did."""

    least_events: int = Field(default=500, ge=1)
    """New events without which nothing is learnt."""
    days: int = Field(default=28, ge=1)
    """Days back from which feedback counts."""
    queries: int = Field(default=5000, ge=1)
    """Queries, at most, that are learnt from: those that were asked most."""
    items: int = Field(default=30, ge=2)
    """Items of each, at most: those that were shown most."""
    candidates: int = Field(default=4, ge=0)
    """Further items of each that the teacher labels, found by BM25."""
    new_queries: int = Field(default=500, ge=0)
    """Queries made of the words of items that no judgement knows and nobody clicked, which the teacher labels."""
    replay: float = Field(default=0.5, ge=0, lt=1)
    """Share of the lists that come from before, so that nothing is forgotten."""
    positions: int = Field(default=10, ge=2)
    """Positions whose examination is estimated."""
    clip: float = Field(default=10.0, ge=1)
    """Largest weight of a click."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the lists."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of a refresh."""
    margin: float = Field(default=0.01, ge=0)
    """nDCG@10 on the held-out judgements that may surely be lost, and no more."""
    slice_margin: float = Field(default=0.03, ge=0)
    """The same for each slice of them."""
    agreement_margin: float = Field(default=0.02, ge=0)
    """Pairwise agreement with the teacher, on fresh queries, that may be lost."""
    slower: float = Field(default=1.25, ge=1)
    """How many times the champion's median time a ranking may take."""
    calibration: float = Field(default=0.05, ge=0)
    """Calibration error that may be gained."""
    drift: float = Field(default=0.25, gt=0)
    """Population stability index of queries, items or scores above which a student is refreshed with fewer events."""
    canary: Canary = Canary()
    """How it is tried on shoppers."""
