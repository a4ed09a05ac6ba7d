"""Groups of benchmarks that are averaged together, and what others have published for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from eval.reports.published import Published


@dataclasses.dataclass(frozen=True)
class Group:
    """Benchmarks that are reported as one figure.

    Attributes:
      name: of the group.
      metrics: the primary metric of each of its benchmarks, by name and in the table's order, whether it is run or not.
      published: figures to print beside ours.

    Example:
      >>> Group("both", {"pages": "ndcg@5", "clips": "hit@1"}).name
      'both'
    """

    name: str
    metrics: Mapping[str, str]
    published: Sequence[Published] = ()


def check_groups(groups: Sequence[Group], names: Sequence[str], metrics: Sequence[str]) -> None:
    """Checks that a run of these benchmarks and metrics gives every group's primary figures.

    Raises:
      ValueError: a primary metric is not among the metrics.

    Example:
      >>> check_groups([Group("both", {"pages": "ndcg@5"})], names=["pages"], metrics=["ndcg@5", "mrr"])
    """
    for group in groups:
        lacking = sorted({metric for name, metric in group.metrics.items() if name in names} - set(metrics))
        if lacking:
            raise ValueError(
                f"group {group.name} is reported by {', '.join(lacking)}, and the metrics are {', '.join(metrics)}: "
                "add it to config.metrics"
            )
