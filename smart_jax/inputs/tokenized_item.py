"""What preprocessing makes of one item: token ids, kept tokens and patches, unpadded."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from smart_jax.models import Grid


@dataclasses.dataclass(frozen=True)
class TokenizedItem:
    """One item as the backbone reads it, before padding.

    Attributes:
      input_ids: token ids, int32.
      keep: kept tokens, which take part in late interaction.
      grids: sizes of its videos (or of their temporal patches, each like an image) and then of its images, in patches.
      patches: float32 patches of all of these, one after another.
      steps: temporal steps of the visual tokens, as in `smart_jax.models.mrope_positions`.
      pool: tokens whose mean state is the pooled one; None = the architecture's rule.

    Example:
      >>> import numpy as np
      >>> ids, keep = np.array([7, 8, 9], np.int32), np.array([False, True, True])
      >>> item = TokenizedItem(ids, keep, grids=(), patches=np.zeros((0, 0), np.float32))
      >>> len(item), len(item.patches)
      (3, 0)
    """

    input_ids: Int[np.ndarray, " L"]
    keep: Bool[np.ndarray, " L"]
    grids: tuple[Grid, ...]
    patches: Float[np.ndarray, "V E"]
    steps: tuple[float, ...] = ()
    pool: Bool[np.ndarray, " L"] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)
