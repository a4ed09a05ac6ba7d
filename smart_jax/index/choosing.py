"""The first stage of a search: as the user names it, or as the verdict has it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from smart_jax.index.certificate import Certificate
from smart_jax.index.first_stage import FirstStage, Masks, Weights
from smart_jax.index.snapshot import Snapshot
from smart_jax.index.stages import MARKED, StageName, check_stage

if TYPE_CHECKING:
    from smart_jax.index.engine import Wanted

AFFORDABLE = 2**27  # numbers in tokens that are scored exactly: 10,000 pages of 100 tokens x 128, 0.1 s of a core
PROVISIONAL = 1000  # candidates by pooled vectors, where nothing is certified

Candidates: TypeAlias = int | Literal["auto"] | None


class Provisional(UserWarning):
    """Warning of a search whose first stage no queries have certified.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("ignore", Provisional)  # for one who knows what recall is lost
      ...     warnings.warn("candidates='auto' is provisional", Provisional)
    """


def check_k(k: int) -> None:
    """Raises ValueError where so many hits cannot be asked for."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}: it must be an integer of at least 1")


def check_candidates(candidates: Candidates, first_stage: str | None) -> None:
    """Checks what `search` was asked for.

    Raises:
      ValueError: the number of candidates is none, or a first stage lacks one, or there is none of the name.
    """
    if first_stage is not None:
        check_stage(first_stage)
        if candidates is None or candidates == "auto":
            raise ValueError(f"first_stage is {first_stage!r}, candidates is {candidates!r}: give a number of them")
    elif candidates is None or candidates == "auto":
        return
    if isinstance(candidates, bool) or not isinstance(candidates, int | np.integer) or candidates < 1:
        raise ValueError(f"candidates is {candidates!r}: it must be an integer of at least 1, 'auto' or None")


def first_stage_of(
    wanted: Wanted, snapshot: Snapshot, allowed: Masks, verdict: Mapping[str, Any] | None
) -> FirstStage | None:
    """Returns the first stage of a search; None = all items are scored.

    Args:
      wanted: what the search is to find.
      snapshot: of the index.
      allowed: for each segment, which items may be found; None = all.
      verdict: on first stages, as the catalog has it; None = there is none.

    Raises:
      ValueError: the index does not keep the stage that the user names.
    """
    if wanted.candidates is None:
        return None
    if wanted.candidates == "auto":
        if wanted.weights.late == 0 or _is_affordable(snapshot, allowed):
            return None
        return _of_verdict(wanted.k, wanted.weights, snapshot, verdict)
    name = check_stage(wanted.first_stage or _first_kept(snapshot) or "binary")
    if name == "pooled" and not has_pooled(snapshot):
        raise ValueError("the index holds no pooled vectors: first_stage is 'binary' or 'centroids'")
    if name != "pooled" and name not in snapshot.stages and snapshot.segments:
        raise ValueError(f"the index keeps nothing for {name!r}: call index.keep_stages(['{name}']) or certify first")
    return FirstStage(name, int(wanted.candidates))


def has_pooled(snapshot: Snapshot) -> bool:
    """Tells whether items have pooled vectors; those of multi-vector models are of width 0."""
    return all(segment.embeddings.pooled.shape[1] for segment in snapshot.segments)


def _first_kept(snapshot: Snapshot) -> StageName | None:
    """Returns the first stage of a search that names none; None = the index has nothing for any."""
    if has_pooled(snapshot):
        return "pooled"
    return next((name for name in MARKED if name in snapshot.stages), None)


def pooled_candidates(wanted: Wanted) -> int | None:
    """Returns the number of candidates where pooled vectors are the only first stage; None = all items are scored.

    Raises:
      ValueError: another first stage is named.
    """
    if wanted.first_stage not in (None, "pooled"):
        raise ValueError(f"first_stage is {wanted.first_stage!r}: here it can only be 'pooled'")
    return max(PROVISIONAL, 20 * wanted.k) if wanted.candidates == "auto" else wanted.candidates


def _of_verdict(k: int, weights: Weights, snapshot: Snapshot, verdict: Mapping[str, Any] | None) -> FirstStage | None:
    items, known = len(snapshot), None if verdict is None else Certificate.from_dict(verdict)
    kept = _first_kept(snapshot)
    stage = None if kept is None else FirstStage(kept, max(PROVISIONAL, 20 * k))
    if known is None:
        why = "nothing is certified"
    elif known.candidates is not None and known.stage not in ("pooled", *snapshot.stages):
        why = f"{known!r}, but the index keeps nothing for that stage any more"
    else:
        stage = known.first_stage(k, items)
        if known.applies(k, items, weights):
            return stage
        why = f"the verdict does not fit this search ({known!r})"
    how = "all items are scored" if stage is None else f"{stage.candidates:,} candidates by {stage.name}"
    warnings.warn(
        f"provisionally {how}: {why}; call index.certify(queries)", Provisional, stacklevel=6
    )  # of who calls Index.search
    return stage


def _is_affordable(snapshot: Snapshot, allowed: Masks) -> bool:
    numbers = 0
    for segment, mask in zip(snapshot.segments, allowed, strict=True):
        tokens = segment.embeddings.tokens
        if mask is None or tokens.size <= AFFORDABLE:
            numbers += tokens.size
        else:
            numbers += int(segment.embeddings.lengths[mask].sum()) * tokens.shape[1]
    return numbers <= AFFORDABLE
