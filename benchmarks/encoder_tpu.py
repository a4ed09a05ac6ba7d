"""Estimates of libtpu's compiler for a block of each tower: `python -m benchmarks.encoder_tpu [--chip v5e ...]`.

No TPU is needed: towers of Qwen3-VL 2B's sizes in bfloat16, of one and of three blocks, are compiled ahead of time, and
a block is half of what they differ by. Its time is what the compiler estimates for every operation but the attention
kernel, of which it knows nothing. Beside it stand the block's matrix products, each compiled alone, and their time at
the chip's peak. "bytes" is what the operations of a block read and write, "temporaries" what the program of three
blocks needs beside its arguments. libtpu 0.0.42 is asked (`pip install --no-deps --target DIR "libtpu==0.0.42.*"`, and
PYTHONPATH=DIR). Nothing here is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.encode_device import peak_flops
from benchmarks.shapes import QWEN3_VL_2B
from smart_jax.models import Batch, Normalisation, QwenVLConfig, VisionBatch, abstract_model

HEADER = (
    "| chip | block | block, ms | its products, ms | ratio | products at peak, ms | bytes, GB | temporaries, MiB |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)


class Chip(NamedTuple):
    """A kind of TPU: a slice that libtpu knows, and clock in GHz; v6e's is assumed."""

    topology: str
    clock: float


CHIPS = {"v5e": Chip("v5e:2x2", 1.5), "v5p": Chip("v5p:2x2x1", 1.75), "v6e": Chip("v6e:2x2", 1.75)}


class Estimate(NamedTuple):
    """Estimated cycles, and bytes of memory that are accessed, and needed beside the arguments."""

    cycles: float
    accessed: float
    temporary: float


def estimated_cycles(program: str) -> int:
    """Returns the sum of the estimates that stand beside the operations of a compiled program's entry."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', program[program.index("\nENTRY ") :])))


def estimate(function: Callable[..., Any], *shapes: Any) -> Estimate:
    """Compiles a function for the chip whose sharding the shapes have."""
    program = jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    memory = program.memory_analysis()
    accessed = program.cost_analysis()["bytes accessed"]
    return Estimate(estimated_cycles(program.as_text()), accessed, memory.temp_size_in_bytes)


class Towers:
    """The two towers of Qwen3-VL 2B, with few blocks, as shapes on a chip."""

    def __init__(self, chip: Chip):
        device = topologies.get_topology_desc(topology_name=chip.topology, platform="tpu").devices[0]
        self._chip, self._sharding = chip, SingleDeviceSharding(device)
        self._peak = peak_flops(device.device_kind) or float("nan")
        self._config = QwenVLConfig.from_hf(QWEN3_VL_2B)

    def shape(self, *sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        """Returns an array's shape on the chip."""
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=self._sharding)

    def vision(self, bins: int, patches: int) -> str:
        """Returns a table's row about a block of the vision tower."""
        c = self._config.vision
        whole = (bins, patches)
        batch = VisionBatch(
            patches=self.shape(*whole, c.patch_values // c.temporal_patch_size, dtype=jnp.uint8),
            coords=self.shape(*whole, 2, dtype=jnp.int32),
            interp_idx=self.shape(*whole, 4, dtype=jnp.int32),
            interp_w=self.shape(*whole, 4, dtype=jnp.float32),
            segment=self.shape(*whole, dtype=jnp.int32),
            normalisation=Normalisation((0.5,) * 3, (0.5,) * 3),
        )
        width, hidden = c.hidden_size, c.intermediate_size
        maps = (width, 3 * width), (width, width), (width, hidden), (hidden, width)
        block = self._block("visual", lambda tower, batch, _: tower(batch)[0], batch)
        return self._row(f"vision, {bins} x {patches:,} patches", block, bins * patches, maps)

    def text(self, rows: int, tokens: int) -> str:
        """Returns a table's row about a layer of the decoder."""
        c = self._config.text
        whole = (rows, tokens)
        numbers, marks = self.shape(*whole, dtype=jnp.int32), self.shape(*whole, dtype=jnp.bool)
        batch = Batch(numbers, marks, self.shape(3, *whole, dtype=jnp.int32), marks, numbers, vision=None)
        width, hidden = c.hidden_size, c.intermediate_size
        q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        maps = (width, q), (width, kv), (width, kv), (q, width), (width, hidden), (width, hidden), (hidden, width)

        def last(tower: Any, inputs: tuple[Any, Batch], depth: int) -> jax.Array:
            states: jax.Array = tower(*inputs, [], set(), False)[depth]
            return states

        block = self._block("language_model", last, (self.shape(*whole, width), batch))
        return self._row(f"text, {rows} x {tokens:,} tokens", block, rows * tokens, maps)

    def _block(self, tower: str, call: Callable[[Any, Any, int], jax.Array], inputs: Any) -> Estimate:
        """Returns half of what three blocks take more than one, and the temporaries of three."""
        one, three = (self._tower(tower, depth, call, inputs) for depth in (1, 3))
        return Estimate((three.cycles - one.cycles) / 2, (three.accessed - one.accessed) / 2, three.temporary)

    def _tower(self, name: str, depth: int, call: Callable[[Any, Any, int], jax.Array], inputs: Any) -> Estimate:
        few = {
            **QWEN3_VL_2B,
            "text_config": {**QWEN3_VL_2B["text_config"], "num_hidden_layers": depth},
            "vision_config": {**QWEN3_VL_2B["vision_config"], "depth": depth, "deepstack_visual_indexes": []},
        }
        graph, params = nnx.split(getattr(nnx.merge(*abstract_model(QwenVLConfig.from_hf(few))), name))
        placed = jax.tree.map(lambda x: self.shape(*x.shape), params)
        return estimate(lambda params, inputs: call(nnx.merge(graph, params), inputs, depth), placed, inputs)

    def _row(self, name: str, block: Estimate, positions: int, maps: tuple[tuple[int, int], ...]) -> str:
        alone = sum(estimate(jnp.matmul, self.shape(positions, m), self.shape(m, n)).cycles for m, n in maps)
        ms, products = (cycles / self._chip.clock / 1e6 for cycles in (block.cycles, alone))
        peak = 2 * positions * sum(m * n for m, n in maps) / self._peak * 1e3
        return (
            f"{name} | {ms:.2f} | {products:.2f} | {ms / products:.2f} | {peak:.2f} "
            f"| {block.accessed / 1e9:.2f} | {block.temporary / 2**20:,.0f} |"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", action="append", choices=CHIPS, help="repeatable; the default is every kind")
    parser.add_argument(
        "--patches", action="append", type=int, help="repeatable: the vision tower alone, of bins of so many"
    )
    args = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit('libtpu is missing: pip install --no-deps --target DIR "libtpu==0.0.42.*", and PYTHONPATH=DIR')
    # Read when jax and libtpu are first asked for devices: this machine's are not to be looked for.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    jax.default_backend = lambda: "tpu"  # the kernels that are taken follow from it
    print(HEADER)
    for name in args.chip or CHIPS:
        towers = Towers(CHIPS[name])
        for patches in args.patches or (4096, 7200):
            print(f"| {name} | {towers.vision(4, patches)}", flush=True)
        for tokens in () if args.patches else (1152, 1848):
            print(f"| {name} | {towers.text(8, tokens)}", flush=True)


if __name__ == "__main__":
    main()
