"""Numbers that Prometheus reads from an ingress."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.messages import Scores

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PREFIX = "rankstill"


class Observed:
    """What one ingress has seen."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = {"registry": self._registry, "namespace": PREFIX}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **own)
        self.refused = Counter("refused", "Rankings that HAProxy refused, for there was no room.", **own)
        self.latency = Histogram("latency_seconds", "Time to answer.", ["route"], buckets=SECONDS, **own)
        stage = "Time that a stage of a ranking takes."
        self.stages = Histogram("stage_seconds", stage, ["stage", "version"], buckets=SECONDS, **own)
        self.rankings = Counter("rankings", "Rankings by version and outcome.", ["version", "outcome"], **own)
        self.documents = Counter("documents", "Documents ranked.", ["version"], **own)
        self.tokens = Counter("tokens", "Tokens read.", ["version"], **own)
        self.known = Counter("documents_known", "Documents whose vectors were known.", ["version"], **own)
        self.truncated = Counter("documents_truncated", "Documents longer than the model reads.", ["version"], **own)
        self.fill = Histogram(
            "batch_fill",
            "Share of the token budget in the batches of a ranking.",
            ["version"],
            buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
            **own,
        )
        self.under_way = Gauge("rankings_under_way", "Rankings that are being computed.", ["version"], **own)
        self.events = Counter("events", "Events of shoppers.", ["outcome"], **own)
        self.impressions = Counter("impressions", "Rankings kept, or not.", ["outcome"], **own)

    def request(self, route: str, status: int, seconds: float) -> None:
        """One more request."""
        self.requests.labels(route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def scored(self, version: str, scores: Scores) -> None:
        """One more ranking that was answered."""
        self.rankings.labels(version, "answered").inc()
        for stage, seconds in scores.seconds.items():
            self.stages.labels(stage, version).observe(seconds)
        self.documents.labels(version).inc(len(scores.logits_N))
        self.known.labels(version).inc(scores.known)
        self.tokens.labels(version).inc(scores.tokens)
        self.truncated.labels(version).inc(scores.truncated)
        self.fill.labels(version).observe(scores.fill)

    def text(self) -> bytes:
        """All numbers in Prometheus's form."""
        return generate_latest(self._registry)
