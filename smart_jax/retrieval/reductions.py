"""Smaller embeddings: fewer tokens, narrower tokens, fewer bits of each component.

All except `pool_grid` take and give `Embeddings`, usually of documents, and can follow one another; fewer bits come
last. Pooled vectors stay as they are. Half precision and int8 are `Embeddings.astype`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from smart_jax.notebook import facts_table, memory_size
from smart_jax.retrieval.embeddings import INT8, Embeddings, check_offsets
from smart_jax.retrieval.provenance import Provenance
from smart_jax.retrieval.states import States
from smart_jax.vectors import l2_normalise_on_host

SAMPLE = 100_000  # tokens that a PCA is fitted on
CHUNK = 2**14  # tokens computed with at a time


def keep_tokens(e: Embeddings, keep: Bool[np.ndarray, " T"]) -> Embeddings:
    """Returns embeddings with the tokens of a mask; an item that keeps none has its pooled vector as its token.

    Args:
      e: tokens [T, D] of any dtype.
      keep: bool [T], True = kept.

    Raises:
      ValueError: the mask is not bool [T], or an item that keeps none has a pooled vector of another width.

    Example:
      >>> import numpy as np
      >>> e = Embeddings(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 1, 1]], np.array([0, 2, 3]))
      >>> keep_tokens(e, np.array([False, True, True])).tokens
      array([[0., 1.],
             [0., 1.]], dtype=float32)
    """
    keep = np.asarray(keep)
    if keep.shape != e.tokens.shape[:1] or keep.dtype != bool:
        raise ValueError(f"keep is {keep.dtype} {keep.shape}: it must be bool, one for each of {len(e.tokens)} tokens")
    before = np.concatenate([[0], np.cumsum(keep)])
    scales = None if e.scales is None else e.scales[keep]
    return Embeddings(e.pooled, e.tokens[keep], before[e.offsets], scales, _reduced(e, "keep"))


def pool_tokens(e: Embeddings, factor: float, method: str = "hierarchical") -> Embeddings:
    """Returns embeddings in which groups of an item's tokens became their means, L2-normalised: token pooling.

    Of L tokens of an item at most ceil(L / factor) are left (Clavié, Chaffin and Adams 2024, arXiv:2409.14683).
    Similarities are computed in float32.

    Args:
      e: tokens [T, D] float32, float16 or bfloat16.
      factor: at least 1.
      method: "hierarchical" = Ward's clustering by cosine distance, which takes O(L**2) time and memory; fewer groups
        are left where several merge at the same distance. "sequential" = runs of tokens that follow one another, of
        equal lengths or one apart.

    Raises:
      ValueError: the factor is below 1 or the method unknown.
      TypeError: tokens are int8.

    Example:
      >>> import numpy as np
      >>> tokens = np.float32([[1, 0], [0, 1], [1, 0], [0, 1]])
      >>> e = Embeddings(np.float32([[1, 0]]), tokens, np.array([0, 4]))
      >>> pool_tokens(e, factor=2).tokens  # each with its copy
      array([[1., 0.],
             [0., 1.]], dtype=float32)
      >>> pool_tokens(e, factor=2, method="sequential").tokens.round(3)  # each with its neighbour
      array([[0.707, 0.707],
             [0.707, 0.707]], dtype=float32)
    """
    return pool_groups(e, group_tokens(e, factor, method))


def group_tokens(e: Embeddings, factor: float, method: str = "hierarchical") -> Int[np.ndarray, " T"]:
    """Returns the groups of tokens that `pool_tokens` makes means of: for each token the number of its group.

    Args:
      e, factor, method: as in `pool_tokens`.

    Returns:
      int64 [T]: 0, 1, ..., each item's after those of the item before.

    Raises:
      ValueError, TypeError: as `pool_tokens`.

    Example:
      >>> import numpy as np
      >>> e = Embeddings(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1], [1, 0], [0, 1]]), np.array([0, 4]))
      >>> group_tokens(e, factor=2)
      array([0, 1, 0, 1])
    """
    if not math.isfinite(factor) or factor < 1:
        raise ValueError(f"factor is {factor}: it must be at least 1")
    if method not in _GROUPINGS:
        raise ValueError(f"method is {method!r}: choose one of {', '.join(_GROUPINGS)}")
    _check_float(e, "pool_tokens")
    groups, before = np.empty(len(e.tokens), np.int64), 0
    for first, last in itertools.pairwise(e.offsets):
        count = math.ceil((last - first) / factor)
        of_item = np.arange(count) if count == last - first else _GROUPINGS[method](e.tokens[first:last], count)
        groups[first:last] = before + of_item
        before += int(of_item.max()) + 1
    return groups


def pool_groups(e: Embeddings, groups: Int[np.ndarray, " T"]) -> Embeddings:
    """Returns embeddings in which groups of an item's tokens became their means, L2-normalised.

    Args:
      e: tokens [T, D] float32, float16 or bfloat16.
      groups: from `group_tokens`.

    Example:
      >>> import numpy as np
      >>> e = Embeddings(np.float32([[1, 0]]), np.float32([[1, 0], [1, 0], [0, 1]]), np.array([0, 3]))
      >>> pool_groups(e, np.array([0, 0, 1])).tokens
      array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    last = np.maximum.reduceat(groups, e.offsets[:-1]) if len(e) else np.zeros(0, np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), last + 1])
    return Embeddings(e.pooled, _means(e.tokens, groups, unit=True), offsets, provenance=_reduced(e, "pool"))


def _ward(tokens: Float[np.ndarray, "L D"], count: int) -> Int[np.ndarray, " L"]:
    from scipy.cluster.hierarchy import fcluster, linkage  # which takes 0.25 s to import
    from scipy.spatial.distance import squareform

    unit = l2_normalise_on_host(tokens)
    distances = np.maximum(1 - unit @ unit.T, 0)
    tree = linkage(squareform(distances, checks=False), "ward")
    return np.unique(fcluster(tree, count, "maxclust"), return_inverse=True)[1]


def _runs(tokens: Float[np.ndarray, "L D"], count: int) -> Int[np.ndarray, " L"]:
    return np.arange(len(tokens)) * count // len(tokens)


_GROUPINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"hierarchical": _ward, "sequential": _runs}


def pool_grid(states: States, window: int = 2) -> States:
    """Returns states with the means of window x window neighbours in every grid of visual tokens, L2-normalised.

    Windows at the right and lower edge may be smaller; a video's frames are pooled one by one. A mean takes the place
    of its window's first token, and its length is the mean length. Other tokens stay as they are.

    Args:
      states: of pages, images or videos among others.
      window: number of neighbours along each side.

    Raises:
      ValueError: the window is not an integer of at least 1.

    Example:
      An image of 2 x 3 cells, whose columns 0 and 1 are pooled, and column 2 alone:

      >>> import numpy as np
      >>> cells = np.float32([[1, 0], [1, 0], [0, 1]])[[0, 1, 2, 0, 1, 2], None]
      >>> one = np.ones((6, 1), np.float32)
      >>> fields = {"grids": np.int32([[0, 1, 2, 3]]), "visual_ids": (7,), "layers": (-1,), "depth": 4}
      >>> states = States(np.float32([[1, 0]]), cells, one, np.full(6, 7, np.int32), np.array([0, 6]), **fields)
      >>> pool_grid(states, window=2).states[:, 0]
      array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1:
        raise ValueError(f"window is {window!r}: it must be an integer of at least 1")
    leaders = np.arange(len(states.ids))  # the first token of each token's window
    visual = np.flatnonzero(states.visual)
    start = 0
    for _, t, h, w in states.grids.tolist():
        frame, row, column = np.unravel_index(np.arange(t * h * w), (t, h, w))
        first = np.ravel_multi_index((frame, row // window * window, column // window * window), (t, h, w))
        leaders[visual[start : start + len(first)]] = visual[start + first]
        start += len(first)
    chosen, groups = np.unique(leaders, return_inverse=True)
    return dataclasses.replace(
        states,
        states=_means(states.states, groups, unit=True),
        norms=_means(states.norms, groups),
        ids=states.ids[chosen],
        offsets=np.searchsorted(chosen, states.offsets).astype(np.int64),
        grids=np.concatenate([states.grids[:, :2], -(-states.grids[:, 2:] // window)], axis=1),
    )


def truncate(e: Embeddings, width: int, *, pooled_width: int | None = None) -> Embeddings:
    """Returns embeddings with the first components only, L2-normalised again.

    This is good where a model was trained for it (Matryoshka representations, arXiv:2205.13147); for others see `PCA`.
    Queries and documents must have the same widths.

    Args:
      e: tokens [T, D] float32, float16 or bfloat16.
      width: number of components of each token, at most D.
      pooled_width: number of components of each pooled vector, at most H; None = pooled vectors stay as they are.

    Raises:
      ValueError: a width is not an integer from 1 to the present one.
      TypeError: tokens are int8.

    Example:
      >>> import numpy as np
      >>> e = Embeddings(np.float32([[1, 0]]), np.float32([[0, 0.6, 0.8]]), np.array([0, 1]))
      >>> truncate(e, 2).tokens
      array([[0., 1.]], dtype=float32)
    """
    _check_float(e, "truncate")
    _check_width(width, e.tokens.shape[1])
    pooled = e.pooled
    if pooled_width is not None:
        _check_width(pooled_width, pooled.shape[1])
        pooled = l2_normalise_on_host(pooled[:, :pooled_width]).astype(e.dtype)
    tokens = l2_normalise_on_host(e.tokens[:, :width]).astype(e.dtype)
    name = f"truncate {width}" + (f", pooled {pooled_width}" if pooled_width is not None else "")
    return Embeddings(pooled, tokens, e.offsets, provenance=_reduced(e, name))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PCA:
    """Principal components of token vectors: narrower tokens, rotated so that the first components matter most.

    `PCA.fit(documents, 64)` on documents; the object is then called with documents and queries alike.

    Attributes:
      mean: float32 [D], subtracted first; zeros where it was not centred.
      components: float32 [D, width], orthonormal columns, the strongest first.
      strengths: float32 [width], each component's share of the sample's sum of squares (of its variance, if centred).

    Example:
      >>> import numpy as np
      >>> e = Embeddings(np.float32([[1, 0, 0]]), np.float32([[0.6, 0.8, 0], [0.8, 0.6, 0]]), np.array([0, 2]))
      >>> pca = PCA.fit(e, 2)  # the third component of all tokens is 0
      >>> pca.strengths.round(2)
      array([0.98, 0.02], dtype=float32)
      >>> np.abs(pca(e).tokens @ pca(e).tokens.T).round(2)  # inner products stay
      array([[1.  , 0.96],
             [0.96, 1.  ]], dtype=float32)
    """

    mean: Float[np.ndarray, " D"]
    components: Float[np.ndarray, "D width"]
    strengths: Float[np.ndarray, " width"]

    def __repr__(self) -> str:
        width, kept = self.components.shape
        return f"PCA(width {width} to {kept}, {self._kept} of the sample kept{self._centred})"

    def _repr_html_(self) -> str:
        width, kept = self.components.shape
        facts = {"tokens": f"width {width} to {kept}", "kept": f"{self._kept} of the sample{self._centred}"}
        return facts_table("PCA", facts)

    @property
    def _kept(self) -> str:
        return f"{self.strengths.sum():.1%}"

    @property
    def _centred(self) -> str:
        return ", centred" if self.mean.any() else ""

    @classmethod
    def fit(cls, e: Embeddings, width: int, *, centred: bool = False, sample: int = SAMPLE, seed: int = 0) -> PCA:
        """Returns the components of a random sample of the tokens.

        Args:
          e: tokens [T, D] float32, float16 or bfloat16.
          width: number of components, at most D.
          centred: whether the mean is subtracted. If not, the components are those that keep the inner products, which
            the scores are, best. If so, they are of the tokens' differences, and scores change even at full width: the
            direction that all tokens share, and its cosines, are gone.
          sample: number of tokens to fit on, or all if there are fewer.
          seed: of the random choice of the sample.

        Raises:
          ValueError: the width is not an integer from 1 to D, or the sample is empty.
          TypeError: tokens are int8.
        """
        _check_float(e, "PCA")
        _check_width(width, e.tokens.shape[1])
        if sample < 1:
            raise ValueError(f"sample is {sample}: it must be at least 1")
        tokens = e.tokens
        if sample < len(tokens):
            tokens = tokens[np.sort(np.random.default_rng(seed).choice(len(tokens), sample, replace=False))]
        D = tokens.shape[1]
        total, squares = np.zeros(D), np.zeros((D, D))
        for chunk in _chunks(tokens):
            wide = chunk.astype(np.float64)
            total += wide.sum(axis=0)
            squares += wide.T @ wide
        mean = total / len(tokens) if centred else np.zeros(D)
        strengths, vectors = np.linalg.eigh(squares / len(tokens) - np.outer(mean, mean))
        strengths = np.maximum(strengths[::-1], 0)
        shares = strengths[:width] / max(strengths.sum(), np.finfo(np.float64).tiny)
        parts = (mean, vectors[:, ::-1][:, :width], shares)
        return cls(*(np.ascontiguousarray(part, np.float32) for part in parts))

    def __call__(self, e: Embeddings) -> Embeddings:
        """Returns embeddings whose tokens are the components [T, width], L2-normalised, of the same dtype.

        Raises:
          ValueError: tokens have another width than those that it was fitted on.
          TypeError: tokens are int8.
        """
        _check_float(e, "PCA")
        if e.tokens.shape[1] != len(self.mean):
            raise ValueError(f"tokens have width {e.tokens.shape[1]}, the PCA was fitted on width {len(self.mean)}")
        parts = [
            l2_normalise_on_host((chunk - self.mean) @ self.components).astype(e.dtype) for chunk in _chunks(e.tokens)
        ]
        provenance = None if e.provenance is None else _reduced(e, f"pca {self.components.shape[1]} {self._digest}")
        return Embeddings(e.pooled, np.concatenate(parts), e.offsets, provenance=provenance)

    @functools.cached_property
    def _digest(self) -> str:
        """Digits that tell it from others."""
        values = self.mean.tobytes() + self.components.tobytes()
        return hashlib.blake2b(values, digest_size=4).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BinaryEmbeddings:
    """Embeddings that keep only the sign of each token's components: a bit each, eight to a byte.

    `score(queries, binary.embeddings())` is asymmetric: queries keep their precision, and so most of the quality. For
    the symmetric score binarise the queries too.

    Attributes:
      pooled: pooled vectors [N, H], float32, float16 or bfloat16, as in `Embeddings`.
      bits: uint8 [T, ceil(D / 8)], as from `numpy.packbits`: 1 = above 0.
      offsets: int64 [N + 1].
      width: D.
      provenance: as of `Embeddings`.

    Example:
      >>> import numpy as np
      >>> e = Embeddings(np.float32([[1, 0]]), np.float32([[0.6, -0.8, 0.1, -0.2]]), np.array([0, 1]))
      >>> binary = BinaryEmbeddings.of(e)
      >>> binary.bits.shape
      (1, 1)
      >>> binary.embeddings().astype(np.float32).tokens
      array([[ 0.5, -0.5,  0.5, -0.5]], dtype=float32)
    """

    pooled: Float[np.ndarray, "N H"]
    bits: UInt8[np.ndarray, "T bytes"]
    offsets: Int[np.ndarray, " N+1"]
    width: int
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        check_offsets(self.offsets, items=len(self.pooled), tokens=len(self.bits))
        if self.bits.dtype != np.uint8 or self.bits.shape[1:] != (-(-self.width // 8),):
            raise ValueError(
                f"bits are {self.bits.dtype} {self.bits.shape} for tokens of width {self.width}: they must be uint8 "
                f"with {-(-self.width // 8)} bytes for each token"
            )

    def __len__(self) -> int:
        return len(self.pooled)

    def __repr__(self) -> str:
        return (
            f"BinaryEmbeddings({len(self)} items, {len(self.bits)} tokens of {self.width} bits, pooled width "
            f"{self.pooled.shape[1]}, {self.pooled.dtype})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "items": len(self),
            "tokens": f"{len(self.bits):,} of {self.width} bits",
            "pooled vectors": f"{self.pooled.shape[1]} wide, {self.pooled.dtype}",
            "size": memory_size(self.nbytes),
        }
        return facts_table("BinaryEmbeddings", facts)

    @classmethod
    def of(cls, e: Embeddings) -> BinaryEmbeddings:
        """Returns the signs of any embeddings."""
        bits = np.packbits(e.tokens > 0, axis=1)
        return cls(e.pooled, bits, e.offsets, e.tokens.shape[1], _reduced(e, "binary"))

    @property
    def nbytes(self) -> int:
        """Number of bytes of the arrays."""
        return self.pooled.nbytes + self.bits.nbytes + self.offsets.nbytes

    def embeddings(self) -> Embeddings:
        """Returns `Embeddings` with int8 tokens of 1 and -1 and scales 1 / sqrt(D): vectors of length 1."""
        signs = np.unpackbits(self.bits, axis=1, count=self.width).astype(np.int8) * np.int8(2) - np.int8(1)
        scales = np.full(len(signs), 1 / math.sqrt(self.width), np.float32)
        return Embeddings(self.pooled, signs, self.offsets, scales, self.provenance)


def _reduced(e: Embeddings, name: str) -> Provenance | None:
    return None if e.provenance is None else e.provenance.reduced(name)


def _check_float(e: Embeddings, what: str) -> None:
    if e.dtype == INT8:
        raise TypeError(f"tokens are int8: use {what} before astype('int8')")


def _check_width(width: int, most: int) -> None:
    if isinstance(width, bool) or not isinstance(width, int | np.integer) or not 1 <= width <= most:
        raise ValueError(f"width is {width!r}: it must be an integer from 1 to {most}")


def _chunks(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Returns the tokens in float32, some at a time."""
    return (tokens[i : i + CHUNK].astype(np.float32) for i in range(0, len(tokens), CHUNK))


def _means(values: np.ndarray, groups: Int[np.ndarray, " T"], *, unit: bool = False) -> np.ndarray:
    """Returns the mean of each group 0, 1, ... of values, of their dtype; computed in float32, normalised if `unit`."""
    order, counts = np.argsort(groups, kind="stable"), np.bincount(groups)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    means = np.empty((len(counts), *values.shape[1:]), values.dtype)
    for first in range(0, len(counts), CHUNK):
        last = min(first + CHUNK, len(counts))
        members = values[order[bounds[first] : bounds[last]]].astype(np.float32)
        sums = np.add.reduceat(members, bounds[first:last] - bounds[first], axis=0)
        part = sums / counts[first:last].reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)
        means[first:last] = l2_normalise_on_host(part) if unit else part
    return means
