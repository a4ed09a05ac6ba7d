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
  G  bins of vision patches, V patches of a bin, E bytes of a patch, W width of a patch's hidden state
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

HostOrDevice: TypeAlias = np.ndarray | jax.Array
"""An array that NumPy holds on the host, or jax on a device; `jax.Array` alone where only the latter will do."""

JsonObject: TypeAlias = Mapping[str, Any]
"""An object of a JSON file: its values have the types that the file gives them, and are checked where they are read."""

_Class = TypeVar("_Class", bound=type)


def register_arrays(cls: _Class) -> _Class:
    """Registers a dataclass of arrays as a pytree; a decorator, put above `dataclasses.dataclass`.

    `jax.tree_util.register_dataclass` makes copies through `__init__`. There the run-time check of shapes, which the
    tests switch on, would refuse what jax puts in the arrays' places: shardings, abstract shapes, sentinels. This
    function's copies are made without `__init__`. A field whose metadata have `static` is no array but a hashable value
    that belongs to the structure: another value is another compilation.

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
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields if not field.metadata.get("static"))
    statics = tuple(field.name for field in fields if field.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten(tree: object) -> tuple[tuple[object, ...], tuple[object, ...]]:
        return tuple(getattr(tree, name) for name in names), tuple(getattr(tree, name) for name in statics)

    def flatten_with_keys(
        tree: object,
    ) -> tuple[tuple[tuple[jax.tree_util.GetAttrKey, object], ...], tuple[object, ...]]:
        return tuple((key, getattr(tree, key.name)) for key in keys), flatten(tree)[1]

    def unflatten(static: tuple[object, ...], children: Iterable[object]) -> object:
        tree: object = object.__new__(cls)
        for name, value in (*zip(names, children, strict=True), *zip(statics, static, strict=True)):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
