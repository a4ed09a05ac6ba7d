"""Pooling: how the states of a sequence become one vector, and which rule a BERT's folder states."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smart_jax.files import Checkpoint, path_inside, shown
from smart_jax.models.sentence_modules import read_modules, read_part
from smart_jax.typing import HostOrDevice

POOLINGS = ("mean", "cls")
_MODULES = ("Transformer", "Pooling", "Normalize")  # modules of sentence-transformers that are computed here
# Flags of sentence-transformers, and what its newer pooling_mode calls them.
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def mean_state(states: Float[Array, "B L *rest"], mask: Bool[HostOrDevice, "B L"]) -> Float[Array, " B *rest"]:
    """Returns the mean of each row's states over its positions where `mask` is true, float32.

    Example:
      >>> mean_state(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
      [[3.0]]
    """
    mask = jnp.asarray(mask)
    weights = (mask / mask.sum(axis=1, keepdims=True)).reshape(*mask.shape, *[1] * (states.ndim - 2))
    # Not a product of matrices, which accelerators round to bfloat16.
    return (states.astype(jnp.float32) * weights).sum(axis=1)


def first_state(states: Float[Array, "B L *rest"], mask: Bool[HostOrDevice, "B L"]) -> Float[Array, " B *rest"]:
    """Returns each row's state at its first position where `mask` is true, or its first of all.

    Example:
      >>> first_state(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[False, True, True]])).tolist()
      [[4.0]]
    """
    return _state_at(states, jnp.argmax(jnp.asarray(mask), axis=1))


def last_state(states: Float[Array, "B L *rest"], mask: Bool[HostOrDevice, "B L"]) -> Float[Array, " B *rest"]:
    """Returns each row's state at its last position where `mask` is true, or its last of all.

    Example:
      >>> last_state(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
      [[4.0]]
    """
    return _state_at(states, states.shape[1] - 1 - jnp.argmax(jnp.asarray(mask)[:, ::-1], axis=1))


def _state_at(states: Float[Array, "B L *rest"], index: Int[Array, " B"]) -> Float[Array, " B *rest"]:
    return jnp.take_along_axis(states, index.reshape(-1, *[1] * (states.ndim - 1)), axis=1)[:, 0]


def read_pooling(checkpoint: Checkpoint | str | Path, pooling: str | None = None) -> str:
    """Returns how token states become the pooled vector (Sentence-BERT, arXiv:1908.10084), "mean" or "cls".

    The argument comes first, then "pooling" in smart_jax.json, then the configuration of sentence-transformers'
    pooling module, whose folder is named in modules.json and otherwise 1_Pooling.

    Raises:
      ValueError: nothing says it, or it is not computed here; the message shows how to pass it.
    """
    checkpoint = Checkpoint.of(checkpoint)
    settings = checkpoint.path("smart_jax.json")
    folder = checkpoint.having("modules.json", "1_Pooling")
    kinds = {module.kind: module.path for module in read_modules(folder)}
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise ValueError(
            f"{folder / 'modules.json'}: {', '.join(unknown)} is not supported, only {', '.join(_MODULES)}: the pooled "
            "vectors would not be those of this model"
        )
    if pooling is None:
        pooling = (read_part(settings, dict) or {}).get("pooling")
    if pooling is not None:
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise ValueError(f"pooling is {shown(pooling)}, expected {' or '.join(map(repr, POOLINGS))}")
        return pooling
    path = path_inside(folder, f"{kinds.get('Pooling', '1_Pooling')}/config.json", str(folder / "modules.json"))
    rules = read_part(path, dict)
    if rules is None:
        raise ValueError(
            f"{folder} holds a BERT, but nothing says how its states are pooled ({path.relative_to(folder)} does not "
            "exist): pass it, smart_jax.load(folder, pooling='mean') or 'cls', or write {\"pooling\": \"mean\"} to the "
            "folder's smart_jax.json"
        )
    modes = [rules["pooling_mode"]] if "pooling_mode" in rules else []
    modes += [_MODES.get(key, key) for key, on in rules.items() if key.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in POOLINGS or rules.get("include_prompt") is False:
        raise ValueError(
            f"{path}: pooling {', '.join(map(_name, modes)) or 'by nothing'}"
            f"{' without the prompt' if rules.get('include_prompt') is False else ''} is not supported, only "
            f"{' or '.join(POOLINGS)} over all tokens: smart_jax.load(folder, pooling='mean') uses another"
        )
    return str(modes[0])


def _name(mode: object) -> str:
    return mode if isinstance(mode, str) else shown(mode)
