"""Tokenised items as the padded text arrays of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import Batch


def pad_text(
    items: Sequence[TokenizedItem],
    shape: tuple[int, int],
    positions: Callable[[TokenizedItem], Int[np.ndarray, "3 L"]],
    *,
    pad_id: int,
    left: bool,
) -> Batch:
    """Returns the text arrays of a batch [B, L], without any visual token.

    Rows beyond the items hold one attended padding token and no kept one: a mean or a softmax over nothing would be
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
        pool_mask=None if items[0].pool is None else np.zeros((B, L), bool),
    )
    for b, item in enumerate(items):
        at = span(item, L, left=left)
        batch.input_ids[b, at], batch.keep_mask[b, at], batch.attention_mask[b, at] = item.input_ids, item.keep, True
        batch.position_ids[:, b, at] = positions(item)
        if batch.pool_mask is not None:
            batch.pool_mask[b, at] = item.pool
    for mask in (batch.attention_mask, batch.pool_mask):
        if mask is not None:
            mask[len(items) :, L - 1 if left else 0] = True
    return batch


def span(item: TokenizedItem, length: int, *, left: bool) -> slice:
    """Returns where an item's tokens stand in its padded row."""
    n = len(item)
    return slice(length - n, length) if left else slice(0, n)


def check_collate(items: Sequence[TokenizedItem], padding_side: str) -> None:
    """Raises ValueError where there are no items, or the side is unknown."""
    if not items:
        raise ValueError("no items to collate: pass at least one")
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side is {padding_side!r}, expected 'right' or 'left'")
