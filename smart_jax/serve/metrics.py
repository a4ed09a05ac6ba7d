"""Figures of a running server, in the text that Prometheus reads."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Figures of one application.

    Attributes:
      requests: answered, by route, method and status.
      seconds: that answers took, by route.
      in_flight: requests that are worked on.
      batches: queries that were searched together.
      items: of the index.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        name = "smart_jax_serve"
        how: dict[str, Any] = {"registry": registry}
        self.requests = Counter(f"{name}_requests", "Requests answered.", ["route", "method", "status"], **how)
        self.seconds = Histogram(f"{name}_seconds", "Seconds to the answer.", ["route"], buckets=SECONDS, **how)
        self.in_flight = Gauge(f"{name}_in_flight", "Requests that are worked on.", **how)
        self.batches = Histogram(f"{name}_batch", "Queries that were searched together.", buckets=SIZES, **how)
        self.items = Gauge(f"{name}_items", "Items of the index.", **how)

    def text(self) -> bytes:
        """Returns all figures as of now."""
        return generate_latest(self._registry)
