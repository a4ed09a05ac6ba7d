"""The loss of a training run as a function of parameters and batch: encode both sides, score, compare."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt

from smart_jax.maxsim import maxsim, projected_maxsim
from smart_jax.models import VISUAL_FEATURES, Batch, Hidden, drop_out
from smart_jax.runtime import BATCH
from smart_jax.typing import register_arrays
from train.config import LossConfig
from train.objective import losses
from train.objective import reductions as vectors
from train.objective.gradcache import in_chunks
from train.objective.partition import Params, Part, Partition, Structure, temperature_name

Metrics = dict[str, jax.Array]
Scores = dict[str, Float[Array, "B N"]]  # "pooled" and, except for objective pooled, "late"


@register_arrays
@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """Queries and documents of the global batch; query i's documents are rows [i * K, (i + 1) * K), positive first."""

    queries: Batch  # B rows
    documents: Batch  # B * K rows, K = 1 + explicit negatives
    document_ids: UInt[Array, "N W"]  # equal for equal documents
    teacher: Float[Array, "B K"] | None = None  # scores of each query's documents; NaN = not scored; None = no teacher


class Encoded(NamedTuple):
    """One side of the batch, float32."""

    pooled: Float[Array, "B E"]  # unit
    tokens: Float[Array, "B L D"]  # unit
    mask: Bool[Array, "B L"]  # kept tokens
    raw_pooled: Float[Array, "B H"]
    fused: Float[Array, "B L H"]  # before the projection
    states: Float[Array, "B L N H"]  # of the backbone's N layers, as it gave them


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The loss as a function of parameters and batch.

    Attributes:
      config: which loss.
      steps: of the whole run, for the ramp.
      mesh: the batch is split over its data axes; the bank of documents is gathered from all of them.
      partition: which parameters are trained, and what each belongs to.
      backbone: structure of the backbone, with its low-rank branches.
      adapter: structure of the adapter; None = tokens are the last layer's states.
      dtype: the backbone's trained weights are cast to it for computing; None = as they are.
      remat: compute again in the backward pass, to save memory: the layers of a backbone that is trained, and the
        adapter's projection; the bank of documents is gathered from the devices part by part, too.
      remat_policy: what of a layer is computed again, see `smart_jax.models.layers.REMAT_POLICIES`.
      dropout_seed: of the low-rank branches' dropout, which follows from it, the step and the row; None = no dropout.
      chunk_size: rows of one side that pass through the backbone at a time, see `train.objective.gradcache`; None =
      all.
    """

    config: LossConfig
    steps: int
    mesh: Mesh
    partition: Partition
    backbone: Structure
    adapter: Structure | None = None
    dtype: Any = None
    remat: bool = False
    remat_policy: str = "full"
    dropout_seed: int | None = None
    chunk_size: int | None = None

    def __call__(
        self, params: Params, frozen: Params, batch: TrainBatch, step: Int[Array, ""], *, training: bool = True
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss of the batch at step `step` (1 .. steps), and metrics; without dropout unless `training`.

        The gradient reaches `params`; where none of them is the backbone's, its states are constants.
        """
        keys: Any = (None, None)
        if training and self.dropout_seed is not None:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(self.dropout_seed), step))
        queries = self.encode(params, frozen, batch.queries, keys[0])
        documents = self.encode(params, frozen, batch.documents, keys[1])
        rows = len(batch.queries.input_ids)
        positives = jnp.arange(rows) * (len(batch.documents.input_ids) // rows)
        excluded = losses.false_negatives(batch.document_ids, positives) if self.config.mask_false_negatives else None
        temperatures, widths = self._temperatures(params), self.config.widths
        loss: Any = 0.0
        metrics: Metrics = {}
        for width, scores in self._scores(params, queries, documents).items():
            part, found = contrastive(self.config, scores, temperatures, positives, excluded, step, self.steps)
            if self.config.distillation != "none":
                assert batch.teacher is not None, "the batch is of a Batcher without a teacher"
                found["distillation"] = distillation(self.config, scores, positives, batch.teacher)
                part = self.config.contrastive_weight * part + self.config.distillation_weight * found["distillation"]
            loss += part * widths[width] / sum(widths.values())
            metrics |= found if width is None else {f"loss_width_{width}": part}
        if self.config.diversity_weight:
            q, d = (losses.diversity(side.fused, side.mask) for side in (queries, documents))
            metrics["diversity"] = q + d
            loss += self.config.diversity_weight * (q + d)
        if self.config.overlap_weight:
            q, d = (losses.overlap(side.raw_pooled, side.fused, side.mask) for side in (queries, documents))
            metrics["overlap"] = q + d
            loss += self.config.overlap_weight * (q + d)
        if self.config.learn_temperature:
            metrics |= {f"temperature_{name}": t for name, t in temperatures.items()}
        return loss, metrics

    def encode(self, params: Params, frozen: Params, batch: Batch, dropout: Array | None = None) -> Encoded:
        """One side of a batch; `dropout` is the key of its masks."""
        trained = self.partition.trains_backbone
        layers = (-1,) if self.adapter is None else self.adapter.merge(params).config.layers

        def compute(weights: Params, batch: Batch, rows: Int[Array, " B"]) -> Hidden:
            model = self.backbone.merge(weights)
            if dropout is not None:
                drop_out(model, dropout, rows)
            return model(batch, layers=layers, remat=self.remat and trained and self.remat_policy)

        weights = frozen | self.cast(params)
        kept = () if self.partition.trains_vision else (VISUAL_FEATURES,)
        hidden = in_chunks(compute, weights, batch, size=self.chunk_size, mesh=self.mesh, trained=trained, kept=kept)
        keep = jnp.asarray(batch.keep_mask)
        if self.adapter is None:
            fused = hidden.states[:, :, 0].astype(jnp.float32)
            pooled = hidden.pooled.astype(jnp.float32)
            tokens = fused if hidden.tokens is None else hidden.tokens.astype(jnp.float32)
            return Encoded(losses.unit(pooled), losses.unit(tokens), keep, pooled, fused, hidden.states)
        adapter = self.adapter.merge(params)
        fused = adapter.fuse(hidden.states)
        pooled, raw_pooled = adapter.pooled(hidden.pooled), hidden.pooled.astype(jnp.float32)
        return Encoded(pooled, adapter.project(fused), keep, raw_pooled, fused, hidden.states)

    def cast(self, params: Params) -> Params:
        """The backbone's weights in `dtype`, the rest as they are."""
        if self.dtype is None:
            return params
        weights = self.partition.select(params, Part.BACKBONE)
        return params | {name: x.astype(self.dtype) for name, x in weights.items()}

    def _scores(self, params: Params, queries: Encoded, documents: Encoded) -> dict[int | None, Scores]:
        """Scores of every query with every document of the global batch, at each width of the loss."""
        bank = jax.lax.with_sharding_constraint(documents.pooled, NamedSharding(self.mesh, PartitionSpec()))
        scores: dict[int | None, Scores] = {}
        for width in self.config.widths:
            q, d = vectors.truncate(queries.pooled, width), vectors.truncate(bank, width)
            scores[width] = {"pooled": jnp.einsum("be,ne->bn", q, d, precision="highest")}
        if self.config.objective != "pooled":
            for found, late in zip(scores.values(), self._late(params, queries, documents), strict=True):
                found["late"] = late
        return scores

    def _late(self, params: Params, queries: Encoded, documents: Encoded) -> list[Float[Array, "B N"]]:
        """Each device scores its own queries with all documents: one gather, and one sum of the bank's gradient.

        Documents' tokens are pooled first and then, like the queries', cut to each width.
        """
        rows, whole, factor = BATCH, PartitionSpec(), self.config.pool_factor

        def cut(tokens: Array) -> list[Array]:
            return [vectors.truncate(tokens, width) for width in self.config.widths]

        if not self.remat:

            def score_tokens(q: Array, d: Array, q_mask: Array, d_mask: Array) -> list[Array]:
                return [maxsim(q, d, q_mask, d_mask) for q, d in zip(cut(q), cut(d), strict=True)]

            tokens, mask = vectors.pool_tokens(documents.tokens, documents.mask, factor)
            score = jax.shard_map(score_tokens, mesh=self.mesh, in_specs=(rows, whole, rows, whole), out_specs=rows)
            return score(queries.tokens, tokens, queries.mask, mask)
        structure = self.adapter
        bank = documents.tokens if structure is None else documents.states

        def score_bank(params: Params, q: Array, bank: Array, q_mask: Array, d_mask: Array) -> list[Array]:
            def project(params: Params, part: tuple[Array, Array]) -> list[Array]:
                x, mask = part
                tokens = x if structure is None else structure.merge(params)(x)
                return cut(vectors.pool_tokens(tokens, mask, factor)[0])

            mask = vectors.pool_mask(d_mask, factor)
            return projected_maxsim(project, params, cut(q), (bank, d_mask), q_mask, mask, axis_name=BATCH[0])

        projected = jax.shard_map(score_bank, mesh=self.mesh, in_specs=(whole, rows, rows, rows, rows), out_specs=rows)
        params = self.partition.select(params, Part.ADAPTER)
        return projected(params, queries.tokens, bank, queries.mask, documents.mask)

    def _temperatures(self, params: Params) -> dict[str, Any]:
        start = start_temperatures(self.config)
        if not self.config.learn_temperature:
            return start
        return {name: jnp.exp(params[temperature_name(name)]) for name in start}


def start_temperatures(config: LossConfig) -> dict[str, float]:
    """Temperature of each score that the objective uses."""
    late = config.temperature if config.late_temperature is None else config.late_temperature
    both = {"pooled": config.temperature, "late": late}
    return both if config.objective == "hybrid" else {config.objective: both[config.objective]}


def contrastive(
    config: LossConfig,
    scores: Scores,
    temperatures: dict[str, Any],
    positives: Int[Array, " B"],
    excluded: Bool[Array, "B N"] | None,
    step: Int[Array, ""],
    steps: int,
) -> tuple[Float[Array, ""], Metrics]:
    """The contrastive part of the loss, and the rates at which each score puts the positive first.

    Documents above `false_negative_margin` take no part in the loss, but in the rates, which would be 1 without them.
    """
    cross_entropy = losses.symmetric_info_nce if config.symmetric else losses.info_nce
    metrics = {f"{name}_hit@1": losses.hit_rate(s, positives, excluded) for name, s in scores.items()}
    if "late" in scores:
        both = config.pooled_weight * scores["pooled"] + config.late_weight * scores["late"]
        metrics["hybrid_hit@1"] = losses.hit_rate(both, positives, excluded)
    if config.false_negative_margin is not None:
        above = losses.above_positive(ranking_score(config, scores), positives, config.false_negative_margin)
        above = above if excluded is None else above & ~excluded
        metrics["false_negatives"] = jnp.mean(jnp.sum(above, axis=1, dtype=jnp.float32))  # of each query
        excluded = above if excluded is None else above | excluded
    if config.objective != "hybrid":
        logits = scores[config.objective] / temperatures[config.objective]
        return cross_entropy(logits, positives, excluded), metrics
    logits = losses.hybrid_logits(
        scores["pooled"],
        scores["late"],
        pooled_weight=config.pooled_weight,
        late_weight=config.late_weight,
        pooled_temperature=temperatures["pooled"],
        late_temperature=temperatures["late"],
    )
    metrics["hybrid_loss"] = cross_entropy(logits, positives, excluded)
    for name in ("pooled", "late"):
        metrics[f"{name}_loss"] = cross_entropy(scores[name] / temperatures[name], positives, excluded)
    start, end = config.late_loss_weight, config.late_loss_weight_end
    late_weight = losses.linear_ramp(step, steps, start, start if end is None else end)
    loss = config.hybrid_loss_weight * metrics["hybrid_loss"] + config.pooled_loss_weight * metrics["pooled_loss"]
    return loss + late_weight * metrics["late_loss"], metrics


def distillation(
    config: LossConfig,
    scores: Scores,
    positives: Int[Array, " B"],
    teacher: Float[Array, "B K"],
) -> Float[Array, ""]:
    """Of the teacher's scores of each query's own documents, NaN where it has none, into the objective's score."""
    loss = losses.kl_distillation if config.distillation == "kl" else losses.margin_mse
    student = losses.own_documents(ranking_score(config, scores), positives, teacher.shape[1])
    of_student = config.distillation_temperature or start_temperatures(config).get(config.objective, config.temperature)
    of_teacher = config.teacher_temperature or of_student
    return loss(student / of_student, teacher / of_teacher, ~jnp.isnan(teacher))


def ranking_score(config: LossConfig, scores: Scores) -> Float[Array, "B N"]:
    """The score that the objective ranks by."""
    if config.objective != "hybrid":
        return scores[config.objective]
    return config.pooled_weight * scores["pooled"] + config.late_weight * scores["late"]
