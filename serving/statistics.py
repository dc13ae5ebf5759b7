"""Work of one served model so far: counts and nanoseconds, as the protocol's statistics report them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Duration:
    """Number and total duration of one kind of event."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count one more occurrence, or several that took ``ns`` together."""
        self.count += count
        self.ns += ns

    def as_dict(self) -> dict[str, int]:
        """Return both numbers."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """Counts of one version of a model. Belongs to the event loop.

    Attributes:
        success: requests answered, from arrival to answer.
        fail: requests not answered.
        queue: waiting of those answered.
        compute: runs they were part of.
        items: items answered: a request of batch 3 counts 3.
        executions: runs of the model.
        batches: runs by items in them.
        last_ms: when the last request came, in milliseconds since 1970.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    items: int = 0
    executions: int = 0
    batches: dict[int, Duration] = field(default_factory=dict)
    last_ms: int = 0

    def ran(self, items: int, compute_ns: int) -> None:
        """Count a run of the model."""
        self.executions += 1
        self.batches.setdefault(items, Duration()).add(compute_ns)

    def answered(self, items: int, total_ns: int, queue_ns: int, compute_ns: int) -> None:
        """Count a request that was answered."""
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.compute.add(compute_ns)
        self.items += items
        self.last_ms = time.time_ns() // 1_000_000

    def failed(self, total_ns: int) -> None:
        """Count a request that was not answered."""
        self.fail.add(total_ns)
        self.last_ms = time.time_ns() // 1_000_000

    def as_dict(self, name: str, version: str) -> dict[str, object]:
        """Return the protocol's statistics object of one version of a model."""
        nothing = Duration().as_dict()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.items,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.as_dict(),
                "fail": self.fail.as_dict(),
                "queue": self.queue.as_dict(),
                "compute_input": nothing,
                "compute_infer": self.compute.as_dict(),
                "compute_output": nothing,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": spent.as_dict(),
                    "compute_output": nothing,
                }
                for size, spent in sorted(self.batches.items())
            ],
        }
