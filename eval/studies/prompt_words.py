"""Tokens that are words of the prompt, known from what all items share."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from smart_jax.retrieval import States


def prompt_words(states: States) -> Bool[np.ndarray, " T"]:
    """Returns which tokens all items begin with or end in, up to the first or last visual token.

    These are the words of the template and of the instruction, given enough different items. Of a single item nothing
    is known, and none of its tokens is marked.
    """
    is_prompt = np.zeros(len(states.ids), bool)
    if len(states) < 2:
        return is_prompt
    ids = np.where(states.visual, -1 - np.arange(len(states.ids)), states.ids)  # a visual token equals no other
    starts, stops = states.offsets[:-1], states.offsets[1:]
    shortest = int(states.lengths.min())
    first = _shared(np.stack([ids[starts + i] for i in range(shortest)]))
    last = min(_shared(np.stack([ids[stops - 1 - i] for i in range(shortest)])), shortest - first)
    for i in range(first):
        is_prompt[starts + i] = True
    for i in range(last):
        is_prompt[stops - 1 - i] = True
    return is_prompt


def _shared(ids: Int[np.ndarray, "places N"]) -> int:
    """Returns at how many places all items have the same id, up to the first where they differ."""
    equal = (ids == ids[:, :1]).all(axis=1)
    return len(equal) if equal.all() else int(equal.argmin())
