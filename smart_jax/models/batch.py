"""The batch that enters a backbone's jitted function, and what the backbone returns."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Bool, Float, Int

from smart_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionBatch:
    """Patches of a batch in G bins: bin g holds the images of the rows g * B / G .. (g + 1) * B / G - 1, one after
    another, padding last. G = B, a bin for each row, unless rows of different sizes make shared ones cheaper.

    Patches are in the processor's order: the merge x merge patches of one visual token are adjacent, so visual
    token j of a bin comes from patches [j * merge**2, (j + 1) * merge**2).
    """

    patches: Float[Array, "G P E"]  # E = channels * temporal_patch * patch * patch, normalised pixel values
    coords: Int[Array, "G P 2"]  # row and column of the patch in its image's grid, for the rotary embedding
    interp_idx: Int[Array, "G P 4"] | None  # four cells of the learned position grid (None = there is no grid) ...
    interp_w: Float[Array, "G P 4"] | None  # ... and their bilinear weights
    segment: Int[Array, "G P"]  # 1, 2, ... one number per attended frame; 0 = padding, which attends to itself only
    window: Int[Array, "G P"] | None = None  # as segment, one number per attention window; None = no windows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One padded batch of static shape: what a backbone's jitted function takes."""

    input_ids: Int[Array, "B L"]
    attention_mask: Bool[Array, "B L"]
    position_ids: Int[Array, "3 B L"]  # temporal, height, width (M-RoPE)
    keep_mask: Bool[Array, "B L"]  # tokens that take part in late interaction (method section 3)
    index: Int[Array, "B L"]  # visual token of the row's bin that replaces this position; -1 = text
    vision: VisionBatch | None  # None = a batch without any image: its own, smaller compilation
    pool_mask: Bool[Array, "B L"] | None = None  # tokens whose mean state is the pooled one; None = the backbone's rule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
    """What a backbone returns."""

    pooled: Float[Array, "B H"]  # state of the pooling position after the final norm, not normalised
    states: Float[
        Array, "B L N H"
    ]  # the N chosen layers' states, in the order asked for; index -1 is after the final norm
    tokens: Float[Array, "B L D"] | None = None  # the last states as the model's own head projects them; None = no head
