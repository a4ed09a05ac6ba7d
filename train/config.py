"""The configuration of a training run: typed dataclasses behind `ml_collections.ConfigDict`.

A config file has `get_config(arg="") -> ConfigDict`; it starts from `default_config()`, which is locked, so that a
misspelt key is refused there, on the command line, and in `from_config_dict`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from smart_jax.models import REMAT_POLICIES, LoraConfig
from smart_jax.runtime import DistributedConfig
from train.optimizer import OptimizerConfig

TRAINABLE = ("adapter", "lora", "full", "adapter+lora", "adapter+full")
OBJECTIVES = ("pooled", "late", "hybrid")
BANKS = ("global", "local")
DISTILLATIONS = ("none", "kl", "margin_mse")
TOKENS = ("kept", "all")
CLEANINGS = ("none", "placeholders", "sentence")
DTYPES = ("auto", "float32", "bfloat16")
STATES_DTYPES = ("auto", "float32", "bfloat16", "int8")
T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Settings of the loss, see `train.objective.losses`; CE is InfoNCE over the documents of the bank.

        pooled  CE(pooled)
        late    CE(late)
        hybrid  hybrid_loss_weight * CE(pooled_weight * pooled + late_weight * late)
                + pooled_loss_weight * CE(pooled) + late_loss_weight * CE(late)

    Scores are divided by their temperatures. The loss is contrastive_weight times that, and distillation_weight times
    the distillation. The student of the distillation is the score by which the objective ranks: pooled, late, or
    pooled_weight * pooled + late_weight * late. false_negative_margin is a difference of that score, too. With
    matryoshka all of it is the weighted mean over the widths, each with its own scores.
    """

    objective: str = "late"  # pooled | late | hybrid: by which score the loss ranks
    bank: str = "global"  # a query's candidates: of all devices | local = of its own device, the loss being the mean
    pooled_weight: float = 1.0  # of the two scores in the hybrid score
    late_weight: float = 1.0  # of the late score in the hybrid score
    hybrid_loss_weight: float = 1.0  # of the losses of objective hybrid
    pooled_loss_weight: float = 0.0  # of the loss of the pooled score, in objective hybrid
    late_loss_weight: float = 0.0  # of the loss of the late score, likewise
    late_loss_weight_end: float | None = None  # reached linearly at the last step; None = no ramp
    temperature: float = 0.03  # that scores are divided by
    late_temperature: float | None = None  # of the late score; None = `temperature`
    learn_temperature: bool = False  # both start there; learned as a logarithm
    min_temperature: float = 0.01  # floor of a learned temperature
    symmetric: bool = False  # rank the queries for each document too
    mask_false_negatives: bool = True  # the same document under another query of the batch is no negative
    false_negative_margin: float | None = None  # documents above the positive by more are no negatives; None = off
    contrastive_weight: float = 1.0  # 0 = distillation alone
    distillation: str = "none"  # none | kl | margin_mse: of the data's scores of each query's positive and negatives
    distillation_weight: float = 1.0  # of the distillation beside the contrastive loss
    distillation_temperature: float | None = None  # of the student; None = the contrastive one, of hybrid `temperature`
    teacher_temperature: float | None = None  # None = the student's: right for cosines, which `train.data.mine` writes
    matryoshka: str = ""  # widths to which vectors are cut, "64,128" or with weights "64=0.5,128": the full one has 1
    tokens: str = "kept"  # of the late score in training: kept = those of the model | all = special ones, too
    pool_factor: float = 1.0  # documents' tokens are pooled as by `reductions.pool_tokens(..., "sequential")`
    diversity_weight: float = 0.0  # of the regulariser that keeps the tokens of an item apart
    overlap_weight: float = 0.0  # of the regulariser that keeps tokens apart from their pooled state

    def __post_init__(self) -> None:
        _one_of("loss.objective", self.objective, OBJECTIVES)
        _one_of("loss.bank", self.bank, BANKS)
        _one_of("loss.distillation", self.distillation, DISTILLATIONS)
        _one_of("loss.tokens", self.tokens, TOKENS)
        temperatures = ("temperature", "late_temperature", "distillation_temperature", "teacher_temperature")
        for name in (*temperatures, "min_temperature"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"loss.{name} is {value}: it must be positive")
        if self.contrastive_weight != 1 and self.distillation == "none":
            raise ValueError(
                f"loss.contrastive_weight is {self.contrastive_weight:g}, but there is no distillation to weigh it "
                "against: set loss.distillation, or leave the weight at 1"
            )
        if not 1 <= self.pool_factor < math.inf:
            raise ValueError(f"loss.pool_factor is {self.pool_factor}: it must be at least 1")
        if self.pool_factor > 1 and self.objective == "pooled":
            raise ValueError("loss.pool_factor pools tokens, and objective 'pooled' has none: use 'late' or 'hybrid'")
        self.widths  # noqa: B018, for its errors

    @property
    def widths(self) -> dict[int | None, float]:
        """Weight of the loss at each width of `matryoshka`; None = the full one, whose weight is 1."""
        widths: dict[int | None, float] = {None: 1.0}
        for part in self.matryoshka.split(",") if self.matryoshka else ():
            match = re.fullmatch(r"\s*0*([1-9]\d*)\s*(?:=\s*(\d+\.?\d*|\.\d+)\s*)?", part)
            if match is None or int(match[1]) in widths or float(match[2] or 1) == 0:
                raise ValueError(
                    f"loss.matryoshka is '{self.matryoshka}': expected widths, each once, as in '64,128', or with "
                    "positive weights as in '64=0.5,128=1'"
                )
            widths[int(match[1])] = float(match[2] or 1)
        return widths


@dataclasses.dataclass(frozen=True)
class AdapterOptions:
    """Settings of the projection that trainable = "adapter" learns, see `smart_jax.AdapterConfig`."""

    dim: int | None = None  # token width; None = the backbone's
    layers: str = "-1"  # "-1", "last 4", "20-24,-1"
    pooled_dim: int | None = None  # truncates the pooled vector; None = unchanged
    kind: str = "linear"  # linear | mlp | self_attention: the tokens of an item attend to each other
    mlp_dim: int = 4096  # of kind mlp: width between its two maps
    dropout: float = 0.0  # of kind mlp: share of the values between its two maps that is dropped in training
    heads: int = 8  # of kind self_attention, as the next
    blocks: int = 1  # of kind self_attention: number of its blocks

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout is {self.dropout}: it is a probability, at least 0 and below 1")
        if self.dropout and self.kind != "mlp":
            raise ValueError(f"adapter.dropout is {self.dropout}, but only kind 'mlp' has it, not '{self.kind}'")


@dataclasses.dataclass(frozen=True)
class LoraOptions(LoraConfig):
    """Settings of the branches that trainable = "lora" learns, see `smart_jax.models.LoraConfig`.

    The defaults are those of the paper.
    """

    merge: bool = True  # export model/, too: the base with the branches merged into its weights


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Names of the data sets that `python -m train.data` wrote, and settings of how their items are prepared."""

    dir: str = ""  # folder of the data sets
    name: str = ""  # of a data set, or of several with weights, "pages=2,charts=1": each batch is of one of them
    split: str = "train"  # that is trained on
    validation_split: str = "validation"  # that is held out
    negatives: int = 0  # explicit negatives of each example that join the bank
    query_instruction: str | None = None  # None = the checkpoint's
    document_instruction: str | None = None  # likewise, before documents
    clean_queries: str = "none"  # none | placeholders | sentence, see `train.data.clean_query`
    min_pixels: int | None = None  # None = the checkpoint's, here and in the next three
    max_pixels: int | None = None  # of an image, at most; None = the checkpoint's
    soft_tokens: int | None = None  # of an image, of a model that scales each to a number of them; None = likewise
    max_length: int | None = None  # tokens of an item, at most; None = the checkpoint's
    resize: str | None = None  # "fast": by OpenCV (the extra `fast`), nearly the same pixels
    query_length: int | None = None  # fixed shapes take one compilation; None, here and in the next three, = each batch
    document_length: int | None = None  # has the bucket of its items, with several processes of those of all
    document_patches: int | None = None  # patches of a document
    query_patches: int | None = None  # patches of a query
    max_skipped: int = 0  # number of times that an unreadable example may be met; another of its batch stands in for it
    cache_states: str = "off"  # of a frozen backbone: off | auto = computed once where that pays | a folder of them
    cache_dtype: str = "auto"  # of these: auto = the backbone's | float32 | bfloat16 | int8 with a scale for each token
    workers: int = 2  # threads that read and prepare examples
    prefetch: int = 2  # batches that are prepared ahead in host memory, beside one that is begun

    def __post_init__(self) -> None:
        _one_of("data.clean_queries", self.clean_queries, CLEANINGS)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Settings of the evaluation during the run and after it."""

    every: int = 0  # steps; 0 = only after the run
    validation_batches: int = 16  # largest number of batches of the validation split; 0 = no validation loss
    validation_documents: int = 512  # number of its documents to search, each the answer to a query; 0 = no search
    samples: int = 4  # number of the best, and of the worst, queries of that search that TensorBoard shows
    benchmark: str | None = None  # for the config file's get_eval_fn, which says what it is


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Settings of when checkpoints are written, and which are kept."""

    every: int = 500  # steps
    keep: int = 2  # number of the newest that are kept
    best_metric: str | None = None  # keep the best by this metric of the evaluation, too
    best_mode: str = "max"  # max | min: which of its values is the best


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Settings of the log, beside metrics.jsonl and TensorBoard, which every run has."""

    wandb: str = ""  # project of Weights & Biases; empty = none
    peak_tflops: float | None = None  # of a device in bfloat16, for the utilisation (mfu); None = from a table


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh, see `smart_jax.make_mesh`; the batch is split over data * fsdp devices."""

    data: int = -1  # devices that share the batch; -1 = those that are left
    fsdp: int | None = None  # None = as the devices' memory asks for, where it is known, and else 1
    tensor: int = 1  # devices that each layer is split over


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run."""

    model: str = ""  # what `smart_jax.load` takes, as in the next four, of which None = the checkpoint's
    head: str | None = None  # published model that the checkpoint is or comes from
    pooling: str | None = None  # how states become the pooled vector
    prompt: str | None = None  # a Jinja template
    task: str | None = None  # which of a checkpoint's adapters is used
    output: str = ""  # run directory
    resume: bool = False  # go on with the run that is there (or start it)
    overwrite: bool = False  # delete the run that is there
    trainable: str = "adapter"  # adapter | lora | full (the backbone's own weights) | adapter+lora | adapter+full
    weights: str = r"^(?!visual\.)"  # full only: regex of the parameters that are trained; "." = all, vision, too
    batch_size: int = 64  # queries in the global batch, over all devices: it is the number of in-batch candidates
    epochs: float = 1.0  # passes over the training split
    steps: int | None = None  # number of batches; overrides epochs
    accumulate: int = 1  # number of batches whose gradients are averaged to an update; each has its own candidates
    seed: int = 0  # of initial weights, order and dropout
    dtype: str = "auto"  # of the backbone's computation: auto = bfloat16 on accelerators, float32 on CPU
    # Compute again in the backward pass, to save memory: the adapter's projection, or all layers. None, here and of the
    # next but one: as the devices' memory asks for, where it is known.
    remat: bool | None = None  # compute layers again in the backward pass; None = where memory asks for it
    remat_policy: str = "full"  # what of a layer: full = all of it | dots = all except for products with weights
    chunk_size: int | None = None  # GradCache: number of items that pass through the backbone at a time
    log_every: int = 10  # steps
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    adapter: AdapterOptions = dataclasses.field(default_factory=AdapterOptions)
    lora: LoraOptions = dataclasses.field(default_factory=LoraOptions)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        _one_of("trainable", self.trainable, TRAINABLE)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("remat_policy", self.remat_policy, tuple(REMAT_POLICIES))
        _one_of("data.cache_dtype", self.data.cache_dtype, STATES_DTYPES)
        if self.data.cache_states not in ("off", "auto") and self.trainable != "adapter":
            raise ValueError(
                f"data.cache_states is '{self.data.cache_states}', but trainable = '{self.trainable}' changes the "
                "states: set it to off, or train the adapter alone"
            )
        if not self.data.cache_states:
            raise ValueError("data.cache_states is empty: set it to off, auto or a folder")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}: a contrastive loss needs at least 2 queries")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size is {self.chunk_size}: it must be positive, or None")
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}: it must be positive")
        if self.steps is not None and self.steps % self.accumulate:
            raise ValueError(
                f"steps is {self.steps}, which does not divide by accumulate = {self.accumulate}: it counts batches, "
                "and those after the last update would be lost; choose a multiple"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite are both set: choose one")
        for name, value in (("data.max_skipped", self.data.max_skipped), ("eval.samples", self.eval.samples)):
            if value < 0:
                raise ValueError(f"{name} is {value}: it must not be negative")
        if (documents := self.eval.validation_documents) < 0 or documents == 1:
            raise ValueError(f"eval.validation_documents is {documents}: a search needs at least 2; 0 = no search")
        if self.log.peak_tflops is not None and self.log.peak_tflops <= 0:
            raise ValueError(f"log.peak_tflops is {self.log.peak_tflops}: it must be positive, or None")
        if self.data.max_skipped and not self.loss.mask_false_negatives:
            raise ValueError(
                f"data.max_skipped is {self.data.max_skipped}: an example that stands in for another would be its own "
                "negative with loss.mask_false_negatives=False; set one of them back"
            )
        if "adapter" in self.parts and self.loss.objective == "pooled":
            raise ValueError(
                f"objective 'pooled' leaves the adapter of trainable = '{self.trainable}' untrained: it projects "
                "tokens. Use 'late' or 'hybrid', or trainable = 'lora' or 'full'"
            )
        if self.loss.distillation != "none" and self.data.negatives < 1:
            raise ValueError(
                f"loss.distillation '{self.loss.distillation}' compares the documents of each query, but "
                f"data.negatives is {self.data.negatives}: set it to 1 or more, on data with negatives and scores"
            )
        try:
            re.compile(self.weights)
        except re.error as error:
            raise ValueError(f"weights {self.weights!r} is not a regular expression: {error}") from error

    @property
    def parts(self) -> tuple[str, ...]:
        """Trained parts: some of "adapter", "lora" and "full"."""
        return tuple(self.trainable.split("+"))


def default_config() -> ConfigDict:
    """Returns all settings with their defaults, locked against unknown keys.

    Example:
      >>> config = default_config()
      >>> config.batch_size, config.is_locked
      (64, True)
    """
    return to_config_dict(TrainConfig())


def to_config_dict(config: Any) -> ConfigDict:
    """Turns a dataclass of settings, a `TrainConfig` or a part of one, into a locked dictionary.

    Example:
      >>> to_config_dict(MeshConfig(fsdp=2)).to_dict()
      {'data': -1, 'fsdp': 2, 'tensor': 1}
    """
    result = ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif type(None) in _kinds(hint := typing.get_type_hints(type(config))[field.name]):
            holder = config_dict.placeholder(_kinds(hint)[0])
            result[field.name] = holder  # keeps the type, so that the command line can parse a value
            if value is None:
                continue
        result[field.name] = value
    return result.lock()


@typing.overload
def from_config_dict(values: Mapping[str, Any] | ConfigDict) -> TrainConfig: ...


@typing.overload
def from_config_dict(values: Mapping[str, Any] | ConfigDict, kind: type[T], where: str = "") -> T: ...


def from_config_dict(values: Mapping[str, Any] | ConfigDict, kind: type = TrainConfig, where: str = "") -> Any:
    """Turns a dictionary of settings into the typed config.

    Args:
      values: settings by key, those of a part again by key; what is missing has its default.
      kind: dataclass of the settings.
      where: prefix of the keys, for messages.

    Raises:
      ValueError: a key is unknown (the message names the nearest known one) or a value is out of range.
      TypeError: a value has another type.

    Example:
      >>> from_config_dict({"batch_size": 8, "loss": {"objective": "hybrid"}}).loss.objective
      'hybrid'
    """
    fields = typing.get_type_hints(kind)
    settings = {}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"did you mean '{where}{near[0]}'?" if near else f"known: {', '.join(fields)}"
            raise ValueError(f"unknown config key '{where}{key}': {hint}")
        settings[key] = _typed(values[key], fields[key], f"{where}{key}")
    return kind(**settings)


def _typed(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_config_dict(value, hint, where=f"{where}.")  # type: ignore[arg-type]
    kinds = _kinds(hint)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise TypeError(f"config key '{where}' is {value!r}: expected {names}")
    return value


def _kinds(hint: Any) -> tuple[type, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is '{value}': choose one of {', '.join(known)}")
