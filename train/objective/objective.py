"""The loss of a training run as a function of parameters and batch: encode both sides, score, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt

from smart_jax.maxsim import maxsim, projected_maxsim
from smart_jax.models import VISUAL_FEATURES, Batch, Hidden, drop_out
from smart_jax.retrieval import AdapterDropout
from smart_jax.runtime import BATCH
from smart_jax.typing import HostOrDevice, register_arrays
from smart_jax.vectors import l2_normalise
from train.config import LossConfig
from train.objective import losses
from train.objective import reductions as vectors
from train.objective.gradcache import in_chunks
from train.objective.partition import Params, Part, Partition, Structure, temperature_name
from train.objective.states_batch import StatesBatch

ADAPTER = 2**31 - 1  # number of the adapter's dropout, which no branch of the backbone has

Metrics = dict[str, jax.Array]
Scores = dict[str, Float[Array, "B N"]]  # "pooled" and, except for objective pooled, "late"


@register_arrays
@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """Queries and documents of the global batch, and what the loss knows of them.

    Attributes:
      queries: B tokenised queries, or their states.
      documents: N = B * K tokenised documents, or their states, K = 1 + explicit negatives of each query; those of
        query i are rows [i * K, (i + 1) * K), its positive first.
      document_ids: identity of each document in a few words, equal for equal documents.
      teacher: a teacher's scores of each query's documents, NaN = not scored; None = there is no teacher.

    Example:
      >>> import numpy as np
      >>> ids, mask = np.zeros((2, 3), np.int32), np.ones((2, 3), bool)
      >>> texts = Batch(ids, mask, np.zeros((3, 2, 3), np.int32), mask, ids, None)
      >>> TrainBatch(texts, texts, np.array([[0], [1]], np.uint32)).document_ids.shape
      (2, 1)
    """

    queries: Batch | StatesBatch
    documents: Batch | StatesBatch
    document_ids: UInt[HostOrDevice, "N words"]
    teacher: Float[HostOrDevice, "B K"] | None = None


class Encoded(NamedTuple):
    """Vectors of the queries, or of the documents, of a batch; float32 except for `states`.

    Example:
      >>> pooled, tokens, mask = jnp.ones((2, 4)), jnp.ones((2, 3, 4)), jnp.ones((2, 3), bool)
      >>> Encoded(pooled, tokens, mask, pooled, tokens, tokens[:, :, None]).states.shape
      (2, 3, 1, 4)
    """

    pooled: Float[Array, "B pooled"]  # unit vectors, possibly truncated
    tokens: Float[Array, "B L D"]  # unit vectors
    mask: Bool[Array, "B L"]  # True for kept tokens
    raw_pooled: Float[Array, "B H"]  # neither truncated nor normalised
    fused: Float[Array, "B L H"]  # states before the projection
    states: Float[Array, "B L layers H"]  # of the backbone, in its own precision
    dropout: AdapterDropout | None = None  # of the tokens' projection


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """Loss as a function of parameters and batch.

    Attributes:
      config: says which loss.
      steps: number of steps of the whole run, for the ramp of a weight.
      mesh: the batch is split over its data axes; the bank of documents travels around their ring, a few documents at a
        time, or is each device's own.
      partition: which parameters are trained, and what each belongs to.
      backbone: structure of the backbone, with its low-rank branches.
      adapter: structure of the adapter; None = tokens are the last layer's states.
      dtype: what trained weights of the backbone are cast to for computing; None = they stay as they are.
      remat: whether the layers of a backbone that is trained, and the adapter's projection, are computed again in the
        backward pass, to save memory.
      remat_policy: what of a layer is computed again, see `smart_jax.models.REMAT_POLICIES`.
      dropout_seed: seed of all dropout, which follows from it, the step and the row; None = no dropout.
      adapter_dropout: probability with which a value between the two maps of an adapter of kind "mlp" is dropped, by
        the same seed.
      chunk_size: rows of queries, or of documents, that pass through the backbone at a time, see
        `train.objective.gradcache`; None = all.

    Example:
      >>> from train.config import TrainConfig, LossConfig
      >>> from train.setup import load_encoder, make_objective
      >>> from smart_jax.runtime import make_mesh
      >>> config = TrainConfig(model="tiny", loss=LossConfig(objective="late"))
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> params, frozen, objective = make_objective(config, load_encoder(config, mesh), mesh, steps=10)
      >>> sorted(params), objective.partition.trains_backbone
      (['adapter.norm.bias', 'adapter.norm.scale', 'adapter.proj.kernel'], False)
    """

    config: LossConfig
    steps: int
    mesh: Mesh | AbstractMesh
    partition: Partition
    backbone: Structure
    adapter: Structure | None = None
    dtype: DTypeLike | None = None
    remat: bool = False
    remat_policy: str = "full"
    dropout_seed: int | None = None
    adapter_dropout: float = 0.0
    chunk_size: int | None = None

    def __call__(
        self, params: Params, frozen: Params, batch: TrainBatch, step: Int[Array, ""], *, training: bool = True
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss of a batch and what is logged with it.

        The gradient reaches `params`. Where none of them is the backbone's, its states are constants.

        Args:
          params: trained parameters by name.
          frozen: the other parameters by name.
          batch: the global batch.
          step: number of the step, 1 .. steps.
          training: whether there is dropout.

        Returns:
          The loss, and metrics by name, scalars.
        """
        of_queries = of_documents = None
        if training and self.dropout_seed is not None:
            key = jax.random.fold_in(jax.random.key(self.dropout_seed), step)
            of_queries, of_documents = jax.random.split(key)
        queries = self.encode(params, frozen, batch.queries, of_queries)
        documents = self.encode(params, frozen, batch.documents, of_documents)
        return self.compare(params, queries, documents, batch.document_ids, batch.teacher, step)

    def compare(
        self,
        params: Params,
        queries: Encoded,
        documents: Encoded,
        document_ids: UInt[HostOrDevice, "N words"],
        teacher: Float[HostOrDevice, "B K"] | None,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss of encoded queries and documents, and what is logged with it.

        Args:
          params: trained parameters by name.
          queries, documents: of the batch.
          document_ids, teacher: as of a `TrainBatch`.
          step: number of the step, 1 .. steps.

        Returns:
          The loss, and metrics by name, scalars; with local banks both are means over the banks.
        """
        banks, per_query = self._banks, len(documents.pooled) // len(queries.pooled)
        ids, of_teacher = _by_bank(jnp.asarray(document_ids), banks), None
        if self.config.distillation != "none":
            assert teacher is not None, "the batch is of a Batcher without a teacher"
            of_teacher = _by_bank(jnp.asarray(teacher), banks)
        temperatures, widths = self._temperatures(params), self.config.widths
        score = partial(self._compare_bank, temperatures, step, jnp.arange(len(queries.pooled) // banks) * per_query)
        loss = jnp.float32(0)
        metrics: Metrics = {}
        for width, scores in self._scores(params, queries, documents).items():
            part, parts = _mean_of_banks(
                score, {name: _by_bank(s, banks) for name, s in scores.items()}, ids, of_teacher
            )
            loss += part * widths[width] / sum(widths.values())
            metrics |= parts if width is None else {f"loss_width_{width}": part}
        if self.config.diversity_weight:
            q, d = (losses.diversity(side.fused, side.mask) for side in (queries, documents))
            metrics["diversity"] = q + d
            loss += self.config.diversity_weight * (q + d)
        if self.config.overlap_weight:
            q, d = (losses.overlap(side.raw_pooled, side.fused, side.mask) for side in (queries, documents))
            metrics["overlap"] = q + d
            loss += self.config.overlap_weight * (q + d)
        if self.config.learn_temperature:
            metrics |= {f"temperature_{name}": jnp.asarray(t) for name, t in temperatures.items()}
        return loss, metrics

    def _compare_bank(
        self,
        temperatures: Mapping[str, float | Float[Array, ""]],
        step: Int[Array, ""],
        positives: Int[Array, " B"],
        scores: Scores,
        ids: UInt[Array, "N words"],
        teacher: Float[Array, "B K"] | None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss of some queries with the documents of their bank."""
        excluded = losses.false_negatives(ids, positives) if self.config.mask_false_negatives else None
        loss, metrics = contrastive(self.config, scores, temperatures, positives, excluded, step, self.steps)
        if teacher is None:
            return loss, metrics
        metrics["distillation"] = distillation(self.config, scores, positives, teacher)
        loss = self.config.contrastive_weight * loss + self.config.distillation_weight * metrics["distillation"]
        return loss, metrics

    def encode(
        self, params: Params, frozen: Params, batch: Batch | StatesBatch, dropout: Array | None = None
    ) -> Encoded:
        """Computes the vectors of queries or documents; `dropout` is the key of the masks, None = no dropout."""
        if isinstance(batch, StatesBatch):
            return self.encoded(params, batch.hidden(), jnp.asarray(batch.keep_mask), dropout)
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
        keep = batch.keep_mask if self.config.tokens == "kept" else batch.attention_mask
        return self.encoded(params, hidden, jnp.asarray(keep), dropout)

    def encoded(
        self, params: Params, hidden: Hidden, keep: Bool[Array, "B L"], dropout: Array | None = None
    ) -> Encoded:
        """Computes the vectors of queries or documents from the backbone's states.

        Args:
          params: trained parameters by name.
          hidden: the states.
          keep: the kept tokens.
          dropout: as of `encode`.

        Returns:
          Their vectors.
        """
        if self.adapter is None:
            fused = hidden.states[:, :, 0].astype(jnp.float32)
            pooled = hidden.pooled.astype(jnp.float32)
            tokens = fused if hidden.tokens is None else hidden.tokens.astype(jnp.float32)
            return Encoded(l2_normalise(pooled), l2_normalise(tokens), keep, pooled, fused, hidden.states)
        adapter = self.adapter.merge(params)
        fused = adapter.fuse(hidden.states)
        pooled, raw_pooled = adapter.pooled(hidden.pooled), hidden.pooled.astype(jnp.float32)
        dropped = self._dropped(dropout, len(keep))
        tokens = adapter.project(fused, keep, dropout=dropped)
        return Encoded(pooled, tokens, keep, raw_pooled, fused, hidden.states, dropped)

    def _dropped(self, key: Array | None, rows: int) -> AdapterDropout | None:
        """Returns what the adapter drops of each row; the key has other uses, which take other numbers."""
        if key is None or not self.adapter_dropout:
            return None
        keys = jax.random.split(jax.random.fold_in(key, ADAPTER), rows)
        return AdapterDropout(self.adapter_dropout, jax.random.key_data(keys))

    def cast(self, params: Params) -> Params:
        """Returns the parameters with the backbone's weights in `dtype`."""
        if self.dtype is None:
            return params
        weights = self.partition.select(params, Part.BACKBONE)
        return params | {name: x.astype(self.dtype) for name, x in weights.items()}

    @property
    def _shards(self) -> int:
        """Devices that share the batch."""
        return int(self.mesh.shape["data"] * self.mesh.shape["fsdp"])

    @property
    def _banks(self) -> int:
        return self._shards if self.config.bank == "local" else 1

    def _scores(self, params: Params, queries: Encoded, documents: Encoded) -> dict[int | None, Scores]:
        """Computes the scores of every query with every document of its bank, at each width of the loss."""
        bank = documents.pooled
        if self.config.bank == "global":
            bank = jax.lax.with_sharding_constraint(bank, NamedSharding(self.mesh, PartitionSpec()))
        scores: dict[int | None, Scores] = {}
        for width in self.config.widths:
            q, d = (_by_bank(vectors.truncate(x, width), self._banks) for x in (queries.pooled, bank))
            pooled = jnp.einsum("gbe,gne->gbn", q, d, precision="highest")
            scores[width] = {"pooled": pooled.reshape(len(queries.pooled), -1)}
        if self.config.objective != "pooled":
            for at_width, late in zip(scores.values(), self._late(params, queries, documents), strict=True):
                at_width["late"] = late
        return scores

    def _late(self, params: Params, queries: Encoded, documents: Encoded) -> list[Float[Array, "B N"]]:
        """Computes late scores at each width; each device scores its share of the queries with their bank.

        Documents' tokens are pooled first and then, as the queries' are, cut to each width. Of other devices' documents
        a few of one device are here at a time, see `smart_jax.maxsim.projected_maxsim`.
        """
        rows, whole, factor = BATCH, PartitionSpec(), self.config.pool_factor
        travels = self.config.bank == "global" and self._shards > 1

        def cut(tokens: Array) -> list[Array]:
            return [vectors.truncate(tokens, width) for width in self.config.widths]

        if not self.remat and not travels:

            def score_tokens(q: Array, d: Array, q_mask: Array, d_mask: Array) -> list[Array]:
                return [maxsim(q, d, q_mask, d_mask) for q, d in zip(cut(q), cut(d), strict=True)]

            tokens, mask = vectors.pool_tokens(documents.tokens, documents.mask, factor)
            score = jax.shard_map(score_tokens, mesh=self.mesh, in_specs=(rows, rows, rows, rows), out_specs=rows)
            return score(queries.tokens, tokens, queries.mask, mask)
        structure = self.adapter if self.remat else None
        bank = documents.tokens if structure is None else documents.states

        def score_bank(
            params: Params, q: Array, bank: Array, q_mask: Array, d_mask: Array, keys: Array | None
        ) -> list[Array]:
            def project(params: Params, part: tuple[Array, Array, Array | None]) -> list[Array]:
                x, mask, keys = part
                dropout = None if keys is None else AdapterDropout(self.adapter_dropout, keys)
                tokens = x if structure is None else structure.merge(params)(x, mask, dropout=dropout)
                return cut(vectors.pool_tokens(tokens, mask, factor)[0])

            mask = vectors.pool_mask(d_mask, factor)
            axes = BATCH[0] if travels else None
            return projected_maxsim(project, params, cut(q), (bank, d_mask, keys), q_mask, mask, axis_name=axes)

        projected = jax.shard_map(score_bank, mesh=self.mesh, in_specs=(whole, *[rows] * 5), out_specs=rows)
        params = {} if structure is None else self.partition.select(params, Part.ADAPTER)
        keys = None if structure is None or documents.dropout is None else documents.dropout.keys
        return projected(params, queries.tokens, bank, queries.mask, documents.mask, keys)

    def _temperatures(self, params: Params) -> Mapping[str, float | Float[Array, ""]]:
        start = start_temperatures(self.config)
        if not self.config.learn_temperature:
            return start
        return {name: jnp.exp(params[temperature_name(name)]) for name in start}


def _by_bank(x: Shaped[Array, "*shape"], banks: int) -> Shaped[Array, "banks share *rest"]:
    return x.reshape(banks, -1, *x.shape[1:])


def _mean_of_banks(
    compare: Callable[..., tuple[Float[Array, ""], Metrics]], *by_bank: PyTree
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the mean over the banks of what `compare` makes of each one's share of the arrays."""
    if len(jax.tree.leaves(by_bank)[0]) == 1:
        return compare(*jax.tree.map(lambda x: x[0], by_bank))
    mean: tuple[Array, Metrics] = jax.tree.map(partial(jnp.mean, axis=0), jax.vmap(compare)(*by_bank))
    return mean


def start_temperatures(config: LossConfig) -> dict[str, float]:
    """Returns the temperature of each score that the objective uses, the first one where it is learned.

    Example:
      >>> start_temperatures(LossConfig(objective="hybrid", temperature=0.05, late_temperature=0.02))
      {'pooled': 0.05, 'late': 0.02}
    """
    late = config.temperature if config.late_temperature is None else config.late_temperature
    both = {"pooled": config.temperature, "late": late}
    return both if config.objective == "hybrid" else {config.objective: both[config.objective]}


def contrastive(
    config: LossConfig,
    scores: Scores,
    temperatures: Mapping[str, float | Float[Array, ""]],
    positives: Int[Array, " B"],
    excluded: Bool[Array, "B N"] | None,
    step: Int[Array, ""],
    steps: int,
) -> tuple[Float[Array, ""], Metrics]:
    """Computes the contrastive part of the loss, and how often each score puts the positive first.

    Documents above `false_negative_margin` take no part in the loss, but they do in the rates, which would be 1 without
    them.

    Args:
      config: says which loss.
      scores: "pooled" and, unless the objective is pooled, "late", [B, N] each.
      temperatures: one of each score that the objective uses.
      positives: column of each query's positive, [B].
      excluded: True where a document takes no part for a query, [B, N]; None = nowhere.
      step: number of the step, from 1.
      steps: number of steps of the run.

    Returns:
      The loss, and metrics by name, scalars.

    Example:
      >>> scores = {"pooled": jnp.array([[0.5, 0.25], [0.5, 0.75]])}
      >>> config = LossConfig(objective="pooled", temperature=0.25)
      >>> loss, metrics = contrastive(config, scores, {"pooled": 0.25}, jnp.array([0, 1]), None, jnp.int32(1), 10)
      >>> print(f"{loss:.4f} {metrics['pooled_hit@1']:.1f}")  # log(1 + exp(-1))
      0.3133 1.0
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
    """Computes how far the objective's score is from a teacher's scores of the documents of each query.

    Args:
      config: says which distillation, and at which temperatures.
      scores: "pooled" and, unless the objective is pooled, "late", [B, N] each.
      positives: column of each query's positive, which its other documents follow, [B].
      teacher: the teacher's scores [B, K], NaN where there are none.

    Returns:
      Scalar, float32.

    Example:
      >>> config = LossConfig(objective="pooled", distillation="margin_mse", temperature=1.0)
      >>> scores = {"pooled": jnp.array([[0.5, 0.25]])}
      >>> distillation(config, scores, jnp.array([0]), jnp.array([[0.75, 0.0]]))  # margins 1/4 and 3/4
      Array(0.25, dtype=float32)
    """
    loss = losses.kl_distillation if config.distillation == "kl" else losses.margin_mse
    student = losses.own_documents(ranking_score(config, scores), positives, teacher.shape[1])
    of_student = config.distillation_temperature or start_temperatures(config).get(config.objective, config.temperature)
    of_teacher = config.teacher_temperature or of_student
    return loss(student / of_student, teacher / of_teacher, ~jnp.isnan(teacher))


def ranking_score(config: LossConfig, scores: Scores) -> Float[Array, "B N"]:
    """Returns the score that the objective ranks by: pooled, late or their weighted sum, [B, N].

    Example:
      >>> scores = {"pooled": jnp.array([[0.5]]), "late": jnp.array([[0.25]])}
      >>> ranking_score(LossConfig(objective="hybrid", late_weight=2.0), scores)
      Array([[1.]], dtype=float32)
    """
    if config.objective != "hybrid":
        return scores[config.objective]
    return config.pooled_weight * scores["pooled"] + config.late_weight * scores["late"]
