"""`Embeddings`: one pooled vector per item and its token vectors, packed; slicing, concatenation, files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file

from smart_jax.dtypes import known_dtype
from smart_jax.files import map_tensors, path_inside, read_json, shown
from smart_jax.notebook import facts_table, memory_size
from smart_jax.retrieval.provenance import Provenance, join
from smart_jax.retrieval.quantize import quantize
from smart_jax.retrieval.saved_files import INDEX, save_files
from smart_jax.typing import JsonObject

DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))
INT8 = np.dtype(np.int8)
_INFINITY = int(np.float32(np.inf).view(np.uint32))
FORMAT, VERSION = "smart_jax.embeddings", 1
CHECKED_AT_ONCE = 2**19  # bytes looked at twice for NaN: they stay in the cache

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings:
    """Embeddings of N items: NumPy arrays on the host, read-only.

    Item i owns tokens[offsets[i]:offsets[i + 1]]. Vectors are expected to be L2-normalised: scores are inner products.
    An item without tokens gets its pooled vector as its single token (arXiv:2605.24938, reference implementation), so
    that every item of an `Embeddings` has at least one.

    Args:
      pooled: pooled vectors [N, H], float32, float16 or bfloat16; H = 0 where the model has none, as ColQwen2.
      tokens: token vectors [T, D] of all items, of the same dtype, or int8.
      offsets: integers [N + 1], stored as int64: 0 first, never falling, T last.
      scales: float32 [T], of int8 tokens only: a token is its scale times its integers. `astype(np.int8)` makes them.
      provenance: what made them, which stays through all that is done with them; None = it is not known. Scores of
        what does not belong together are refused by it.

    Raises:
      TypeError: a dtype is not one of these.
      ValueError: shapes do not fit together, offsets are not as above, a vector or scale holds NaN or infinity, or an
        item without tokens has a pooled vector of another width than the tokens.

    Example:
      >>> import numpy as np
      >>> from smart_jax import Embeddings
      >>> tokens = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
      >>> e = Embeddings(pooled=np.float32([[1, 0], [0, 1]]), tokens=tokens, offsets=np.array([0, 1, 3]))
      >>> e
      Embeddings(2 items, 3 tokens, pooled width 2, token width 2, float32)
      >>> e[1].tokens
      array([[0. , 1. ],
             [0.6, 0.8]], dtype=float32)
      >>> e.astype(np.int8).nbytes
      58
    """

    pooled: Float[Array, "N H"]
    tokens: Float[Array, "T D"] | Int[Array, "T D"]
    offsets: Int[Array, " N+1"]
    scales: Float[Array, " T"] | None = None
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        pooled, tokens = _matrix("pooled", self.pooled), _matrix("tokens", self.tokens, (*DTYPES, INT8))
        if tokens.dtype not in (pooled.dtype, INT8):
            raise TypeError(f"pooled is {pooled.dtype} and tokens are {tokens.dtype}: cast one with .astype")
        offsets = check_offsets(self.offsets, items=len(pooled), tokens=len(tokens))
        scales = _check_scales(self.scales, tokens, offsets)
        check_finite("pooled", pooled, lambda row: f"item {row}")
        if scales is None:
            check_finite("tokens", tokens, lambda row: token_name(offsets, row))
        self._set(pooled, *_fill_empty(pooled, tokens, offsets, scales), self.provenance)

    def _set(
        self, pooled: Array, tokens: Array, offsets: Array, scales: Array | None, provenance: Provenance | None
    ) -> None:
        for name, array in (("pooled", pooled), ("tokens", tokens), ("offsets", offsets), ("scales", scales)):
            if array is not None:
                array = array.view()
                array.flags.writeable = False  # what was checked once stays checked
            object.__setattr__(self, name, array)
        object.__setattr__(self, "provenance", provenance)

    @classmethod
    def from_checked(
        cls,
        pooled: Array,
        tokens: Array,
        offsets: Array,
        scales: Array | None = None,
        provenance: Provenance | None = None,
    ) -> Embeddings:
        """Returns embeddings of values that were checked before, without a second pass over them."""
        new = object.__new__(cls)
        new._set(pooled, tokens, offsets, scales, provenance)
        return new

    @classmethod
    def from_mapped(
        cls,
        pooled: Array,
        tokens: Array,
        offsets: Array,
        scales: Array | None = None,
        provenance: Provenance | None = None,
    ) -> Embeddings:
        """Returns embeddings of arrays that are left in a file: all is checked but the vectors' values.

        Raises:
          TypeError, ValueError: as `Embeddings`, and where an item has no token.
        """
        _check_forms(pooled, tokens, offsets, scales)
        return cls.from_checked(pooled, tokens, offsets, scales, provenance)

    def with_provenance(self, provenance: Provenance | None) -> Embeddings:
        """Returns the same embeddings, of another provenance, or of one that is not known."""
        return self.from_checked(self.pooled, self.tokens, self.offsets, self.scales, provenance)

    def __len__(self) -> int:
        return len(self.pooled)

    def __repr__(self) -> str:
        return (
            f"Embeddings({len(self)} items, {len(self.tokens)} tokens, pooled width {self.pooled.shape[1]}, "
            f"token width {self.tokens.shape[1]}, {self.dtype})"
        )

    def _repr_html_(self) -> str:
        lengths = self.lengths if len(self) else np.zeros(1, int)
        made = self.provenance
        facts = {
            "items": len(self),
            "tokens": len(self.tokens),
            "tokens of an item": f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}",
            "widths": f"{self.pooled.shape[1]} pooled, {self.tokens.shape[1]} tokens",
            "dtype": self.dtype,
            "size": memory_size(self.nbytes),
            "side": None if made is None else made.side,
            "reductions": ", ".join(made.reductions) or None if made is not None else None,
        }
        return facts_table("Embeddings", facts)

    def __array__(self, *_: object, **__: object) -> Array:
        raise TypeError(
            "Embeddings are several arrays: take .pooled [items, width], or .tokens of all items with .offsets"
        )

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the tokens."""
        return self.tokens.dtype

    @property
    def lengths(self) -> Int[Array, " N"]:
        """Number of tokens of each item, int64, at least 1."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the arrays."""
        return sum(array.nbytes for array in self._arrays().values())

    def _arrays(self) -> dict[str, Array]:
        arrays = {"pooled": self.pooled, "tokens": self.tokens, "offsets": self.offsets}
        return arrays if self.scales is None else arrays | {"scales": self.scales}

    def __getitem__(self, index: int | np.integer | slice | Sequence[int] | Array) -> Embeddings:
        """Returns some of the items, as embeddings: `e[3]`, `e[3:7]` (a view), `e[[5, 1, 1]]`, `e[mask]`.

        Raises:
          IndexError: an item does not exist, or a mask has another length.
          TypeError: the index is not an integer, a slice, or an array of integers or booleans.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._run(start, max(start, stop))
            return self._take(np.arange(start, stop, step))
        items = np.asarray(index)
        if items.dtype == bool:
            if items.shape != (len(self),):
                raise IndexError(f"mask of shape {items.shape}: it must have shape ({len(self)},)")
            return self._take(np.flatnonzero(items))
        if items.size == 0:
            items = items.astype(np.int64)
        if not np.issubdtype(items.dtype, np.integer) or items.ndim > 1:
            raise TypeError(f"index {index!r}: give an int, a slice, or a 1-D array of integers or booleans")
        outside = (items < -len(self)) | (items >= len(self))
        if outside.any():
            raise IndexError(f"item {int(items[outside].ravel()[0])} of embeddings with {len(self)} items")
        return self._take(np.atleast_1d(items) % max(len(self), 1))

    def _run(self, start: int, stop: int) -> Embeddings:
        first, last = self.offsets[start], self.offsets[stop]
        scales = None if self.scales is None else self.scales[first:last]
        offsets = self.offsets[start : stop + 1] - first
        return self.from_checked(self.pooled[start:stop], self.tokens[first:last], offsets, scales, self.provenance)

    def _take(self, items: Int[Array, " M"]) -> Embeddings:
        lengths = self.lengths[items]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[items] - offsets[:-1], lengths)
        scales = None if self.scales is None else self.scales[rows]
        return self.from_checked(self.pooled[items], self.tokens[rows], offsets, scales, self.provenance)

    def astype(self, dtype: DTypeLike) -> Embeddings:
        """Returns the same embeddings stored as float32, float16 or bfloat16, or with int8 tokens.

        int8: each token's largest component becomes 127 or -127, the others are rounded in that proportion, and its
        scale is stored beside it; pooled vectors stay as they are.

        Raises:
          TypeError: the dtype is another one.
          ValueError: a value does not fit the dtype.
        """
        dtype = known_dtype(dtype)
        if dtype not in (*DTYPES, INT8):
            raise TypeError(f"dtype {dtype}: embeddings are stored as {_names((*DTYPES, INT8))}")
        if dtype == self.dtype:
            return self
        if dtype == INT8:
            tokens, scales = quantize(self.tokens)
            return self.from_checked(self.pooled, tokens, self.offsets, scales, self.provenance)
        tokens = self.tokens if self.scales is None else self.tokens * self.scales[:, None]
        return Embeddings(_cast(self.pooled, dtype), _cast(tokens, dtype), self.offsets, provenance=self.provenance)

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """Returns the items of all parts, in order.

        Their provenance is that of all; where one part's is not known, it is not known either.

        Raises:
          ValueError: there are no parts, or their widths, dtypes, models, adapters or components differ.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("no embeddings to concatenate: the list is empty")
        for i, part in enumerate(parts):
            kinds = [(p.pooled.shape[1], p.pooled.dtype, p.tokens.shape[1], p.dtype) for p in (part, parts[0])]
            if kinds[0] != kinds[1]:
                raise ValueError(f"part {i} is {part!r}, but part 0 is {parts[0]!r}: widths and dtype must be equal")
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([p.lengths for p in parts]))]).astype(np.int64)
        arrays = {name: np.concatenate([p._arrays()[name] for p in parts]) for name in parts[0]._arrays()}
        provenance = join([part.provenance for part in parts])
        return Embeddings.from_checked(**(arrays | {"offsets": offsets}), provenance=provenance)

    def save(self, folder: str | Path) -> None:
        """Writes `embeddings.json` and the safetensors file that it names.

        Replacing the JSON file is the last step: a save that is cut off leaves the folder's former embeddings whole,
        and what else it leaves is removed by the next. Of several processes that save to one folder, one writes at a
        time; those that load from it meanwhile get what one of them has saved.
        """
        index: dict[str, Any] = {"format": FORMAT, "version": VERSION, "file": "", **self._description()}
        if self.provenance is not None:
            index["provenance"] = self.provenance.to_dict()
        save_files(Path(folder), self._arrays(), index)

    @staticmethod
    def load(folder: str | Path, *, mmap: bool = False) -> Embeddings:
        """Returns embeddings that `save` wrote.

        Args:
          folder: the one that was saved to.
          mmap: whether the vectors stay in the file, from which each is read when it is used: for a corpus larger than
            the memory. Values were checked for NaN when they were saved, and are not read once more for it.

        Raises:
          FileNotFoundError: the folder or one of its two files is missing.
          ValueError: a file is corrupt, truncated, of an unknown format, or does not match the other.
        """
        folder = Path(folder)
        index = read_index(folder / INDEX)
        while True:
            try:
                return Embeddings._load(folder, index, mmap)
            except (FileNotFoundError, ValueError):
                former, index = index, read_index(folder / INDEX)
                if index == former:  # else the folder was saved to meanwhile
                    raise

    @staticmethod
    def _load(folder: Path, index: JsonObject, mmap: bool) -> Embeddings:
        path = path_inside(folder, index["file"], f"'{folder / INDEX}'")
        if not path.is_file():
            raise FileNotFoundError(f"no '{path}', which '{folder / INDEX}' names: copy the folder as a whole")
        try:
            provenance = None if (made := index.get("provenance")) is None else Provenance.from_dict(made)
        except ValueError as error:
            raise ValueError(f"'{folder / INDEX}': {error}; remove it there, or encode again") from error
        try:
            tensors = map_tensors(path)[0] if mmap else load_file(path)
            parts = tensors["pooled"], tensors["tokens"], tensors["offsets"], tensors.get("scales"), provenance
            if parts[1].dtype not in (parts[0].dtype, INT8):
                raise TypeError(f"pooled is {parts[0].dtype} and tokens are {parts[1].dtype}")
            loaded = Embeddings.from_mapped(*parts) if mmap else Embeddings(*parts)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is corrupt or truncated ({error}): encode and save again") from error
        for key, value in loaded._description().items():
            if index.get(key) != value:
                raise ValueError(
                    f"'{folder / INDEX}' says {key} = {_said(index.get(key))}, but '{path.name}' has {value}: "
                    "save again"
                )
        return loaded

    def _description(self) -> dict[str, int | str]:
        return {
            "items": len(self),
            "tokens": len(self.tokens),
            "pooled_width": self.pooled.shape[1],
            "token_width": self.tokens.shape[1],
            "dtype": self.dtype.name,
        }


def _check_forms(pooled: Array, tokens: Array, offsets: Array, scales: Array | None) -> None:
    """Checks of mapped arrays what needs none of their vectors, which are checked nowhere but where they are used."""
    pooled, tokens = _matrix("pooled", pooled), _matrix("tokens", tokens, (*DTYPES, INT8))
    check_offsets(offsets, items=len(pooled), tokens=len(tokens))
    if np.any(np.diff(offsets) == 0):
        raise ValueError(f"item {int(np.flatnonzero(np.diff(offsets) == 0)[0])} has no token")
    _check_scales(scales, tokens, np.asarray(offsets))


def check_offsets(offsets: ArrayLike, *, items: int, tokens: int) -> Int[Array, " bounds"]:
    """Returns the offsets as int64, or raises an error that names the item where they go wrong."""
    array: Array = np.asarray(offsets)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"offsets are {array.dtype}: they must be integers")
    if array.shape != (items + 1,):
        raise ValueError(f"offsets have shape {array.shape} for {items} items: they must have shape ({items + 1},)")
    array = array.astype(np.int64)
    if array[0] != 0:
        raise ValueError(f"offsets start at {array[0]}: they must start at 0")
    falls = np.flatnonzero(np.diff(array) < 0)
    if falls.size:
        i = int(falls[0])
        raise ValueError(f"offsets are not monotone: item {i} goes from token {array[i]} to {array[i + 1]}")
    if array[-1] != tokens:
        raise ValueError(f"offsets end at {array[-1]}, but there are {tokens} tokens: they must end there")
    return array


def check_finite(what: str, vectors: Float[Array, "vectors width"], name: Callable[[int], str]) -> None:
    """Raises ValueError if a vector holds NaN or infinity; `name(index)` says which item that is."""
    step = max(1, CHECKED_AT_ONCE // max(1, vectors[:1].nbytes))
    for start in range(0, len(vectors), step):
        chunk = vectors[start : start + step]
        if _all_finite(chunk):
            continue
        bad = np.flatnonzero(~np.isfinite(chunk.astype(np.float32)).all(axis=1))
        raise ValueError(f"{name(start + int(bad[0]))}: {what} holds NaN or infinity; drop or encode it again")


def _all_finite(vectors: Float[Array, "vectors width"]) -> bool:
    """Tells whether no value is NaN or infinite, by the bits: the exponents of all others are smaller.

    As signed integers, values grow with their bits from 0 up; as unsigned ones, those with a minus follow all others.
    Two maxima of integers are read at the speed of memory, which a sum of float16, converted one by one, is not.
    """
    bits = vectors.dtype.itemsize * 8
    infinity = int(np.asarray(np.inf, vectors.dtype).view(f"u{vectors.dtype.itemsize}"))
    largest = int(vectors.view(f"i{bits // 8}").max(initial=0)), int(vectors.view(f"u{bits // 8}").max(initial=0))
    return largest[0] < infinity and largest[1] < infinity + 2 ** (bits - 1)


def token_name(offsets: Int[Array, " bounds"], token: int) -> str:
    """Returns, in words, where a packed token is."""
    item = int(np.searchsorted(offsets, token, side="right")) - 1
    return f"item {item}, token {token - int(offsets[item])}"


def _matrix(name: str, value: Array, dtypes: Sequence[np.dtype] = DTYPES) -> Array:
    array = np.asarray(value)
    if array.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {array.dtype}: it must be {_names(dtypes)} (use .astype)")
    if array.ndim != 2 or (array.shape[1] == 0 and name != "pooled"):
        raise ValueError(f"{name} has shape {array.shape}: it must be a matrix, one vector a row")
    return array


def _check_scales(scales: Array | None, tokens: Array, offsets: Int[Array, " bounds"]) -> Array | None:
    if (scales is not None) != (tokens.dtype == INT8):
        raise ValueError(f"tokens are {tokens.dtype}: int8 tokens have scales, and no others do")
    if scales is None:
        return None
    scales = np.asarray(scales)
    if scales.dtype != np.float32 or scales.shape != tokens.shape[:1]:
        raise ValueError(
            f"scales are {scales.dtype} {scales.shape} for {len(tokens)} tokens: they must be float32, one for each"
        )
    bits = scales.view(np.uint32)  # those of negative, infinite and undefined numbers are the largest
    if int(bits.max(initial=0)) >= _INFINITY:
        token = int(np.argmax(bits >= _INFINITY))
        finite = np.isfinite(scales[token])
        wrong = f"is {scales[token]}, which is negative" if finite else "holds NaN or infinity"
        raise ValueError(f"{token_name(offsets, token)}: its scale {wrong}; drop or encode it again")
    return scales


def _fill_empty(
    pooled: Array, tokens: Array, offsets: Array, scales: Array | None
) -> tuple[Array, Array, Array | None]:
    """Returns tokens, offsets and scales in which every item has a token."""
    empty = np.flatnonzero(np.diff(offsets) == 0)
    if not empty.size:
        return tokens, offsets, scales
    if pooled.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"item {int(empty[0])} has no token, and its pooled vector of width {pooled.shape[1]} cannot stand in for "
            f"one of width {tokens.shape[1]}: drop the item or keep at least one token"
        )
    new, at = pooled[empty], offsets[empty]
    if scales is not None:
        new, new_scales = quantize(new)
        scales = np.insert(scales, at, new_scales)
    tokens = np.insert(tokens, at, new, axis=0)
    return tokens, np.concatenate([[0], np.cumsum(np.maximum(np.diff(offsets), 1))]), scales


def _said(value: object) -> str:
    return value if isinstance(value, str) and len(value) < 80 else shown(value)


def _cast(array: Array, dtype: np.dtype) -> Array:
    with np.errstate(over="ignore"):  # the constructor reports infinity with the item's name
        return array.astype(dtype)


def _names(dtypes: Sequence[np.dtype] = DTYPES) -> str:
    return ", ".join(d.name for d in dtypes[:-1]) + f" or {dtypes[-1].name}"


def read_index(path: Path) -> JsonObject:
    """Reads `embeddings.json`; raises FileNotFoundError or ValueError where it is missing or of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"no '{path}': give the folder that Embeddings.save wrote")
    index = read_json(path, remedy="encode and save again")
    if index.get("format") != FORMAT:
        raise ValueError(f"'{path}' does not describe embeddings: its format is not {FORMAT!r}")
    if index.get("version") != VERSION:
        raise ValueError(f"'{path}' has version {shown(index.get('version'))}, this library reads {VERSION}: update it")
    name = index.get("file")
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise ValueError(f"'{path}' names no safetensors file of its folder: encode and save again")
    return index
