"""AdamW or Muon with a mask of weight decay, a schedule of the learning rate and clipping by the global norm."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial

import jax
import optax
from optax import MaskedNode
from optax.contrib import MuonDimensionNumbers, muon

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
# Gains and biases (of LayerNorm, RMSNorm, ...), embedding tables (the learned positions too) and temperatures.
_NOT_DECAYED = re.compile(r"(^|\.)(bias|scale|embedding|log_temperature\.\w+)$")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer; the defaults are those of the paper's adapter run (arXiv:2605.24938).

    AdamW: Loshchilov and Hutter, arXiv:1711.05101. Muon: Jordan et al. 2024, with updates scaled to AdamW's root mean
    square (Liu et al., arXiv:2502.16982), so that both take the same rates and weight decay.
    """

    name: str = "adamw"  # adamw | muon: the linear maps by Muon, the rest by Adam with Nesterov momentum
    learning_rate: float = 1e-3  # the peak
    schedule: str = "cosine"  # constant | linear | cosine | wsd, all after the warm-up
    warmup_ratio: float = 0.03  # share of the steps with a linearly growing rate
    decay_ratio: float = 0.4  # wsd only: share of the steps, at the end, over which the rate falls linearly
    final_ratio: float = 0.0  # rate after the last step, as a share of the peak
    b1: float = 0.9  # decay of the mean of the gradients
    b2: float = 0.999  # decay of the mean of their squares
    eps: float = 1e-8  # added to the root of that
    weight_decay: float = 0.01  # of kernels
    decay_norms: bool = False  # adamw only: of the gains of norms, too, as in the paper's adapter run
    clip_norm: float = 1.0  # global norm of the gradient; 0 = no clipping
    skip_nonfinite: int = 0  # updates in a row that are left out where their gradient is not finite; then the run stops
    momentum: float = 0.95  # muon only: of the linear maps, Nesterov's; b1, b2 and eps are the rest's

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name '{self.name}' is unknown: choose one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule '{self.schedule}' is unknown: choose one of {', '.join(SCHEDULES)}")
        for name in ("warmup_ratio", "decay_ratio", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: it is a share, between 0 and 1")
        for name in ("learning_rate", "weight_decay", "clip_norm", "skip_nonfinite"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: it must not be negative")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Makes the learning rate as a function of the number of updates made so far.

    Warm-up: with W = int(warmup_ratio * steps), update n (from 0) has peak * n / W while n < W. Then, with x the share
    of the remaining updates that is done and f = final_ratio:

        constant  peak
        linear    peak * (1 - x * (1 - f))
        cosine    peak * (f + (1 - f) * (1 + cos(pi * x)) / 2)
        wsd       peak until decay_ratio * steps updates are left, then linear (warm-up, stable, decay:
                  arXiv:2404.06395)

    Args:
      config: says which schedule.
      steps: number of updates of the run.

    Example:
      >>> schedule = make_schedule(OptimizerConfig(learning_rate=1.0, schedule="linear", warmup_ratio=0.5), steps=4)
      >>> [float(schedule(n)) for n in range(5)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_ratio
    warmup = int(config.warmup_ratio * steps)
    rest = max(1, steps - warmup)
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, final, rest)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_ratio)
    else:
        decay = max(1, min(rest, int(config.decay_ratio * steps)))
        after = optax.linear_schedule(peak, final, decay, transition_begin=rest - decay)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, warmup)), after], [warmup])


def decay_mask(params: Mapping[str, object], *, norms: bool = False) -> dict[str, bool]:
    """Says which parameters are decayed: those of linear maps, and an adapter's layer vector.

    Args:
      params: by dotted name.
      norms: whether the gains of norms are, too.

    Returns:
      True or False by name.

    Example:
      >>> decay_mask({"adapter.proj.kernel": 0, "adapter.norm.scale": 0})
      {'adapter.proj.kernel': True, 'adapter.norm.scale': False}
    """
    return {name: (norms and name.endswith(".scale")) or not _NOT_DECAYED.search(name) for name in params}


def make_optimizer(config: OptimizerConfig, steps: int, accumulate: int = 1) -> optax.GradientTransformation:
    """Makes the optimizer: clipping, Adam or Muon, decoupled weight decay by `decay_mask`, the scheduled rate.

    Muon orthogonalises the momentum of each matrix that `decay_mask` names: for an update U of shape [m, n],
    0.2 * sqrt(max(m, n)) * U is applied (arXiv:2502.16982, section 2.2).

    With `accumulate` > 1 the gradients of so many batches are averaged (`optax.MultiSteps`) before they are clipped,
    and the parameters change with the last of them; `steps` counts batches, the schedule updates.

    With `skip_nonfinite` the state is optax's `ApplyIfFiniteState`: an update that is left out changes its counters and
    nothing else. A batch that is left out does not count towards `accumulate`: the next takes its place.

    Args:
      config: says which optimizer.
      steps: number of batches of the run.
      accumulate: number of batches of an update.

    Returns:
      A transformation of parameters that are a dict by dotted name.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"adapter.proj.kernel": jnp.ones((2, 2))}
      >>> optimizer = make_optimizer(OptimizerConfig(schedule="constant", warmup_ratio=0.0, weight_decay=0.0), steps=8)
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print(f"{updates['adapter.proj.kernel'][0, 0]:.4f}")  # Adam's first update is the learning rate
      -0.0010
    """
    rate, mask = make_schedule(config, steps // accumulate), partial(decay_mask, norms=config.decay_norms)
    if config.name == "adamw":
        update = optax.adamw(
            rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=mask
        )
    else:
        update = muon(
            rate,
            beta=config.momentum,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrices,
        )
    clipped = optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update
    if accumulate > 1:
        clipped = optax.MultiSteps(clipped, accumulate).gradient_transformation()
    return optax.apply_if_finite(clipped, config.skip_nonfinite) if config.skip_nonfinite else clipped


def updates_made(state: optax.OptState) -> jax.Array:
    """Returns how many updates an optimizer has made, an int32 scalar; those that were left out do not count.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = make_optimizer(OptimizerConfig(), steps=8)
      >>> int(updates_made(optimizer.init({"adapter.proj.kernel": jnp.ones((2, 2))})))
      0
    """
    return optax.tree_utils.tree_get_all_with_path(state, "count")[0][1]  # all counters of the chain are equal


def _matrices(params: Mapping[str, jax.Array | MaskedNode]) -> dict[str, MuonDimensionNumbers | None]:
    """Says which parameters Muon updates: decayed matrices. optax puts a `MaskedNode` in the place of others."""
    matrices = {name for name, x in params.items() if isinstance(x, jax.Array) and x.ndim == 2}
    return {
        name: MuonDimensionNumbers() if name in matrices and mask else None for name, mask in decay_mask(params).items()
    }
