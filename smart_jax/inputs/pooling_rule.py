"""Pooling rules of multimodal checkpoints: their names, and the tokens whose mean state each makes the pooled one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

_BEFORE = "before:"  # begins the rule that names a token
_WHOLE = ("last", "mean", "mean_all", "none")  # rules that name no token
_RULES = (*_WHOLE, f"{_BEFORE}TOKEN")


def check_pooling(rule: str) -> None:
    """Raises ValueError unless the rule is "last", "mean", "mean_all", "none" or "before:TOKEN"."""
    if rule not in _WHOLE and not named_token(rule):
        raise ValueError(f"pooling is {rule!r}, expected {', '.join(map(repr, _RULES))}")


def named_token(rule: str) -> str | None:
    """Returns TOKEN of the rule "before:TOKEN"; None = another rule."""
    return rule.removeprefix(_BEFORE) if rule.startswith(_BEFORE) else None


def pooled_tokens(
    ids: Int[np.ndarray, " L"], rule: str, *, named: int | None, marks: Sequence[int]
) -> Bool[np.ndarray, " L"] | None:
    """Returns which tokens' mean state is the pooled one; None = that of the last token, which is the model's default.

    Args:
      ids: token ids of the whole prompt.
      rule: "last", "mean", "mean_all", "before:TOKEN", or "none": there is no pooled vector.
      named: id of TOKEN; the pooled state is that of the token before its first place.
      marks: ids that stand around images; with "mean", all from the first mark to the last are pooled, and all tokens
        of a prompt without any; with "mean_all", all tokens of every prompt.

    Example:
      >>> import numpy as np
      >>> pooled_tokens(np.array([5, 6, 1, 6]), "before:<emb>", named=1, marks=()).tolist()
      [False, True, False, False]
      >>> pooled_tokens(np.array([5, 8, 6, 9, 7]), "mean", named=None, marks=(8, 9)).tolist()
      [False, True, True, True, False]
      >>> pooled_tokens(np.array([5, 8, 6, 9, 7]), "mean_all", named=None, marks=(8, 9)).tolist()
      [True, True, True, True, True]
    """
    if rule in ("last", "none"):
        return None
    place = np.arange(len(ids))
    if named is not None:
        return np.asarray(place == np.argmax(ids == named) - 1)
    marked = np.flatnonzero(np.isin(ids, marks))
    if rule == "mean_all" or not len(marked):
        return np.ones(len(ids), bool)
    return np.asarray((place >= marked[0]) & (place <= marked[-1]))
