"""Hidden states of a batch of items that were computed before: what an objective takes instead of their tokens."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Bool, Float, Num

from smart_jax.models import Hidden
from smart_jax.typing import HostOrDevice, register_arrays


@register_arrays
@dataclasses.dataclass(frozen=True)
class StatesBatch:
    """States of a frozen backbone for B items, their kept tokens first in each row.

    Attributes:
      pooled: pooled states.
      states: states of the chosen layers; padding is zero.
      keep_mask: True for kept tokens, False for padding.
      scales: what 8-bit states are multiplied by, one for each token and layer; None = the states are as they are.

    Example:
      >>> import numpy as np
      >>> states = np.full((1, 2, 1, 4), 127, np.int8)
      >>> batch = StatesBatch(np.ones((1, 4)), states, np.ones((1, 2), bool), np.full((1, 2, 1), 0.5, np.float32))
      >>> float(batch.hidden().states[0, 0, 0, 0])
      63.5
    """

    pooled: Float[HostOrDevice, "B H"]
    states: Num[HostOrDevice, "B L layers H"]
    keep_mask: Bool[HostOrDevice, "B L"]
    scales: Float[HostOrDevice, "B L layers"] | None = None

    def hidden(self) -> Hidden:
        """Returns what the backbone would."""
        pooled, states = jnp.asarray(self.pooled), jnp.asarray(self.states)
        if self.scales is not None:
            states = states.astype(jnp.float32) * self.scales[..., None]
        return Hidden(pooled, states)
