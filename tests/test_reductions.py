"""Reductions of embeddings against float64 NumPy, token by token."""

import itertools
import math

import numpy as np
import pytest

from smart_jax import Embeddings, reductions, score
from smart_jax.retrieval.reductions import PCA, BinaryEmbeddings, keep_tokens, pool_grid, pool_tokens, truncate
from smart_jax.retrieval.states import States

IMAGE, VIDEO = 7, 8


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(lengths=(1, 5, 12, 2), *, width=6, seed=0, dtype=np.float32, pooled_width=None):
    rng = np.random.default_rng(seed)
    return Embeddings(
        pooled=unit(rng.standard_normal((len(lengths), pooled_width or width))).astype(dtype),
        tokens=unit(rng.standard_normal((sum(lengths), width)) + 0.4).astype(dtype),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )


def items(e):
    """Each item's tokens, float64."""
    return [e.tokens[a:b].astype(np.float64) for a, b in itertools.pairwise(e.offsets)]


def rows(x):
    """Rows in an order of their own, for sets of vectors to be compared."""
    return x[np.lexsort(np.round(x, 3).T)]


def lance_williams(x, count):
    """Ward's clustering of cosine distances by the Lance-Williams recurrence: the clusters as lists of rows."""
    distance = {(i, j): 1 - unit(x)[i] @ unit(x)[j] for i, j in itertools.combinations(range(len(x)), 2)}
    clusters = {i: [i] for i in range(len(x))}
    while len(clusters) > count:
        a, b = min(distance, key=distance.get)
        joined = distance.pop((a, b))
        n, m = len(clusters[a]), len(clusters[b])
        for c in set(clusters) - {a, b}:
            k = len(clusters[c])
            to_a, to_b = distance[min(a, c), max(a, c)], distance.pop((min(b, c), max(b, c)))
            squared = ((n + k) * to_a**2 + (m + k) * to_b**2 - k * joined**2) / (n + m + k)
            distance[min(a, c), max(a, c)] = math.sqrt(squared)
        clusters[a] += clusters.pop(b)
    return list(clusters.values())


@pytest.mark.parametrize("factor", [1.5, 2, 3, 5, 16])
def test_hierarchical_pooling_is_wards(factor):
    e = embeddings((1, 2, 7, 12, 20), width=5)
    pooled = pool_tokens(e, factor)
    assert pooled.lengths.tolist() == [math.ceil(n / factor) for n in (1, 2, 7, 12, 20)]
    for before, after in zip(items(e), items(pooled), strict=True):
        clusters = lance_williams(before, math.ceil(len(before) / factor))
        expected = unit(np.stack([before[members].mean(axis=0) for members in clusters]))
        np.testing.assert_allclose(rows(after), rows(expected), atol=1e-6)
    np.testing.assert_array_equal(pooled.pooled, e.pooled)


def test_copies_of_a_token_are_pooled_first():
    e = embeddings((6,), width=8)
    twice = Embeddings(e.pooled, np.concatenate([e.tokens, e.tokens]), np.array([0, 12]))
    (found,) = items(pool_tokens(twice, 2))
    np.testing.assert_allclose(rows(found), rows(e.tokens.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_sequential_pooling_is_of_runs(factor):
    e = embeddings((1, 5, 12, 20))
    for before, after in zip(items(e), items(pool_tokens(e, factor, "sequential")), strict=True):
        runs = np.array_split(np.arange(len(before)), math.ceil(len(before) / factor))
        assert len(after) == len(runs)
        # Which runs are the longer ones is not said: every mean is of consecutive tokens, and all tokens are used.
        bounds = [0]
        for mean in after:
            fits = [
                stop
                for stop in range(bounds[-1] + 1, len(before) + 1)
                if np.allclose(unit(before[bounds[-1] : stop].mean(axis=0)), mean, atol=1e-6)
            ]
            assert len(fits) == 1
            bounds.append(fits[0])
        assert bounds[-1] == len(before)
        assert sorted(np.diff(bounds)) == sorted(map(len, runs))


def test_pooling_keeps_dtype_and_what_needs_no_pooling():
    e = embeddings(dtype=np.float16)
    assert pool_tokens(e, 3).dtype == np.float16
    np.testing.assert_allclose(pool_tokens(e, 1).tokens, e.tokens, atol=1e-3)
    with pytest.raises(ValueError, match="factor is 0.5: it must be at least 1"):
        pool_tokens(e, 0.5)
    with pytest.raises(ValueError, match="method is 'kmeans': choose one of hierarchical, sequential"):
        pool_tokens(e, 2, "kmeans")
    with pytest.raises(TypeError, match=r"tokens are int8: use pool_tokens before astype\('int8'\)"):
        pool_tokens(e.astype(np.int8), 2)


@pytest.mark.usefixtures("unchecked")
def test_keep_tokens():
    e = embeddings((3, 4, 2))
    keep = np.array([1, 0, 1, 0, 0, 0, 0, 1, 1], bool)
    found = keep_tokens(e, keep)
    assert found.offsets.tolist() == [0, 2, 3, 5]
    np.testing.assert_array_equal(found.tokens, np.stack([e.tokens[0], e.tokens[2], e.pooled[1], *e.tokens[7:]]))
    small = keep_tokens(e.astype(np.int8)[[0, 2]], keep[[0, 1, 2, 7, 8]])
    np.testing.assert_array_equal(small.scales, e.astype(np.int8).scales[[0, 2, 7, 8]])
    with pytest.raises(ValueError, match=r"keep is int64 \(9,\): it must be bool, one for each of 9 tokens"):
        keep_tokens(e, keep.astype(np.int64))


def states(*, layers=2, width=5, seed=0, dtype=np.float32):
    """Three items: text; text, image, text, image; a video of two frames and text."""
    rng = np.random.default_rng(seed)
    grids = [(1, 1, 3, 5), (1, 1, 2, 2), (2, 2, 3, 3)]
    ids = [[1, 2], [3, *[IMAGE] * 15, 4, 5, *[IMAGE] * 4], [*[VIDEO] * 18, 6]]
    count = sum(map(len, ids))
    return States(
        pooled=unit(rng.standard_normal((3, width))).astype(dtype),
        states=unit(rng.standard_normal((count, layers, width))).astype(dtype),
        norms=rng.uniform(1, 2, (count, layers)).astype(np.float32),
        ids=np.concatenate(ids).astype(np.int32),
        offsets=np.cumsum([0, *map(len, ids)]),
        grids=np.array(grids, np.int32),
        visual_ids=(IMAGE, VIDEO),
        layers=tuple(range(-layers, 0)),
        depth=4,
    )


@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_pool_grid_is_the_mean_of_neighbours(window):
    s = states()
    found = pool_grid(s, window)
    expected, ids, norms, lengths = [], [], [], []
    grids = iter(s.grids.tolist())
    for first, last in itertools.pairwise(s.offsets):
        at, before = first, len(ids)
        while at < last:
            if s.ids[at] not in (IMAGE, VIDEO):
                expected.append(s.states[at].astype(np.float64))
                ids.append(s.ids[at])
                norms.append(s.norms[at].astype(np.float64))
                at += 1
                continue
            _, t, h, w = next(grids)
            cells = s.states[at : at + t * h * w].reshape(t, h, w, *s.states.shape[1:]).astype(np.float64)
            lengths_of = s.norms[at : at + t * h * w].reshape(t, h, w, -1)
            for frame, i, j in itertools.product(range(t), range(0, h, window), range(0, w, window)):
                part = cells[frame, i : i + window, j : j + window]
                expected.append(unit(part.reshape(-1, *part.shape[2:]).mean(axis=0)))
                norms.append(lengths_of[frame, i : i + window, j : j + window].mean(axis=(0, 1)))
                ids.append(s.ids[at])
            at += t * h * w
        lengths.append(len(ids) - before)
    assert found.lengths.tolist() == lengths and found.ids.tolist() == ids
    np.testing.assert_allclose(found.states, np.stack(expected), atol=1e-6)
    np.testing.assert_allclose(found.norms, np.stack(norms), rtol=1e-6)
    assert found.grids.tolist() == [[i, t, -(-h // window), -(-w // window)] for i, t, h, w in s.grids.tolist()]
    np.testing.assert_array_equal(found.pooled, s.pooled)


@pytest.mark.usefixtures("unchecked")
def test_pool_grid_of_texts_alone_and_of_wrong_windows():
    texts = states()[:1]
    np.testing.assert_array_equal(pool_grid(texts).ids, texts.ids)
    for window in (0, 1.5, True):
        with pytest.raises(ValueError, match="it must be an integer of at least 1"):
            pool_grid(texts, window)
    assert pool_grid(states(dtype=np.float16)).states.dtype == np.float16


@pytest.mark.usefixtures("unchecked")
def test_truncate():
    e = embeddings(width=6, pooled_width=8)
    found = truncate(e, 4, pooled_width=3)
    np.testing.assert_allclose(found.tokens, unit(e.tokens[:, :4].astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(found.pooled, unit(e.pooled[:, :3].astype(np.float64)), atol=1e-6)
    np.testing.assert_array_equal(truncate(e, 4).pooled, e.pooled)
    for width in (0, 7, 2.0):
        with pytest.raises(ValueError, match="width is .*: it must be an integer from 1 to 6"):
            truncate(e, width)


@pytest.mark.parametrize("centred", [False, True])
def test_pca_is_the_singular_value_decomposition(centred):
    e, q = embeddings((20, 30, 15), width=7), embeddings((3, 4), width=7, seed=1)
    pca = PCA.fit(e, 3, centred=centred)
    x = e.tokens.astype(np.float64)
    mean = x.mean(axis=0) if centred else np.zeros(7)
    _, strengths, vectors = np.linalg.svd(x - mean, full_matrices=False)
    for side in (e, q):
        expected = unit((side.tokens.astype(np.float64) - mean) @ vectors[:3].T)
        found = pca(side).tokens.astype(np.float64)
        signs = np.sign((found * expected).sum(axis=0))  # of each component: arbitrary, but the same on both sides
        np.testing.assert_allclose(found * signs, expected, atol=1e-5)
        np.testing.assert_array_equal(pca(side).pooled, side.pooled)
    same = (pca(e).tokens[:3] @ pca(q).tokens.T).astype(np.float64)
    both = [unit((side.tokens.astype(np.float64) - mean) @ vectors[:3].T) for side in (e, q)]
    np.testing.assert_allclose(same, both[0][:3] @ both[1].T, atol=1e-5)
    np.testing.assert_allclose(pca.strengths, (strengths**2 / (strengths**2).sum())[:3], atol=1e-6)


def test_pca_of_full_width_keeps_the_scores():
    q, d = embeddings((3, 4), seed=1), embeddings((9, 2, 7))
    pca = PCA.fit(d, 6)
    np.testing.assert_allclose(score(pca(q), pca(d)), score(q, d), atol=1e-5)


def test_pca_samples_tokens_and_refuses_other_widths():
    e = embeddings((400,), width=4)
    part, other = (PCA.fit(e, 2, sample=100, seed=seed) for seed in (0, 1))
    assert np.abs(part.components - other.components).max() > 1e-3
    np.testing.assert_array_equal(part.components, PCA.fit(e, 2, sample=100, seed=0).components)
    np.testing.assert_array_equal(PCA.fit(e, 2, sample=400).components, PCA.fit(e, 2).components)
    assert part(e.astype(np.float16)).dtype == np.float16
    with pytest.raises(ValueError, match="tokens have width 6, the PCA was fitted on width 4"):
        part(embeddings())
    with pytest.raises(ValueError, match="sample is 0"):
        PCA.fit(e, 2, sample=0)
    with pytest.raises(TypeError, match="use PCA before"):
        PCA.fit(e.astype(np.int8), 2)


@pytest.mark.compiles
@pytest.mark.parametrize("width", [5, 8, 17])
def test_binary_is_the_signs(width):
    d, q = embeddings(width=width), embeddings((3, 2), width=width, seed=1)
    binary = BinaryEmbeddings.of(d)
    signs = np.where(d.tokens > 0, 1.0, -1.0)
    assert binary.nbytes == 4 * width * 4 + 20 * math.ceil(width / 8) + 5 * 8
    np.testing.assert_allclose(
        binary.embeddings().astype(np.float32).tokens, signs / math.sqrt(width), rtol=1e-6, atol=0
    )
    late = score(q, binary.embeddings(), pooled_weight=0.0)
    both = score(BinaryEmbeddings.of(q).embeddings(), binary.embeddings(), pooled_weight=0.0)
    for i, query in enumerate(items(q)):
        for j, (a, b) in enumerate(itertools.pairwise(d.offsets)):
            page = signs[a:b]
            assert late[i, j] == pytest.approx((query @ page.T).max(axis=1).mean() / math.sqrt(width), abs=1e-6)
            agree = (np.sign(query)[:, None] == page[None]).sum(
                axis=2
            )  # width - 2 * Hamming distance = 2 * agree - width
            assert both[i, j] == pytest.approx((2 * agree.max(axis=1) - width).mean() / width, abs=1e-6)


def test_bits_that_do_not_fit():
    binary = BinaryEmbeddings.of(embeddings(width=9))
    with pytest.raises(ValueError, match=r"bits are uint8 \(20, 2\) for tokens of width 8: .* with 1 bytes for each"):
        BinaryEmbeddings(binary.pooled, binary.bits, binary.offsets, 8)
    with pytest.raises(ValueError, match="offsets end at 20, but there are 19 tokens"):
        BinaryEmbeddings(binary.pooled, binary.bits[:-1], binary.offsets, 9)


def test_chunks_do_not_matter(monkeypatch):
    e, s = embeddings((1, 5, 12, 20)), states()
    whole = pool_tokens(e, 3).tokens, PCA.fit(e, 3, centred=True)(e).tokens, pool_grid(s).states
    monkeypatch.setattr(reductions, "CHUNK", 3)
    parts = pool_tokens(e, 3).tokens, PCA.fit(e, 3, centred=True)(e).tokens, pool_grid(s).states
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
