"""Result of an evaluation of one benchmark: the metrics of every query by every method."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Real

from smart_jax.files import read_json, write_whole_text


@dataclasses.dataclass(frozen=True)
class Result:
    """Metrics of one benchmark, query by query.

    Attributes:
      benchmark: name of the benchmark.
      query_ids: ids of the Nq queries.
      documents: size of the corpus.
      local: whether each query ranked only its own candidates.
      values: one value per query, by method, then metric.
      seconds: wall time by stage: "encode", "encode with adapter", "score".
      bytes_per_document: mean size of a document in the index that a method needs; methods without vectors are left
        out.

    Example:
      >>> values = {"late": {"hit@1": np.array([1.0, 0.0])}}
      >>> Result("pages", ["q0", "q1"], documents=7, local=False, values=values, seconds={}).mean("late", "hit@1")
      0.5
    """

    benchmark: str
    query_ids: Sequence[str]
    documents: int
    local: bool
    values: Mapping[str, Mapping[str, Real[np.ndarray, " Nq"]]]
    seconds: Mapping[str, float]
    bytes_per_document: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes a JSON file, whole or not at all."""
        described = dataclasses.asdict(self) | {
            "query_ids": list(self.query_ids),
            "values": {m: {name: x.tolist() for name, x in of.items()} for m, of in self.values.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole_text(path, json.dumps(described) + "\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Reads what `save` wrote; raises OSError or ValueError where it cannot."""
        described = read_json(path, remedy="remove it, and evaluate again")
        try:
            values = {m: {k: np.array(x, float) for k, x in of.items()} for m, of in described.pop("values").items()}
            result = cls(**described, values=values)
            if any(x.shape != (len(result.query_ids),) for of in values.values() for x in of.values()):
                raise ValueError("a metric has not one value for each query")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no result ({error}): remove it, and evaluate again") from error
        return result

    def mean(self, method: str, metric: str) -> float:
        """Returns a method's mean over the queries."""
        return float(self.values[method][metric].mean())
