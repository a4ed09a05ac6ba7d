"""The batch that enters a backbone's jitted function, and what the backbone returns."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8

from smart_jax.models.pixels import Normalisation
from smart_jax.typing import HostOrDevice, register_arrays

_Tree = TypeVar("_Tree")


@register_arrays
@dataclasses.dataclass(frozen=True)
class VisionBatch:
    """Patches of the images of a batch, in G bins of V patches.

    Bin g holds the images of rows g * B / G to (g + 1) * B / G - 1 of the batch, one after another, and padding at its
    end. There is one bin for each row (G = B), unless rows of different sizes make shared bins cheaper.

    Patches are in the processor's order: the merge x merge patches of one visual token are adjacent, so that visual
    token j of a bin comes from patches j * merge**2 to (j + 1) * merge**2 - 1.

    Attributes:
      patches: bytes of the pixels, in the order frame, row, column, channel: E = 3 * patch * patch of them for a patch
        of still images, whose only frame stands for all, or temporal_patch times as many.
      coords: row and column of the patch in its image's grid, for the rotary embedding.
      interp_idx: four cells of the learned grid of positions; None = the backbone has no such grid.
      interp_w: their bilinear weights.
      segment: 1, 2, ..., a number for each frame, within which patches attend to each other; 0 = padding, which attends
        to padding only.
      normalisation: what a byte becomes before the backbone reads it; no array, but part of the structure.
      window: the same as segment for the windows of windowed attention; None = the backbone has none.

    Example:
      >>> import numpy as np
      >>> index, weights = np.zeros((1, 4, 4), np.int32), np.full((1, 4, 4), 0.25, np.float32)
      >>> vision = VisionBatch(
      ...     patches=np.zeros((1, 4, 768), np.uint8), coords=np.array([[[0, 0], [0, 1], [1, 0], [1, 1]]]),
      ...     interp_idx=index, interp_w=weights, segment=np.ones((1, 4), np.int32), normalisation=Normalisation())
      >>> vision.patches.shape
      (1, 4, 768)
    """

    patches: UInt8[HostOrDevice, "G V E"]
    coords: Int[HostOrDevice, "G V 2"]
    interp_idx: Int[HostOrDevice, "G V 4"] | None
    interp_w: Float[HostOrDevice, "G V 4"] | None
    segment: Int[HostOrDevice, "G V"]
    normalisation: Normalisation = dataclasses.field(metadata={"static": True})
    window: Int[HostOrDevice, "G V"] | None = None


@register_arrays
@dataclasses.dataclass(frozen=True)
class AudioBatch:
    """Log mel features of the audio clips of a batch.

    Row b of the batch has clips b * M / B to (b + 1) * M / B - 1, those that it lacks without a frame.

    Attributes:
      features: of frames that are 10 ms apart.
      mask: which frames are audio: a clip's first ones.
      index: number, among all frames of the row's clips that the tower makes, of the soft token that replaces a
        position; -1 = another token. A clip of T features has (T + 3) // 4 of them.

    Example:
      >>> import numpy as np
      >>> features, mask = np.zeros((1, 8, 128), np.float32), np.ones((1, 8), bool)
      >>> audio = AudioBatch(features, mask, index=np.array([[-1, 0, 1, -1]], np.int32))
      >>> int((audio.index >= 0).sum())
      2
    """

    features: Float[HostOrDevice, "M T F"]
    mask: Bool[HostOrDevice, "M T"]
    index: Int[HostOrDevice, "B L"]


@register_arrays
@dataclasses.dataclass(frozen=True)
class Batch:
    """One padded batch of tokenised items, of static shape: what a backbone's jitted function takes.

    Attributes:
      input_ids: the tokens.
      attention_mask: False = padding.
      position_ids: temporal, height and width position of each token (M-RoPE); all three equal in a text.
      keep_mask: the kept tokens, which take part in late interaction.
      index: number, in the row's bin, of the visual token whose features replace this position; -1 = text.
      vision: the patches; None = a batch without any image, which has a smaller compilation of its own.
      pool_mask: tokens whose mean state is the pooled vector; None = the backbone's rule, see `Hidden.pooled`.
      audio: the clips; None = a batch without any.

    Example:
      >>> import numpy as np
      >>> ids, mask = np.array([[101, 7592, 102, 0]], np.int32), np.array([[True, True, True, False]])
      >>> positions = np.broadcast_to(np.arange(4, dtype=np.int32), (3, 1, 4))
      >>> batch = Batch(ids, mask, positions, keep_mask=mask, index=np.full_like(ids, -1), vision=None)
      >>> int(batch.keep_mask.sum())
      3
    """

    input_ids: Int[HostOrDevice, "B L"]
    attention_mask: Bool[HostOrDevice, "B L"]
    position_ids: Int[HostOrDevice, "3 B L"]
    keep_mask: Bool[HostOrDevice, "B L"]
    index: Int[HostOrDevice, "B L"]
    vision: VisionBatch | None
    pool_mask: Bool[HostOrDevice, "B L"] | None = None
    audio: AudioBatch | None = None


@register_arrays
@dataclasses.dataclass(frozen=True)
class Hidden:
    """Pooled and token states that a backbone returns for a batch.

    Attributes:
      pooled: state of the pooling position after the final norm, not normalised: the mean over `Batch.pool_mask` where
        there is one, otherwise that of the last attended position or, of a BERT, as its config says; of width 0 where
        the model has no pooled vector.
      states: states of the chosen layers, in the order asked for; layer -1 is after the final norm.
      tokens: the last states as the model's own late-interaction head projects them; None = it has no such head.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden = Hidden(pooled=jnp.zeros((2, 8)), states=jnp.zeros((2, 5, 3, 8)))
      >>> hidden.states[:, :, -1].shape  # the last of three layers
      (2, 5, 8)
    """

    pooled: Float[Array, "B pooled"]
    states: Float[Array, "B L layers H"]
    tokens: Float[Array, "B L D"] | None = None


def batch_axes(batch: _Tree) -> _Tree:
    """Returns the number of each array's batch axis: 0, and 1 of `position_ids`.

    Args:
      batch: a `Batch`, or a pytree of batches and of arrays whose first axis is that of the batch.

    Returns:
      The pytree with an int in each array's place.

    Example:
      >>> import numpy as np
      >>> ids, mask = np.zeros((2, 3), np.int32), np.ones((2, 3), bool)
      >>> axes = batch_axes(Batch(ids, mask, np.zeros((3, 2, 3), np.int32), mask, ids, vision=None))
      >>> axes.input_ids, axes.position_ids
      (0, 1)
    """

    def axis(path: tuple[jax.tree_util.GetAttrKey, ...], _: object) -> int:
        return int(bool(path) and getattr(path[-1], "name", None) == "position_ids")

    axes: _Tree = jax.tree_util.tree_map_with_path(axis, batch)
    return axes
