"""Several data sets in one run: each batch comes from one of them, in fixed proportions.

Retrieval training needs batches of one task: documents of another are negatives that teach nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.data.dataset import Source, open_split
from train.data.examples import Examples, Share


def parse_names(text: str) -> dict[str, float | None]:
    """Reads names of data sets and their weights.

    Args:
      text: names with commas between them, each with its weight or without: "pages", "pages=2,charts=1,tables".

    Returns:
      Weights by name; None = not given.

    Raises:
      ValueError: there is no name, one stands there twice, or a weight is not a positive number.

    Example:
      >>> parse_names("pages=2,charts")
      {'pages': 2.0, 'charts': None}
    """
    weights: dict[str, float | None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^\s=]+)\s*(?:=\s*([0-9.eE+-]+)\s*)?", part)
        if match is None or match[1] in weights:
            raise ValueError(f"data.name is '{text}': expected names, each once, as in 'pages' or 'pages=2,charts=1'")
        try:
            weight = None if match[2] is None else float(match[2])
        except ValueError:
            weight = -1.0
        if weight is not None and not 0 < weight < float("inf"):
            raise ValueError(f"data.name is '{text}': the weight of {match[1]} must be a positive number")
        weights[match[1]] = weight
    return weights


def open_examples(
    data_dir: str | Path,
    names: str,
    split: str,
    batch_size: int,
    *,
    seed: int = 0,
    opened: Callable[[str], Source] | None = None,
    **options: Any,
) -> Examples | Mixture:
    """Opens one data set, or several as a mixture.

    A data set without a weight weighs as much as it has batches: all examples are then seen equally often.

    Args:
      data_dir: folder of all data sets.
      names: of the data sets, as `parse_names` reads them.
      split: of each of them.
      batch_size: examples of the global batch, over all processes.
      seed: of the shuffling.
      opened: returns the split of a data set by its name; None = it is opened.
      **options: of `Examples`.

    Returns:
      Endless batches.

    Raises:
      FileNotFoundError: as `open_split`.
      ValueError: as `open_split`, `Examples` and `parse_names`, or some data sets have a weight and some have none.

    Example:
      >>> import tempfile
      >>> import pyarrow as pa
      >>> from pyarrow import parquet
      >>> from train.data import convert
      >>> folder = Path(tempfile.mkdtemp())
      >>> parquet.write_table(pa.table({"query": ["q", "r"], "text": ["one", "two"]}), folder / "train.parquet")
      >>> _ = convert(folder, "pairs", folder / "data", validation_ratio=0)
      >>> sorted(example.query["text"] for example in next(open_examples(folder / "data", "pairs", "train", 2)))
      ['q', 'r']
    """
    weights = parse_names(names)
    missing = [name for name, weight in weights.items() if weight is None]
    if missing and len(missing) < len(weights):
        raise ValueError(f"data.name is '{names}': {', '.join(missing)} has no weight; give all of them one, or none")
    parts = {}
    for name in weights:
        try:
            source = open_split(data_dir, name, split) if opened is None else opened(name)
            parts[name] = Examples(source, batch_size, seed=seed, **options)
        except ValueError as error:
            raise ValueError(f"data set '{name}': {error}") from error
    if len(parts) == 1:
        return next(iter(parts.values()))
    return Mixture(parts, {name: weights[name] or parts[name].batches_per_epoch for name in parts})


class Mixture:
    """Iterator over batches of several sources, each batch of one of them; its position can be saved and restored.

    Batch t comes from the source that lags furthest behind its share of the first t batches: shares are kept within
    one batch at any moment, and the order depends on the weights alone.

    Attributes:
      batches_per_epoch: number of batches in an epoch of each source together.

    Example:
      >>> from train.data import Example
      >>> a, b = ([Example(f"{n}{i}", {"text": n}, {"text": f"{n}{i}"}) for i in range(2)] for n in "ab")
      >>> mixture = Mixture({"a": Examples(a, 2), "b": Examples(b, 2)}, {"a": 2.0, "b": 1.0})
      >>> [next(mixture)[0].query["text"] for _ in range(3)]
      ['a', 'b', 'a']
    """

    def __init__(self, parts: Mapping[str, Examples], weights: Mapping[str, float]):
        """Starts before the first batch.

        Args:
          parts: endless `Examples` by name.
          weights: positive numbers by the same names.
        """
        total = sum(weights.values())
        self._parts, self._shares = dict(parts), {name: weights[name] / total for name in parts}
        self._given = dict.fromkeys(parts, 0)
        self.batches_per_epoch = sum(part.batches_per_epoch for part in parts.values())

    def __iter__(self) -> Mixture:
        return self

    def __next__(self) -> Share:
        """Returns this process's examples of the next batch."""
        drawn = sum(self._given.values()) + 1
        name = max(self._parts, key=lambda n: self._shares[n] * drawn - self._given[n])
        batch = next(self._parts[name])
        self._given[name] += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch given out, in values that JSON can hold."""
        return {"shares": self._shares, "parts": {name: part.get_state() for name, part in self._parts.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which `get_state` was called.

        Args:
          state: what it returned.

        Raises:
          ValueError: the state is of other sources, weights or settings.
        """
        if state.get("shares") != self._shares:
            raise ValueError(
                f"the saved data position is of the mixture {state.get('shares')}, this one is {self._shares}: resume "
                "with the data and weights of the first start, or start a new run"
            )
        for name, part in self._parts.items():
            part.set_state(state["parts"][name])
            self._given[name] = state["parts"][name]["batches"]
