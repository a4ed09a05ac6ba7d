"""Every option of the loss: by hand, and through `Objective` against float64 NumPy, values and gradients."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smart_jax import Embeddings, reductions
from smart_jax.models.batch import Batch
from smart_jax.runtime.mesh import make_mesh
from smart_jax.vectors import l2_normalise
from train.config import OBJECTIVES, LossConfig, from_config_dict, to_config_dict
from train.data.batches import put_batch
from train.objective import (
    Encoded,
    Objective,
    Partition,
    Structure,
    TrainBatch,
    contrastive,
    distillation,
    losses,
    start_temperatures,
    temperature_name,
)
from train.objective import reductions as vectors

pytestmark = pytest.mark.compiles

LN2, LN3 = math.log(2), math.log(3)
NO_BACKBONE = Structure(nnx.graphdef(nnx.Module()), ())


Items = tuple[np.ndarray, list[np.ndarray]]  # pooled vectors [N, H], kept tokens [L, D] of each


def np_unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_kl_by_hand():
    # Teacher 1/2, 1/4, 1/4; student 1/4, 1/2, 1/4: 1/2 log 2 + 1/4 log 1/2 = 1/4 log 2. Row 1 differs by a constant.
    student = jnp.array([[0.0, LN2, 0.0], [1.0, 2.0, 3.0]])
    teacher = jnp.array([[LN2, 0.0, 0.0], [8.0, 9.0, 10.0]])
    np.testing.assert_allclose(losses.kl_distillation(student, teacher), LN2 / 4 / 2, rtol=1e-6)
    gradient = jax.grad(losses.kl_distillation, argnums=(0, 1))(student, teacher)
    np.testing.assert_allclose(gradient[0], [[-1 / 8, 1 / 8, 0], [0, 0, 0]], atol=1e-7)  # (q - p) / B
    np.testing.assert_array_equal(gradient[1], np.zeros((2, 3)))


def test_margin_mse_by_hand():
    # Margins of the student 1, -1 and 0, 2; of the teacher 3, 0 and 0, 2: squares 4, 1, 0, 0.
    student = jnp.array([[1.0, 0.0, 2.0], [5.0, 5.0, 3.0]])
    teacher = jnp.array([[3.0, 0.0, 3.0], [2.0, 2.0, 0.0]])
    assert float(losses.margin_mse(student, teacher)) == pytest.approx(5 / 4)
    gradient = jax.grad(losses.margin_mse, argnums=(0, 1))(student, teacher)
    # d = differences of margins -2, -1: 2 d / 4 for the positive in sum, and the opposite for each negative.
    np.testing.assert_allclose(gradient[0], [[-1.5, 1.0, 0.5], [0, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(gradient[1], np.zeros((2, 3)))


@pytest.mark.parametrize("loss", [losses.kl_distillation, losses.margin_mse])
def test_what_the_teacher_has_not_scored_takes_no_part(loss):
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 3, 4)).astype(np.float32)
    scored = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]], bool)
    held = np.where(scored, teacher, np.nan)
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(student), jnp.asarray(held), jnp.asarray(scored))
    rows = [loss(*jnp.stack([s[None, m], t[None, m]])) for s, t, m in zip(student, teacher, scored, strict=True)]
    pairs = [1, 1, 1] if loss is losses.kl_distillation else [2, 1, 1]  # one mean of queries, the other of pairs
    np.testing.assert_allclose(value, np.average(rows, weights=pairs), rtol=1e-5)
    assert np.isfinite(gradient).all() and not np.any(np.asarray(gradient)[~scored])
    assert np.all(np.asarray(gradient)[scored] != 0)


def test_above_positive_by_hand():
    scores = jnp.array([[0.5, 0.7, 0.4, 0.61], [0.9, 0.1, 0.2, -0.3]])
    at = jnp.array([0, 2])
    found = losses.above_positive(scores, at, 0.1)
    np.testing.assert_array_equal(found, [[False, True, False, True], [True, False, False, False]])
    found = losses.above_positive(scores, at, -0.15)
    np.testing.assert_array_equal(found, [[False, True, True, True], [True, True, False, False]])
    assert not np.any(losses.above_positive(scores, at, 5.0))


def test_margin_takes_negatives_out_of_the_loss_and_counts_them():
    """Scores are the objective's; the hit rates see all documents, and duplicates do not count twice."""
    pooled = jnp.array([[0.2, 0.9, 0.0, 0.1], [0.0, 0.3, 0.5, 0.4]])
    late = jnp.array([[0.3, 0.1, 0.9, 0.3], [0.0, 0.9, 0.6, 0.5]])
    scores, at = {"pooled": pooled, "late": late}, jnp.array([0, 2])
    duplicate = jnp.array([[False, True, False, False], [False] * 4])

    def found(objective, margin=0.1, excluded=None, symmetric=False):
        config = LossConfig(objective, temperature=1.0, false_negative_margin=margin, symmetric=symmetric)
        config = dataclasses.replace(config, pooled_weight=1.0, late_weight=2.0)
        return contrastive(config, scores, start_temperatures(config), at, excluded, jnp.int32(1), 1)

    def expected(s, kept):
        return np.mean([math.log(sum(math.exp(s[i][j]) for j in kept[i])) - s[i][p] for i, p in enumerate((0, 2))])

    loss, metrics = found("pooled")
    np.testing.assert_allclose(loss, expected(pooled, [[0, 2, 3], [0, 1, 2, 3]]), rtol=1e-6)
    assert metrics["false_negatives"] == 0.5 and metrics["pooled_hit@1"] == 0.5
    loss, metrics = found("late")
    np.testing.assert_allclose(loss, expected(late, [[0, 1, 3], [0, 2, 3]]), rtol=1e-6)
    assert metrics["false_negatives"] == 1.0 and metrics["late_hit@1"] == 0.0
    # Hybrid: [0.8, 1.1, 1.8, 0.7], [0, 2.1, 1.7, 1.4].
    loss, metrics = found("hybrid")
    both = pooled + 2 * late
    np.testing.assert_allclose(loss, expected(both, [[0, 3], [0, 2, 3]]), rtol=1e-6)
    np.testing.assert_allclose(metrics["late_loss"], expected(late, [[0, 3], [0, 2, 3]]), rtol=1e-6)
    assert metrics["false_negatives"] == 1.5
    assert found("hybrid", excluded=duplicate)[1]["false_negatives"] == 1.0
    assert "false_negatives" not in found("hybrid", None)[1]
    # Symmetric: query 0 ranks column 2 above its own, so it is no negative for document 2 either.
    loss, _ = found("late", symmetric=True)
    first = expected(late, [[0, 1, 3], [0, 2, 3]])
    second = np.mean([math.log(math.exp(0.3) + math.exp(0.0)) - 0.3, 0.0])
    np.testing.assert_allclose(loss, (first + second) / 2, rtol=1e-6)


def test_distillation_is_of_the_objectives_score_over_two_temperatures():
    pooled = jnp.array([[0.1, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 0.2]])
    late = jnp.array([[0.0, 0.4, 9.0, 9.0], [9.0, 9.0, 0.3, 0.0]])
    teacher = jnp.array([[5.0, 1.0], [2.0, 4.0]])

    def found(objective, **settings):
        config = LossConfig(objective, temperature=0.5, pooled_weight=2.0, late_weight=0.5, **settings)
        scores = {"pooled": pooled, "late": late}
        return float(distillation(config, scores, jnp.array([0, 2]), teacher))

    # Margins of the student: pooled 0.1, -0.2; late -0.4, 0.3; of the teacher 4, -2.
    def mse(a, b, student, teacher):
        return ((a / student - 4 / teacher) ** 2 + (b / student + 2 / teacher) ** 2) / 2

    assert found("pooled", distillation="margin_mse") == pytest.approx(mse(0.1, -0.2, 0.5, 0.5), rel=1e-5)
    assert found("late", distillation="margin_mse", teacher_temperature=2.0) == pytest.approx(mse(-0.4, 0.3, 0.5, 2.0))
    settings = {"distillation": "margin_mse", "distillation_temperature": 0.25}
    assert found("hybrid", **settings) == pytest.approx(mse(0.0, -0.25, 0.25, 0.25), rel=1e-5)
    # Two documents: the divergence of two coins.
    p, q = 1 / (1 + math.exp(-4 / 8)), 1 / (1 + math.exp(-0.1 / 0.5))
    r, s = 1 / (1 + math.exp(2 / 8)), 1 / (1 + math.exp(0.2 / 0.5))
    expected = [x * math.log(x / y) + (1 - x) * math.log((1 - x) / (1 - y)) for x, y in ((p, q), (r, s))]
    assert found("pooled", distillation="kl", teacher_temperature=8.0) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_truncation_is_that_of_embeddings(width):
    rng = np.random.default_rng(0)
    pooled, tokens = (np_unit(rng.standard_normal((n, 8))).astype(np.float32) for n in (2, 5))
    expected = reductions.truncate(Embeddings(pooled, tokens, np.array([0, 2, 5])), width, pooled_width=width)
    np.testing.assert_allclose(vectors.truncate(jnp.asarray(pooled), width), expected.pooled, atol=1e-6)
    np.testing.assert_allclose(vectors.truncate(jnp.asarray(tokens), width), expected.tokens, atol=1e-6)
    assert vectors.truncate(x := jnp.asarray(tokens), None) is x


@pytest.mark.parametrize("factor", [1.0, 1.4, 2.0, 3.0, 3.3, 100.0])
def test_pooling_is_that_of_embeddings(factor):
    """Kept tokens anywhere in the row; 21 / 1.4 is 15.000000000000002 in float64, so 16 runs."""
    rng = np.random.default_rng(0)
    lengths = [1, 2, 3, 5, 7, 14, 20, 21, 22]
    mask = np.zeros((len(lengths), 22), bool)
    for row, n in zip(mask, lengths, strict=True):
        row[rng.choice(22, n, replace=False)] = True
    tokens = np_unit(rng.standard_normal((*mask.shape, 6))).astype(np.float32)
    pooled = np_unit(rng.standard_normal((len(lengths), 6))).astype(np.float32)
    e = Embeddings(pooled, tokens[mask], np.cumsum([0, *lengths]))
    expected = reductions.pool_tokens(e, factor, "sequential")
    held = np.where(mask[..., None], tokens, np.nan)
    means, kept = jax.jit(vectors.pool_tokens, static_argnums=2)(held, mask, factor)
    assert np.asarray(kept).sum(axis=1).tolist() == expected.lengths.tolist()
    np.testing.assert_allclose(np.asarray(means)[np.asarray(kept)], expected.tokens, atol=1e-6)
    np.testing.assert_array_equal(vectors.pool_mask(jnp.asarray(mask), factor), kept)
    assert kept.shape[1] == (22 if factor == 1 else math.ceil(22 / factor))


def test_gradients_of_means_go_to_their_members():
    """Runs {0, 1} and {3, 4} of the kept tokens; by autodiff of the same mean as a product with a fixed matrix."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.standard_normal((1, 5, 3)).astype(np.float32))
    mask = jnp.array([[True, True, False, True, True]])
    g = rng.standard_normal((1, 2, 3)).astype(np.float32)
    matrix = np.float32([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    found = jax.grad(lambda x: jnp.sum(g * vectors.pool_tokens(x, mask, 2)[0][:, :2]))(tokens)
    expected = jax.grad(lambda x: jnp.sum(g * l2_normalise(jnp.einsum("gl,nld->ngd", matrix, x))))(tokens)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.any(found[0, 2]) and np.all(np.asarray(found)[0, [0, 1, 3, 4]] != 0)


def test_widths_with_weights():
    assert LossConfig(matryoshka="64,128").widths == {None: 1, 64: 1, 128: 1}
    assert LossConfig(matryoshka=" 64=0.5, 128=2").widths == {None: 1, 64: 0.5, 128: 2}
    assert LossConfig().widths == {None: 1}
    values = to_config_dict(LossConfig())
    values.update_from_flattened_dict({"matryoshka": "8", "false_negative_margin": 0.1, "distillation": "kl"})
    assert from_config_dict(values, LossConfig) == LossConfig(
        matryoshka="8", false_negative_margin=0.1, distillation="kl"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"matryoshka": text}, "matryoshka is .*: expected widths") for text in ("0", "64,64", "-1", "64=", "64=0")),
        *(({"matryoshka": text}, "matryoshka is .*: expected widths") for text in ("a", "64,,32", "64=-1")),
        ({"pool_factor": 0.5}, "pool_factor is 0.5: it must be at least 1"),
        ({"pool_factor": math.nan}, "pool_factor is nan"),
        ({"pool_factor": 2.0, "objective": "pooled"}, "objective 'pooled' has none"),
        ({"distillation": "mse"}, "loss.distillation is 'mse': choose one of none, kl, margin_mse"),
        ({"teacher_temperature": 0.0}, "loss.teacher_temperature is 0.0"),
        ({"contrastive_weight": 0.5}, "is 0.5, but there is no distillation"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)


# Through Objective, on vectors that stand in for those of a model: B = 8 queries of K = 3 documents each.

B, K, P, L, D = 8, 3, 4, 9, 12
EVERYTHING = {
    "symmetric": True,
    "false_negative_margin": 0.05,
    "matryoshka": "5,8=0.5",
    "distillation_weight": 0.7,
    "contrastive_weight": 0.6,
    "teacher_temperature": 0.8,
    "late_temperature": 0.4,
    "learn_temperature": True,
}
CASES: dict[str, dict[str, Any]] = {
    "pooled": {"objective": "pooled"},
    "late": {"objective": "late"},
    "hybrid": {"objective": "hybrid", "pooled_loss_weight": 0.5, "late_loss_weight": 0.25},
    "margin": {"objective": "late", "false_negative_margin": 0.02},
    "kl": {"objective": "late", "distillation": "kl"},
    "margin_mse": {"objective": "pooled", "distillation": "margin_mse", "contrastive_weight": 0.0},
    "widths": {"objective": "hybrid", "matryoshka": "5,8=0.5"},
    "pooled tokens": {"objective": "late", "pool_factor": 2.5},
    "all, pooled": {"objective": "pooled", "distillation": "kl", **EVERYTHING},
    "all, late": {"objective": "late", "distillation": "margin_mse", "pool_factor": 2.0, **EVERYTHING},
    "all, hybrid": {
        "objective": "hybrid",
        "distillation": "kl",
        "pool_factor": 3.0,
        "pooled_weight": 0.7,
        "late_weight": 1.6,
        "pooled_loss_weight": 0.5,
        "late_loss_weight": 0.25,
        "late_loss_weight_end": 0.75,
        **EVERYTHING,
    },
}


class OfVectors(Objective):
    """The vectors of both sides are parameters themselves."""

    def encode(self, params, frozen, batch, dropout=None):
        side = "q" if len(batch.input_ids) == B else "d"
        tokens = params[f"{side}_tokens"]
        return Encoded(params[f"{side}_pooled"], tokens, batch.keep_mask, tokens[:, 0], tokens, tokens[:, :, None])


def made(seed=0):
    """Vectors float64, masks, identities, and a teacher's scores, of which two are missing."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(D)
    shapes = {"q_pooled": (B, D), "q_tokens": (B, P, D), "d_pooled": (B * K, D), "d_tokens": (B * K, L, D)}
    arrays = {name: np_unit(rng.standard_normal(shape) + 0.5 * shared) for name, shape in shapes.items()}
    masks = rng.random((B, P)) < 0.7, rng.random((B * K, L)) < 0.7
    masks[0][:, 0] = masks[1][:, 1] = True
    ids = np.arange(B * K, dtype=np.uint32)[:, None]
    ids[[9, 4]] = ids[0]  # positive of query 3, a negative of query 1
    teacher = rng.standard_normal((B, K))
    teacher[2, 1] = teacher[5, 2] = np.nan
    return arrays, masks, ids, teacher


def run(config: LossConfig, devices: int, arrays, masks, ids, teacher, step=3):
    mesh = make_mesh(devices=jax.devices()[:devices])

    def batch(mask):
        rows, length = mask.shape
        whole = np.zeros(mask.shape, np.int32)
        return Batch(whole, mask, np.zeros((3, rows, length), np.int32), mask, whole, None)

    with_teacher = config.distillation != "none"
    batch = TrainBatch(*map(batch, masks), ids, teacher.astype(np.float32) if with_teacher else None)
    params = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    if config.learn_temperature:
        params |= {temperature_name(n): jnp.log(jnp.float32(t)) for n, t in start_temperatures(config).items()}
    objective = OfVectors(config, 5, mesh, Partition({}, {}), NO_BACKBONE)
    function = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, metrics), gradient = function(params, {}, put_batch(batch, mesh), jnp.int32(step))
    return float(loss), jax.device_get(metrics), jax.device_get(gradient)


def items(arrays, masks) -> tuple[Items, Items]:
    """Queries and documents of such arrays."""
    sides = zip("qd", masks, strict=True)
    return tuple((arrays[f"{s}_pooled"], [t[m] for t, m in zip(arrays[f"{s}_tokens"], mask, strict=True)])
                 for s, mask in sides)  # fmt: skip


def np_pooled(tokens, factor):
    """Means of runs, one by one."""
    count = math.ceil(len(tokens) / factor)
    runs = [[t for t in range(len(tokens)) if t * count // len(tokens) == g] for g in range(count)]
    return np.stack([np_unit(tokens[run].mean(axis=0)) for run in runs])


def np_info_nce(logits, at, excluded):
    total = 0.0
    for i, row in enumerate(logits):
        kept = row[~excluded[i]]
        total += np.log(np.exp(kept - kept.max()).sum()) + kept.max() - row[at[i]]
    return total / len(logits)


def np_objective(config: LossConfig, queries: Items, documents: Items, ids, teacher, temperatures, ramp=0.5):
    """The whole loss in float64, from the definitions, and how many documents per query the margin leaves out.

    `ids`: of the documents; `teacher`: scores of each query's documents; `ramp`: how far the late loss's weight is.
    """
    (q_pooled, queries), (d_pooled, documents) = queries, documents
    B, N = len(queries), len(documents)
    at = np.arange(B) * (N // B)
    if config.pool_factor > 1:
        documents = [np_pooled(tokens, config.pool_factor) for tokens in documents]
    total = weights = 0.0
    for width, weight in config.widths.items():

        def cut(x, width=width):
            return x if width is None else np_unit(x[..., :width])

        pooled = cut(q_pooled) @ cut(d_pooled).T
        late = np.array([[(cut(q) @ cut(d).T).max(axis=1).mean() for d in documents] for q in queries])
        score = {"pooled": pooled, "late": late, "hybrid": config.pooled_weight * pooled + config.late_weight * late}
        score = score[config.objective]
        excluded = np.array([[ids[j] == ids[at[i]] and j != at[i] for j in range(N)] for i in range(B)])
        above = np.zeros_like(excluded)
        if (margin := config.false_negative_margin) is not None:
            above = np.array([[score[i, j] > score[i, at[i]] + margin and j != at[i] for j in range(N)]
                              for i in range(B)])  # fmt: skip
            if width is None:
                count = (above & ~excluded).sum() / B
        out = excluded | above

        def cross_entropy(logits, out=out):
            first = np_info_nce(logits, at, out)
            if not config.symmetric:
                return first
            return (first + np_info_nce(logits[:, at].T, np.arange(B), out[:, at].T)) / 2

        logits = {
            name: s / temperatures[name] for name, s in (("pooled", pooled), ("late", late)) if name in temperatures
        }
        if config.objective == "hybrid":
            both = config.pooled_weight * logits["pooled"] + config.late_weight * logits["late"]
            end = config.late_loss_weight if config.late_loss_weight_end is None else config.late_loss_weight_end
            loss = config.hybrid_loss_weight * cross_entropy(both)
            loss += config.pooled_loss_weight * cross_entropy(logits["pooled"])
            loss += (config.late_loss_weight + ramp * (end - config.late_loss_weight)) * cross_entropy(logits["late"])
        else:
            loss = cross_entropy(logits[config.objective])
        loss *= config.contrastive_weight
        if config.distillation != "none":
            of_student = config.late_temperature if config.objective == "late" else None
            of_student = config.distillation_temperature or of_student or config.temperature
            of_teacher, parts = config.teacher_temperature or of_student, []
            for i in range(B):
                scored = np.flatnonzero(~np.isnan(teacher[i]))
                student, own = score[i, at[i] + scored] / of_student, teacher[i, scored] / of_teacher
                if config.distillation == "kl":
                    p, q = (np.exp(x) / np.exp(x).sum() for x in (own, student))
                    parts.append(np.sum(p * np.log(p / q)))
                else:
                    parts.extend(((student[0] - student[1:]) - (own[0] - own[1:])) ** 2)
            loss += config.distillation_weight * np.mean(parts)
        total, weights = total + weight * loss, weights + weight
    return total / weights, count if config.false_negative_margin is not None else None


@pytest.mark.parametrize("name", CASES)
def test_equals_float64_on_one_and_eight_devices(name):
    """Value, and gradients with respect to random directions of each side's vectors and to learned temperatures."""
    config = LossConfig(**({"temperature": 0.3} | CASES[name]))
    given = arrays, masks, ids, teacher = made()
    temperatures = start_temperatures(config)

    def exact(arrays=arrays, temperatures=temperatures):
        return np_objective(config, *items(arrays, masks), ids[:, 0], teacher, temperatures)

    expected, count = exact()
    alone = name in OBJECTIVES or name.startswith("all")  # the rest on eight devices only
    found = {devices: run(config, devices, *given) for devices in ((1, 8) if alone else (8,))}
    for loss, metrics, _ in found.values():
        assert loss == pytest.approx(expected, rel=2e-6, abs=2e-6)
        if count is not None:
            assert metrics["false_negatives"] == pytest.approx(count) and count > 0.3

    rng = np.random.default_rng(1)
    step = 1e-6
    for part in [*arrays, *(f"log_temperature.{n}" for n in temperatures if config.learn_temperature)]:
        if part in arrays:
            direction = rng.standard_normal(arrays[part].shape)
            moved = [arrays | {part: arrays[part] + sign * step * direction} for sign in (1, -1)]
            values = [exact(x)[0] for x in moved]
        else:
            direction, which = 1.0, part.partition(".")[2]
            scaled = [temperatures | {which: temperatures[which] * math.exp(sign * step)} for sign in (1, -1)]
            values = [exact(temperatures=t)[0] for t in scaled]
        slope = (values[0] - values[1]) / (2 * step)
        for _, _, gradient in found.values():
            assert np.sum(gradient[part] * direction) == pytest.approx(slope, rel=2e-5, abs=2e-6), part
    for part in arrays if alone else ():
        np.testing.assert_allclose(found[8][2][part], found[1][2][part], atol=1e-6)


def test_negatives_have_gradients_on_every_device():
    """Takes objective hybrid: all queries, all positives and both negatives of each query, wherever they are."""
    config = LossConfig("hybrid", temperature=0.3)
    gradient = run(config, 8, *made())[2]
    norms = {name: np.abs(g).reshape(len(g), -1).max(axis=1) for name, g in gradient.items()}
    assert {name: len(x) for name, x in norms.items()} == {"q_pooled": B, "q_tokens": B, "d_pooled": 24, "d_tokens": 24}
    for name, x in norms.items():
        assert np.all(x > 1e-5), name


def test_local_banks_are_each_devices_own():
    """Four devices, each of which compares its two queries with their six documents: the mean of four losses."""
    config = LossConfig(**({"temperature": 0.3, "bank": "local"} | CASES["all, hybrid"]))
    arrays, masks, ids, teacher = made()
    (q_pooled, queries), (d_pooled, documents) = items(arrays, masks)
    temperatures = start_temperatures(config)
    expected, counts = zip(
        *(
            np_objective(
                config,
                (q_pooled[i : i + 2], queries[i : i + 2]),
                (d_pooled[K * i : K * (i + 2)], documents[K * i : K * (i + 2)]),
                ids[K * i : K * (i + 2), 0],
                teacher[i : i + 2],
                temperatures,
            )
            for i in range(0, B, 2)
        ),
        strict=True,
    )
    loss, metrics, _ = run(config, 4, arrays, masks, ids, teacher)
    assert loss == pytest.approx(np.mean(expected), rel=2e-6)
    assert metrics["false_negatives"] == pytest.approx(np.mean(counts)) and np.mean(counts) > 0.1
    assert run(config, 1, arrays, masks, ids, teacher)[0] == pytest.approx(
        np_objective(config, *items(arrays, masks), ids[:, 0], teacher, temperatures)[0], rel=2e-6
    )
