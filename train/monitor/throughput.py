"""Speed of a run: examples and tokens per second, model FLOPs utilisation, memory.

Model FLOPs are those that the mathematics asks for, two for each multiplication in a matrix product with a real token
or patch: neither padding nor what rematerialisation and GradCache compute again is counted (Chowdhery et al.,
arXiv:2204.02311, appendix B). The gradient with respect to a product's input costs as much as the product, and so does
that with respect to its matrix; each counts where it is needed. The scores of queries with documents are left out.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np

from smart_jax.models import BertConfig, EmbeddingGemma2Config, ModelConfig, QwenVLConfig
from smart_jax.runtime import sum_over_processes
from train.data import Work
from train.objective import Part, Partition, Place

GIB = 1 << 30
# Dense bfloat16 FLOP/s of a jax device by its device_kind, of which the first match counts; from makers' data sheets. A
# TPU v2 or v3 chip is two devices.
PEAKS = {
    r"^TPU v2": 22.5e12,
    r"^TPU v3": 61.5e12,
    r"^TPU v4( lite)?$": 275e12,
    r"^TPU v5 ?(lite|e)": 197e12,
    r"^TPU v5p?$": 459e12,
    r"^TPU v6 ?(lite|e)": 918e12,
    r"A100": 312e12,
    r"H100 PCIe": 756e12,
    r"(H100|H200) NVL": 835e12,
    r"H100|H200|GH200": 989e12,
    r"GB200": 2500e12,
    r"B200": 2250e12,
    r"L40S": 362e12,
    r"\bL4$": 121e12,
    r"A10G": 70e12,
}


_PIXELS = re.compile(r"patch_embed")  # of a map's name, whose inputs are pixels
_MERGED = re.compile(r"merger|embed_vision")  # and whose inputs are visual tokens, not patches


class Cost(NamedTuple):
    """FLOPs of an update for each token, patch and pair of them, forward and backward.

    Example:
      >>> Cost(token=2.0, patch=3.0).flops(Work(tokens=10, patches=1))
      23.0
    """

    token: float = 0.0
    token_pair: float = 0.0
    patch: float = 0.0
    patch_pair: float = 0.0
    window_pair: float = 0.0

    def flops(self, work: Work) -> float:
        """Returns the FLOPs of an update on a batch."""
        return sum(cost * count for cost, count in zip(self, work[1:], strict=True))


def training_cost(
    partition: Partition, weights: Mapping[str, jax.Array | jax.ShapeDtypeStruct], config: ModelConfig
) -> Cost:
    """Returns what an update of a backbone and, where there is one, an adapter costs.

    Args:
      partition: what is trained, and what each parameter belongs to.
      weights: all parameters by name.
      config: of the backbone.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.models import load_config
      >>> partition = Partition({"adapter.proj.kernel": Place(Part.ADAPTER)}, {})
      >>> weights = {"adapter.proj.kernel": jax.numpy.ones((8, 4))}
      >>> training_cost(partition, weights, load_config(resolve("tiny"))).token  # forward, and the kernel's gradient
      128.0
    """
    vision = None if isinstance(config, BertConfig) else config.vision
    # A product's input needs a gradient where something that is trained lies before it: vision comes before text.
    backward = {
        "text": partition.trains_backbone,
        "visual": partition.trains_vision,
        "adapter": partition.trains_backbone or any("layer_vector" in name for name in partition.trained),
    }
    # The first of an adapter's maps; what the others take follows from it.
    first = next((name for name in ("adapter.hidden.kernel", "adapter.proj.kernel") if name in weights), None)
    token = patch = 0.0
    adapter_alone = {_tower(partition.place(name)) for name in weights} == {"adapter"}  # the backbone's states are kept
    for name, x in weights.items():
        if x.ndim != 2 or name.endswith(("embedding", "scales")):
            continue
        tower = _tower(partition.place(name))
        to_input = backward[tower] and not _PIXELS.search(name)  # pixels need no gradient
        to_input |= tower == "adapter" and name != first
        flops = 2.0 * x.size * (1 + to_input + (name in partition.trained))
        if name.endswith("codes") and x.dtype == np.uint8:
            flops *= 2  # two codes in a byte
        if tower == "visual" and vision is not None:
            patch += flops / (vision.spatial_merge_size**2 if _MERGED.search(name) else 1)
        else:
            token += flops
    # Each pair takes part in two products: one makes its score, the other its share of the sum of values.
    in_adapter = sum(4.0 * x.shape[0] * 3 for name, x in weights.items() if _is_adapters_attention(name))
    if adapter_alone:
        return Cost(token, in_adapter)
    token_pair = _text_pair(config) * (1 + 2 * backward["text"])
    if vision is None:
        return Cost(token, token_pair + in_adapter)
    if isinstance(config, QwenVLConfig):
        token += 2.0 * config.text.state_products * (1 + 2 * backward["text"])
    block = 4.0 * vision.hidden_size * (1 + 2 * backward["visual"])
    windowed = 0 if vision.window_size is None else vision.depth - len(vision.fullatt_block_indexes)
    return Cost(token, token_pair + in_adapter, patch, block * (vision.depth - windowed), block * windowed)


def _text_pair(config: ModelConfig) -> float:
    """Returns the FLOPs of the text's attention for each pair of tokens, forward.

    A pair beyond the windows of EmbeddingGemma 2 is counted as if there were none: rows are seldom longer.
    """
    text = config.text
    if isinstance(config, QwenVLConfig):  # a token attends to those before
        return 4.0 * config.text.attention_layers * config.text.num_attention_heads * config.text.head_dim / 2
    if isinstance(config, EmbeddingGemma2Config):
        return sum(4.0 * config.text.num_attention_heads * layer.head_dim for layer in config.text.heads)
    return 4.0 * text.hidden_size * text.num_hidden_layers


def _is_adapters_attention(name: str) -> bool:
    return name.startswith("adapter.blocks.") and name.endswith(".out_proj.kernel")


def _tower(place: Place) -> str:
    return "adapter" if place.part is Part.ADAPTER else "visual" if place.vision else "text"


def peak_flops(kind: str) -> float | None:
    """Returns the dense bfloat16 FLOP/s of a device by its `device_kind`; None where it is not known, as for a CPU.

    Example:
      >>> peak_flops("TPU v4") / 1e12, peak_flops("cpu")
      (275.0, None)
    """
    return next((peak for pattern, peak in PEAKS.items() if re.search(pattern, kind)), None)


class Throughput:
    """Rate of work since the last reading, over all processes.

    Time spent in `paused` does not count. Nor does the compilation of the first update: the clock starts when that has
    been sent to the devices.

    Example:
      >>> times = iter([0.0, 4.0])
      >>> throughput = Throughput(Cost(token=1.0), clock=lambda: next(times))
      >>> throughput.add(Work(examples=8, tokens=100))
      >>> throughput.read()
      {'examples_per_second': 2.0, 'tokens_per_second': 25.0, 'seconds_per_step': 4.0}
    """

    def __init__(
        self, cost: Cost, peak: float | None = None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Starts at the first update.

        Args:
          cost: of an update, see `training_cost`.
          peak: FLOP/s of all devices together; None = utilisation is left out.
          clock: seconds.
        """
        self._cost, self._peak, self._clock = cost, peak, clock
        self._work, self._steps = Work(), 0
        self._since: float | None = None

    def add(self, work: Work) -> None:
        """Counts an update that was sent to the devices."""
        self._work, self._steps = self._work + work, self._steps + 1
        if self._since is None:
            self._since = self._clock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Enters a context of what is no training; what was sent to the devices must be done before."""
        start = self._clock()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += self._clock() - start

    def read(self) -> dict[str, float]:
        """Returns rates since the last call by name; what was sent to the devices must be done before."""
        now = self._clock()
        seconds = max(now - (now if self._since is None else self._since), 1e-9)
        work = Work(*sum_over_processes(self._work).tolist())
        rates = {
            "examples_per_second": work.examples / seconds,
            "tokens_per_second": work.tokens / seconds,
            "seconds_per_step": seconds / max(1, self._steps),
        }
        if self._peak is not None:
            rates["mfu"] = self._cost.flops(work) / seconds / self._peak
        self._work, self._steps, self._since = Work(), 0, now
        return rates


def memory() -> dict[str, float]:
    """Returns peaks of memory so far in GiB: of this process's fullest device, where it is known, and of the process.

    Example:
      >>> memory()["host_memory_gib"] > 0
      True
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return ({"device_memory_gib": max(peaks) / GIB} if peaks else {}) | {"host_memory_gib": resident / GIB}
