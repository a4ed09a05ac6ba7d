"""Training steps on the default device: `python -m benchmarks.train --device [--shape small] [--step lora]`.

A Qwen3-VL of the 2B model's shape with random bfloat16 weights takes whole steps of `train.step`: the adapter's, LoRA's
(rank 128 on the text projections, layers recomputed as in configs/lora_visdoc.py) and LoRA's in chunks (GradCache), on
pages of 1,024 patches and 24 text tokens and queries of 32 tokens that lie on the device already. Each kind of step has
a process of its own, because the device's peak of memory is that of a process.

Figures are wall-clock times, median of the rounds. The share of the device's peak (MFU) counts what the method asks
for: the frozen vision tower once, the text layers forward and, for LoRA, backward to their inputs and to the factors.
It counts neither padding nor what is computed again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.encode_device import GRID, SHAPES, flops, page_batch, page_ids, peak_flops, random_params, seconds
from smart_jax.models import Batch, LoraConfig, QwenVLConfig, add_lora
from smart_jax.retrieval import Adapter, AdapterConfig
from smart_jax.runtime import make_mesh, replicated
from train.config import LossConfig, OptimizerConfig
from train.objective import Objective, Params, Part, Partition, TrainBatch, take_apart
from train.optimizer import make_optimizer, make_schedule
from train.step import TrainState, init_state, make_train_step

STEPS = ("adapter", "lora", "gradcache")
QUERY_TOKENS = 32
TOTAL = 1000  # steps of the run that a step is taken from
HEADER = "| step | pages/s | ms a step [min, max] | TFLOP/s | of the peak | peak memory |\n|---|---|---|---|---|---|"


def query_batch(config: QwenVLConfig, rows: int) -> Batch:
    """Returns a batch of texts of one length, without padding."""
    shape = rows, QUERY_TOKENS
    ids = np.random.default_rng(2).integers(20, 180, shape).astype(np.int32)
    mask = np.ones(shape, bool)
    positions = np.broadcast_to(np.arange(QUERY_TOKENS, dtype=np.int32), (3, *shape))
    return Batch(ids, mask, positions, mask, np.full(shape, -1, np.int32), None)


def training_flops(config: QwenVLConfig, step: str, pages: int, r: int) -> float:
    """Returns the FLOP of a step on as many queries as pages, two for each multiply-add.

    LoRA takes the text layers' products once more for the gradient of their inputs, and six products of each token with
    the factors: two forward, two to the inputs, two to the factors. The adapter takes its projection forward and to its
    kernel. The scores and the optimizer are left out, since they are small beside these.
    """
    tokens = len(page_ids(config)) + QUERY_TOKENS
    page, query = flops(config, len(page_ids(config)), GRID), flops(config, QUERY_TOKENS, (0, *GRID[1:]))
    forward = page + query
    t, width = config.text, config.text.hidden_size
    if step == "adapter":
        return pages * (forward + 2 * 2.0 * tokens * width**2)
    text = flops(config, len(page_ids(config)), (0, *GRID[1:])) + query
    q, kv = t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim
    sides = 2 * (width + q) + 2 * (width + kv) + 3 * (width + t.intermediate_size)
    return pages * (forward + text + attention_flops(config) + 6 * 2.0 * tokens * r * sides * t.num_hidden_layers)


def attention_flops(config: QwenVLConfig) -> float:
    """Returns the FLOP that attention of a page and a query takes in the backward pass beyond a second forward pass.

    A product of two activations has two gradients, where a product with a frozen kernel has one.
    """
    t = config.text
    lengths = len(page_ids(config)), QUERY_TOKENS
    return sum(2.0 * n * (n + 1) * t.num_attention_heads * t.head_dim * t.num_hidden_layers for n in lengths)


def program(
    config: QwenVLConfig, step: str, pages: int, chunk: int | None, r: int, *, remat: bool
) -> tuple[Callable[..., Any], TrainState, Params, TrainBatch]:
    """Returns the step, still to be compiled, and its arguments; `chunk` rows pass at a time, None = all."""
    graphdef, weights = random_params(config)
    if step != "adapter":
        graphdef, weights = add_lora(graphdef, weights, LoraConfig(r=r, alpha=2.0 * r))
    backbone, arrays = take_apart(Part.BACKBONE, graphdef, weights)
    adapter = None
    if step == "adapter":
        module = Adapter(AdapterConfig(config.text.hidden_size), rngs=nnx.Rngs(0))
        adapter, projection = take_apart(Part.ADAPTER, *nnx.split(module))
        arrays |= projection
    partition = Partition.of([backbone, adapter])
    loss = LossConfig() if step == "adapter" else LossConfig(objective="hybrid", temperature=0.05)
    mesh = make_mesh(devices=jax.devices()[:1])
    objective = Objective(loss, TOTAL, mesh, partition, backbone, adapter, remat=remat, chunk_size=chunk)
    settings = OptimizerConfig(learning_rate=1e-4)
    optimizer, schedule = make_optimizer(settings, TOTAL), make_schedule(settings, TOTAL)
    ids = np.arange(pages, dtype=np.uint32)[:, None]
    batch = TrainBatch(query_batch(config, pages), page_batch(config, pages), jnp.asarray(ids))
    # On the mesh, as in a run: else the first step's results would be placed differently and compile it again.
    (params, frozen), batch = jax.device_put((partition.split(arrays), batch), replicated(mesh))
    state = init_state(params, optimizer, mesh)
    return make_train_step(objective, optimizer, schedule, state), state, frozen, batch


def measure(shape: str, step: str, pages: int, chunk: int, repeats: int, r: int = 128) -> str:
    """Returns a line of the table, measured in this process."""
    config, device = QwenVLConfig.from_hf(SHAPES[shape]), jax.devices()[0]
    size = chunk if step == "gradcache" else None
    update, state, frozen, batch = program(config, step, pages, size, r, remat=step == "lora")

    def run() -> float:
        nonlocal state
        state, metrics = update(state, frozen, batch)
        return float(metrics["loss"])

    if not np.isfinite(loss := run()):
        raise FloatingPointError(f"the loss of the first step is {loss}")
    taken = [seconds(run) for _ in range(repeats)]
    median, work = statistics.median(taken), training_flops(config, step, pages, r)
    peak = peak_flops(device.device_kind)
    share = "unknown peak" if peak is None else f"{work / median / peak:.0%} of {peak / 1e12:,.0f}"
    used: dict[str, Any] = device.memory_stats() or {}
    memory = f"{used['peak_bytes_in_use'] / 2**30:,.1f} GiB" if "peak_bytes_in_use" in used else "not reported"
    times = f"{median * 1e3:,.1f} [{min(taken) * 1e3:,.1f}, {max(taken) * 1e3:,.1f}]"
    return f"| {step} | {pages / median:,.2f} | {times} | {work / median / 1e12:,.2f} | {share} | {memory} |"


def main(arguments: list[str]) -> None:
    """The command line after --device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="append", choices=STEPS, help="may be repeated; all by default")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="2b")
    parser.add_argument("--pages", type=int, default=16, help="pages of a step, and as many queries")
    parser.add_argument("--chunk", type=int, default=4, help="rows that pass at a time in gradcache")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    sizes = options.shape, options.pages, options.chunk, options.repeats
    if options.step and len(options.step) == 1:
        kind = jax.devices()[0].device_kind
        print(f"{kind}, one device; Qwen3-VL of the shape {options.shape!r}, bfloat16, {options.pages} pages of a step")
        return print(f"\n{HEADER}\n{measure(sizes[0], options.step[0], *sizes[1:])}", flush=True)
    for step in options.step or STEPS:  # this process must not take the device: jax starts with its first use
        wanted = ["--step", step, *(x for name, size in zip(_SIZES, sizes, strict=True) for x in (name, str(size)))]
        subprocess.run([sys.executable, "-m", "benchmarks.train", "--device", *wanted], check=True)


_SIZES = ("--shape", "--pages", "--chunk", "--repeats")
