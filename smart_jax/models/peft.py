"""Adapters that PEFT saved, merged into a checkpoint's weights while these are read, in NumPy.

LoRA (arXiv:2106.09685) makes a weight W + s B A, with s = alpha / r or, rank-stabilised (arXiv:2312.03732),
alpha / sqrt(r). DoRA (arXiv:2402.09353) makes it m (W + s B A) / |W + s B A|, where the norm is that of each output's
row. Beside them an adapter may hold whole tensors: trained biases and `modules_to_save`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from smart_jax.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_pattern,
    checked_float,
    checked_int,
    path_inside,
    read_adapter_config,
    shown,
)
from smart_jax.typing import JsonObject

LONGEST_NAME = 256  # characters of a module: what a pattern is matched with
MOST_PATTERNS, LARGEST_RANK = 4096, 2**20
CHUNK = 2**22  # values of a weight that are merged at a time, which bounds the memory beside the weight's

_PREFIX = "base_model.model."
# <module>.lora_A[.<task>].weight; factors of an embedding, and magnitudes, have no ".weight".
_PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!(?:weight|bias)$)(?P<tag>[^.]+))?(?P<leaf>\.weight|\.bias)?"
)
_WRAPPER = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The trained factors of one weight, by their names in the adapter's file.

    Attributes:
      a: A [rank, inputs], of a convolution [rank, inputs, ...], of an embedding [rank, tokens].
      b: B [outputs, rank], of a convolution [outputs, rank, 1, ...], of an embedding [width, rank].
      rank: as the adapter's config says.
      scale: factor of B A.
      magnitude: DoRA's, for each output; None = the adapter is no DoRA.
      embedding: whether the weight is an embedding's.
    """

    a: str
    b: str
    rank: int
    scale: float
    magnitude: str | None = None
    embedding: bool = False


@dataclasses.dataclass
class Change:
    """Change that an adapter makes to one tensor of the base model: `whole` takes its place, then the others are added.

    Attributes:
      read: reads a tensor of the adapter's file.
      whole: name of the tensor that takes the base's place.
      low_rank: factors whose product is added.
      bias: name and factor of the bias of a lora_B, which is added to the layer's bias.
    """

    read: Callable[[str], np.ndarray]
    whole: str | None = None
    low_rank: LowRank | None = None
    bias: tuple[str, float] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the adapter's tensors, for messages."""
        low_rank = () if self.low_rank is None else (self.low_rank.a, self.low_rank.b, self.low_rank.magnitude)
        names = (self.whole, *low_rank, None if self.bias is None else self.bias[0])
        return [name for name in names if name is not None]

    def apply(self, read_base: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the changed tensor in the base's layout, float32 where something is added to it."""
        value = read_base() if self.whole is None else self.read(self.whole)
        if self.bias is not None:
            name, scale = self.bias
            added = self.read(name)
            if added.shape != value.shape:
                raise ValueError(f"'{name}' has shape {added.shape}, but the bias of its layer has {value.shape}")
            value = value.astype(np.float32) + scale * added.astype(np.float32)
        return value if self.low_rank is None else self._merge(value, self.low_rank)

    def _merge(self, value: np.ndarray, factors: LowRank) -> np.ndarray:
        merged = np.array(value, dtype=np.float32, order="C")
        # An embedding's factors are those of its transpose.
        weight = merged.T if factors.embedding else merged.reshape(len(merged), -1)  # [out, in], a view
        a, b = (self.read(name).astype(np.float32) for name in (factors.a, factors.b))
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        if len(a) != factors.rank:
            raise ValueError(f"'{factors.a}' has rank {len(a)}, but {CONFIG_FILE} says {factors.rank}")
        if (len(b), b.shape[1], a.shape[1]) != (len(weight), len(a), weight.shape[1]):
            raise ValueError(
                f"'{factors.a}' {a.shape} and '{factors.b}' {b.shape} do not make a weight of shape {weight.shape}: "
                "the adapter is of another base model"
            )
        magnitude = None if factors.magnitude is None else self._magnitude(factors.magnitude, len(weight))
        step = max(1, CHUNK // weight.shape[1])
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            weight[rows] += factors.scale * (b[rows] @ a)
            if magnitude is not None:
                weight[rows] *= (magnitude[rows] / np.linalg.norm(weight[rows], axis=1))[:, None]
        return merged

    def _magnitude(self, name: str, outputs: int) -> np.ndarray:
        magnitude = self.read(name).astype(np.float32).reshape(-1)
        if len(magnitude) != outputs:
            raise ValueError(f"'{name}' has {len(magnitude)} values, but its layer {outputs} outputs")
        return magnitude


def choose_task(task: str | None, tasks: Sequence[str]) -> str | None:
    """Returns the task whose adapter is merged: the one asked for or, without one, the first of the checkpoint's.

    Raises:
      ValueError: the checkpoint has no such task; the message lists its tasks.
    """
    if task is not None and task not in tasks:
        expected = (
            f"expected {' or '.join(map(repr, tasks))}" if tasks else "but the checkpoint has no tasks: leave it out"
        )
        raise ValueError(f"task is {task!r}, {expected}")
    return task or next(iter(tasks), None)


def read_adapter(folder: str | Path, *, tasks: Sequence[str] = (), task: str | None = None) -> dict[str, Change]:
    """Reads the changes that an adapter makes, by the names of the base's tensors in the adapter's spelling.

    `fan_in_fan_out` has no effect, as in PEFT: it is for layers that keep their weight transposed, of which these
    backbones have none.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      tasks: tasks for each of which the file holds an adapter, tagged `lora_A.<task>.weight`; () = there are no tags.
      task: which of them is read; None = the first.

    Raises:
      FileNotFoundError: there are no weights in safetensors.
      ValueError: the file is corrupt, asks for something that is not merged here, or lacks a factor's counterpart, or a
        tensor has another tag, or the task is unknown; the message names it.
    """
    folder, task = Path(folder), choose_task(task, tasks)
    config, file = read_adapter_config(folder), path_inside(folder, WEIGHTS_FILE, str(folder))
    _check_patterns(config)
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has {CONFIG_FILE} but no {WEIGHTS_FILE}: save the adapter in safetensors, or remove "
            f"{CONFIG_FILE} if it is already merged into the weights"
        )
    try:
        handle = safe_open(str(file), framework="numpy")
        names = sorted(handle.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is corrupt or truncated ({error}): fetch the adapter again") from error
    whole, factors = _sorted_out(names)
    _check_factors(file, factors, tasks, dora=bool(config.get("use_dora")), bias=bool(config.get("lora_bias")))
    changes = {target: Change(handle.get_tensor, whole=name) for target, name in whole.items()}
    for (module, tag), parts in factors.items():
        if tasks and tag != task:
            continue
        low_rank = _low_rank(config, module, parts)
        changes.setdefault(f"{module}.weight", Change(handle.get_tensor)).low_rank = low_rank
        if "B.bias" in parts:
            bias = (parts["B.bias"], low_rank.scale)
            changes.setdefault(f"{module}.bias", Change(handle.get_tensor)).bias = bias
    return changes


# Names of the tensors that belong to a module and a task's tag (None = no tag), by part: "A", "B", "B.bias", ...
_Factors = dict[tuple[str, str | None], dict[str, str]]


def _sorted_out(names: Sequence[str]) -> tuple[dict[str, str], _Factors]:
    """Returns the names of an adapter's whole tensors, by the tensor that each replaces, and those of its factors."""
    whole: dict[str, str] = {}
    factors: _Factors = {}
    for name in names:
        bare = name.removeprefix(_PREFIX)
        if match := _PART.fullmatch(bare):
            part = match["part"] + (match["leaf"] if match["leaf"] == ".bias" else "")
            factors.setdefault((match["module"], match["tag"]), {})[part] = name
        elif ".original_module." not in name:  # the base's copy of a module to save
            # With bias="all" a module to save writes its bias under two names.
            whole.setdefault(_WRAPPER.sub("", bare), name)
    return whole, factors


def _check_factors(file: Path, factors: _Factors, tasks: Sequence[str], *, dora: bool, bias: bool) -> None:
    """Raises ValueError unless the factors of every weight are complete, for every task, and nothing else is there."""
    if long := [module for module, _ in factors if len(module) > LONGEST_NAME]:
        raise ValueError(f"{file}: {shown(long[0])} has more than {LONGEST_NAME} characters")
    if not factors:
        raise ValueError(f"{file} holds no LoRA factors: is it the adapter of this {CONFIG_FILE}?")
    allowed = tuple(tasks) or (None, "default")
    for (module, tag), parts in factors.items():
        names = ", ".join(parts.values())
        if tag not in allowed:
            expected = f"of the tasks {', '.join(tasks)}" if tasks else "without a task: config.json has no task_names"
            raise ValueError(f"{file}: {names} is tagged {tag!r}, expected a tag {expected}")
        kind = "embedding_" if "embedding_A" in parts or "embedding_B" in parts else ""
        needed = {f"{kind}A", f"{kind}B"} | ({"magnitude_vector"} if dora else set())
        needed |= {"B.bias"} if bias and not kind else set()
        if lacking := sorted(needed - parts.keys()):
            raise ValueError(f"{file}: {names} lacks lora_{', lora_'.join(lacking)} beside it in {module}")
        if extra := [parts[part] for part in sorted(parts.keys() - needed)]:
            raise ValueError(f"{file}: {', '.join(extra)} is not expected: {CONFIG_FILE} does not ask for it")


def _low_rank(config: JsonObject, module: str, parts: Mapping[str, str]) -> LowRank:
    rank = _by_pattern(config, "rank_pattern", module, "r", 8)
    alpha = _by_pattern(config, "alpha_pattern", module, "lora_alpha", 8)
    kind = "embedding_" if "embedding_A" in parts else ""
    return LowRank(
        parts[f"{kind}A"],
        parts[f"{kind}B"],
        rank=rank,
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        magnitude=parts.get("magnitude_vector"),
        embedding=bool(kind),
    )


def _check_patterns(config: JsonObject) -> None:
    """Raises ValueError where a regular expression, or a name that it is for, could take long to match."""
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
            raise ValueError(f"{CONFIG_FILE}: {key} is {shown(patterns)}, expected an object of module names")
        for pattern in patterns:
            check_pattern(pattern, f"{CONFIG_FILE}: {key}", most=2)
            try:
                re.compile(rf"(.*\.)?({pattern})$")
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{CONFIG_FILE}: {key} has {shown(pattern)}, which is no pattern ({error})") from error


def _by_pattern(config: JsonObject, patterns: str, module: str, key: str, default: int) -> Any:  # int or float
    """Returns a module's value: that of the first regular expression which matches the end of its path, or `key`'s."""
    value, name = config.get(key, default), f"{CONFIG_FILE}: {key} of {module}"
    for pattern, of_pattern in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            value = of_pattern
            break
    if key == "r":
        return checked_int(value, name, most=LARGEST_RANK)
    checked_float(value, name)
    return value
