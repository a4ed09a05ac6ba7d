"""Array types, the dimension letters, and dataclasses of arrays as pytrees.

Letters, fixed once for the whole project; rare axes are words ("layers", "half", "slots";
"bounds" is one more than there are items: where the packed tokens of each begin, and where the last end):

  B  rows of a batch, or the queries of one
  L  positions of a padded row: of a sequence, or of a document's tokens
  P  tokens of a padded query
  N  items: what an `Embeddings` holds, documents; Nq and Nd where both sides are meant
  K  documents of each query, its positive first; k results of each query
  T  packed tokens of all items
  H  width of the model's hidden states
  D  width of the token vectors
  A  attention heads, which share `kv` heads of keys and values; C width of a head
  G  bins of vision patches, V patches of a bin, E values of a patch, W width of a patch's hidden state
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

HostOrDevice: TypeAlias = np.ndarray | jax.Array
"""An array that NumPy holds on the host, or jax on a device; `jax.Array` alone where only the latter will do."""

_Class = TypeVar("_Class", bound=type)


def register_arrays(cls: _Class) -> _Class:
    """Registers a dataclass of arrays as a pytree; a decorator, put above `dataclasses.dataclass`.

    `jax.tree_util.register_dataclass` makes copies through `__init__`. There the run-time check of shapes, which the
    tests switch on, would refuse what jax puts in the arrays' places: shardings, abstract shapes, sentinels. This
    function's copies are made without `__init__`.

    Example:
      >>> import dataclasses
      >>> @register_arrays
      ... @dataclasses.dataclass(frozen=True)
      ... class Pair:
      ...     left: np.ndarray
      ...     right: np.ndarray | None = None
      >>> jax.tree.map(lambda x: x.shape, Pair(np.zeros(2)))
      Pair(left=(2,), right=None)
    """
    names = tuple(field.name for field in dataclasses.fields(cls))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten(tree: Any) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(tree, name) for name in names), None

    def flatten_with_keys(tree: Any) -> tuple[tuple[tuple[Any, Any], ...], None]:
        return tuple((key, getattr(tree, key.name)) for key in keys), None

    def unflatten(_: None, children: Iterable[Any]) -> Any:
        tree: Any = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(tree, name, child)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
