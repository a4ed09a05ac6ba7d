"""Scores of small work on the host, in NumPy: what is over before it would reach a device, or a compiler were done."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float, Int

from smart_jax.maxsim import Packed, Shapes, host_inner_products, packed_scores
from smart_jax.retrieval.block import Parts
from smart_jax.retrieval.block_plan import eighths, power_of_two
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.gathered import Gathered

SMALL = 2**27  # multiplications, milliseconds of a core: about what it takes to call a device and to hear from it
ONCE = 2**33  # of a shape that did not come before: a tenth of a second of a core, as a compilation takes
PAIRS = 2**22  # of a query and a document at most: 16 MiB of scores
PACKED_BYTES = 2**26  # of tokens that do not lie side by side, at most


def small_scores(
    q: Embeddings, d: Embeddings | Gathered, weights: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "Nq Nd"] | None:
    """Returns the hybrid scores if the host has them sooner than the default device, and otherwise None."""
    parts = Parts.of(weights)
    if not is_small(q, d, parts):
        return None
    documents = d if isinstance(d, Embeddings) else d.pack((0, len(d)), parts, int(d.offsets[-1]))
    with np.errstate(over="ignore", invalid="ignore"):  # who asked for the scores says so, by `check_scores`
        return host_scores(q, documents, weights)


def is_small(q: Embeddings, d: Embeddings | Gathered, parts: Parts) -> bool:
    """Tells whether the host is done sooner than the default device, which may need a compilation first.

    A CPU's program is faster than the host's products, which nothing compiles: it has its turn from the second time on
    that documents are scored, by their shape.
    """
    pairs, tokens, width = len(q) * len(d), int(d.offsets[-1] - d.offsets[0]), d.tokens.shape[1]
    if not 0 < pairs <= PAIRS:
        return False
    if isinstance(d, Gathered) and tokens * width * d.tokens.itemsize > PACKED_BYTES:
        return False
    products = parts.pooled * pairs * d.pooled.shape[1] + parts.late * len(q.tokens) * tokens * width
    if products <= SMALL:
        return True
    if products > ONCE or jax.default_backend() != "cpu":
        return False
    shape = parts, power_of_two(len(q)), eighths(len(q.tokens)), q.dtype, (len(d), tokens, width), d.tokens.dtype
    return not shapes.are_compiled(shape, products)


shapes = Shapes()


def host_scores(q: Embeddings, d: Embeddings, weights: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "Nq Nd"]:
    """Returns weights[0] * pooled + weights[1] * late; documents that are equal get scores that are.

    A processor's products round differently at the edge of a matrix. Devices' do not, and ties rely on it.
    """
    parts = Parts.of(weights)
    scores = np.zeros((len(q), len(d)), np.float32)
    if parts.late:
        late = packed_scores(Packed(q.tokens, q.offsets, q.scales), Packed(d.tokens, d.offsets, d.scales))
        scores += weights[1] * late
    if parts.pooled:
        scores += weights[0] * host_inner_products(q.pooled, d.pooled)
    first = _first_equal(d, parts)
    return scores if first is None else scores[:, first]


def _first_equal(d: Embeddings, parts: Parts) -> Int[np.ndarray, " Nd"] | None:
    """Returns for each document the first one that is equal in the parts; None = all differ."""
    signs = _signs(d, parts)
    ordered = np.sort(signs)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    _, group, sizes = np.unique(signs, return_inverse=True, return_counts=True)
    first, seen = np.arange(len(d)), dict[bytes, int]()
    for i in np.flatnonzero(sizes[group] > 1).tolist():
        first[i] = seen.setdefault(_content(d, i, parts), i)
    return None if len(seen) == np.count_nonzero(sizes[group] > 1) else first


def _signs(d: Embeddings, parts: Parts) -> Int[np.ndarray, " Nd"]:
    """Returns a number of each document that equal ones share, and others hardly: of some values, and of its length."""
    values, rows = d.pooled, [np.arange(len(d))]
    if parts.late:
        # First tokens, and often the last ones, are those of a prompt.
        values, rows = d.tokens, [(d.offsets[:-1] + d.offsets[1:]) // 2, d.offsets[1:] - 1]
    columns = 1 << min(8 // values.itemsize, values.shape[1]).bit_length() - 1  # 8 bytes of a row, or fewer
    signs = d.lengths.astype(np.uint64)
    for at in rows:
        some = np.ascontiguousarray(values[at, :columns])
        signs = signs * np.uint64(0x9E37_79B9_7F4A_7C15) + some.view(f"u{some.itemsize * columns}")[:, 0]
    return signs.view(np.int64)


def _content(d: Embeddings, item: int, parts: Parts) -> bytes:
    """Returns what is scored of a document."""
    tokens = slice(d.offsets[item], d.offsets[item + 1])
    arrays = [d.pooled[item]] * parts.pooled + [d.tokens[tokens]] * parts.late
    if parts.late and d.scales is not None:
        arrays.append(d.scales[tokens])
    return b"".join(x.tobytes() for x in arrays)
