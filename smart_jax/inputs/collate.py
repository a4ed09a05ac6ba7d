"""One item as a row of tokens, and rows as the padded text arrays of a batch: sizes, buckets, padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from smart_jax.models import Batch, Grid


@dataclasses.dataclass(frozen=True)
class Row:
    """One item, unpadded."""

    input_ids: Int[np.ndarray, " L"]  # int32
    keep: Bool[np.ndarray, " L"]  # takes part in late interaction
    grids: tuple[Grid, ...]  # of its videos (or their temporal patches, each like an image) and then images, in patches
    patches: Float[np.ndarray, "P E"]  # float32, of all of them one after another
    steps: tuple[float, ...] = ()  # as in `mrope_positions`
    pool: Bool[np.ndarray, " L"] | None = None  # their mean state is the pooled one; None = the architecture's rule


def pad_text(
    rows: Sequence[Row],
    shape: tuple[int, int],
    positions: Callable[[Row], Int[np.ndarray, "3 L"]],
    *,
    pad_id: int,
    left: bool,
) -> Batch:
    """The text arrays of a batch [B, L], without any visual token.

    A row more than there are is one attended padding token and nothing kept: a mean or a softmax over nothing would be
    NaN.
    """
    B, L = shape
    batch = Batch(
        input_ids=np.full((B, L), pad_id, np.int32),
        attention_mask=np.zeros((B, L), bool),
        position_ids=np.zeros((3, B, L), np.int32),
        keep_mask=np.zeros((B, L), bool),
        index=np.full((B, L), -1, np.int32),
        vision=None,
        pool_mask=None if rows[0].pool is None else np.zeros((B, L), bool),
    )
    for b, row in enumerate(rows):
        at = span(row, L, left=left)
        batch.input_ids[b, at], batch.keep_mask[b, at], batch.attention_mask[b, at] = row.input_ids, row.keep, True
        batch.position_ids[:, b, at] = positions(row)
        if batch.pool_mask is not None:
            batch.pool_mask[b, at] = row.pool
    for mask in (batch.attention_mask, batch.pool_mask):
        if mask is not None:
            mask[len(rows) :, L - 1 if left else 0] = True
    return batch


def span(row: Row, length: int, *, left: bool) -> slice:
    """Where a row's tokens stand in its padded row."""
    n = len(row.input_ids)
    return slice(length - n, length) if left else slice(0, n)


def check_collate(rows: Sequence[Row], padding_side: str) -> None:
    """Raises ValueError: no rows, or an unknown side."""
    if not rows:
        raise ValueError("no rows to collate: pass at least one")
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side is {padding_side!r}, expected 'right' or 'left'")


def check_sizes(**sizes: tuple[int, int]) -> None:
    """Raises ValueError where a size is less than its need; each is (size, need)."""
    for name, (size, need) in sizes.items():
        if size < need:
            raise ValueError(f"{name} is {size}, but the rows need {need}")


def octaves(smallest: int, largest: int) -> list[int]:
    """smallest, 1.5 times it, twice it, three times it, ...: at most a third of a padded row is padding."""
    powers = [smallest << i for i in range(max(0, (largest // smallest).bit_length()))]
    return sorted(powers + [p + p // 2 for p in powers])


def buckets(sizes: Iterable[int], largest: int, unit: int) -> tuple[int, ...]:
    """Ascending multiples of `unit` below `largest`, and `largest`."""
    rounded = {-(-size // unit) * unit for size in sizes}
    return (*sorted(size for size in rounded if size < largest), largest)


def bucket(n: int, buckets: tuple[int, ...], unit: str) -> int:
    """The smallest bucket that holds n; ValueError where none does."""
    for size in buckets:
        if n <= size:
            return size
    raise ValueError(f"a row has {n} {unit}, the largest bucket holds {buckets[-1]}: raise max_length")
