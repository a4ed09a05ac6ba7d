"""Texts longer than a model reads at once: windows that overlap, and the vectors of these joined into one item's.

Each token is taken from the window in which it is further from the ends; the pooled vector is the mean of the windows',
by their numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from smart_jax.retrieval import Embeddings
from smart_jax.vectors import l2_normalise_on_host

OVERLAP = 32  # tokens that neighbouring windows share, about; at most a quarter of a window


class Window(NamedTuple):
    """A part of a text that the model reads at once.

    Attributes:
      text: of the window.
      first, last: the kept tokens first:last of the whole text that it has.
    """

    text: str
    first: int
    last: int


def windows(preprocessor: Any, text: str, *, instruction: str | None = None) -> list[Window]:
    """Returns the windows of a text, in order; a single one where the model reads it whole.

    Args:
      preprocessor: of a model of texts, which cuts what is too long.
      text: any.
      instruction: that the model is given with it.
    """
    given = preprocessor.settings.default_instruction or "" if instruction is None else instruction
    # With the prefix: what it takes of the room, and a tokenizer may read a first word in another way.
    lowered = (given + text).lower() if preprocessor.lower_case else given + text
    encoded = preprocessor.tokenizer(lowered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = np.asarray([start for start, _ in encoded["offset_mapping"]], np.int64) - len(given)
    kept = ~np.isin(encoded["input_ids"], preprocessor.tokenizer.all_special_ids)  # unknown words are not
    prefix = int(np.searchsorted(starts, 0))
    starts, before = starts[prefix:], np.cumsum([0, *kept[prefix:]]).tolist()
    room = preprocessor.length_buckets[-1] - prefix - _specials(preprocessor)
    if len(starts) <= room or len(lowered) != len(given) + len(text):
        return [Window(text, 0, before[-1])]
    numbers = encoded.word_ids()[prefix:]
    words = np.asarray([i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1]])
    overlap, cut, first = min(OVERLAP, room // 4), [], 0
    while True:
        last = len(starts) if first + room >= len(starts) else _word(words, first, first + room)
        begin, end = int(starts[first]), len(text) if last == len(starts) else int(starts[last])
        if before[last] > before[first]:
            cut.append(Window(text[begin:end].rstrip(), before[first], before[last]))
        if last == len(starts):
            return cut or [Window(text, 0, 0)]
        first = _word(words, first, max(first + 1, last - overlap))


def _word(words: Int[np.ndarray, " words"], after: int, most: int) -> int:
    """Returns the last token after one and up to another that begins a word, or the other if there is none."""
    found = int(words[np.searchsorted(words, most, side="right") - 1])
    return found if found > after else most


def join(parts: Embeddings, cut: Sequence[Window], prefix: int) -> Embeddings:
    """Returns the embeddings of one item from those of its windows.

    Args:
      parts: embeddings of the windows.
      cut: the windows, of one text.
      prefix: number of tokens of the instruction, which each window's embeddings begin with.

    Raises:
      ValueError: a window has another number of tokens than expected.
    """
    if len(cut) == 1:
        return parts
    inner = [(after.first + before.last + 1) // 2 for before, after in pairwise(cut)]
    edges = [cut[0].first, *inner, cut[-1].last]
    kept = [parts.tokens[:prefix]]
    for i, window in enumerate(cut):
        start, stop = parts.offsets[i : i + 2].tolist()
        if stop - start != prefix + window.last - window.first:
            raise ValueError(
                f"window {i} of a text has {stop - start} vectors for {window.last - window.first} tokens after "
                f"{prefix} of the instruction: index this text in parts"
            )
        begin = start + prefix - window.first
        kept.append(parts.tokens[begin + edges[i] : begin + edges[i + 1]])
    tokens = np.concatenate(kept)
    weights = np.asarray([window.last - window.first for window in cut], np.float32)
    pooled = l2_normalise_on_host(weights @ parts.pooled.astype(np.float32))[None]
    offsets = np.asarray([0, len(tokens)])
    return Embeddings(pooled.astype(parts.pooled.dtype), tokens, offsets, provenance=parts.provenance)


def prefix_tokens(preprocessor: Any, instruction: str | None) -> int:
    """Returns how many kept tokens of every item are the instruction's."""
    given = preprocessor.settings.default_instruction or "" if instruction is None else instruction
    if not given:
        return 0
    ids = preprocessor.tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
    return int((~np.isin(ids, preprocessor.tokenizer.all_special_ids)).sum())


def _specials(preprocessor: Any) -> int:
    return int(preprocessor.tokenizer.num_special_tokens_to_add())
