"""Items to batches of like length, a window of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from smart_jax.inputs.item import Items
from smart_jax.inputs.preprocessor import Preprocessor
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import Batch

WINDOW = 8  # batches tokenised and sorted by length at a time: bounds host memory on a long corpus

_T = TypeVar("_T")


def batches_by_length(
    preprocessor: Preprocessor,
    items: Items,
    batch_size: int,
    *,
    instruction: str | None = None,
    query: bool = False,
    shards: int | None = None,
) -> Iterator[tuple[dict[int, TokenizedItem], Batch]]:
    """Yields each batch with its items by their numbers; items of like length share one, so that little is padding.

    Args:
      preprocessor: of the model.
      items: from `parse_items`.
      batch_size: rows of every batch, the last of which is filled up.
      instruction, query: as in `Preprocessor.tokenize`.
      shards: number of devices that share a batch, see `MultimodalCollator.collate`.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.inputs import open_preprocessor, parse_items
      >>> from smart_jax.models import load_config
      >>> preprocessor = open_preprocessor(resolve("tiny"), load_config(resolve("tiny")))
      >>> items = parse_items(["a long text " * 9, "b", "c"])
      >>> [list(chosen) for chosen, batch in batches_by_length(preprocessor, items, 2)]
      [[1, 2], [0]]
    """
    for window in _chunks(range(len(items)), WINDOW * batch_size):
        tokenized = {
            i: preprocessor.tokenize(items[i], instruction=instruction, query=query, name=f"item {i}") for i in window
        }
        by_length = sorted(tokenized, key=lambda i: (len(tokenized[i].patches), len(tokenized[i])))
        for numbers in _chunks(by_length, batch_size):
            chosen = {i: tokenized[i] for i in numbers}
            yield chosen, preprocessor.collate(list(chosen.values()), batch_size=batch_size, shards=shards)


def _chunks(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (values[i : i + size] for i in range(0, len(values), size))
