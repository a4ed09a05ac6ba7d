"""Parameters by dotted name, and the modules that they belong to."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import nnx

# By dotted name: "adapter.proj.kernel", "model.visual.blocks.0.norm1.scale", "lora.visual.blocks.0.attn.qkv.a", ...
Params = dict[str, jax.Array]


class Structure(NamedTuple):
    """An nnx module without its arrays."""

    graphdef: nnx.GraphDef
    template: tuple[tuple[str, tuple, Any], ...]  # name, path, leaf without array

    def merge(self, params: Params) -> Any:
        return nnx.merge(self.graphdef, self.state(params))

    def state(self, params: Params) -> nnx.State:
        return nnx.from_flat_state([(path, leaf.replace(params[name])) for name, path, leaf in self.template])


def take_apart(prefix: str, graphdef: nnx.GraphDef, state: nnx.State) -> tuple[Structure, Params]:
    """`nnx.split`'s result as a structure and parameters by dotted name.

    A name starts with `prefix`, that of a low-rank factor with "lora": "lora.language_model.layers.0.mlp.up_proj.a".
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    named = [(_parameter_name(prefix, path), path, leaf) for path, leaf in nnx.to_flat_state(abstract)]
    arrays = dict(nnx.to_flat_state(state))
    return Structure(graphdef, tuple(named)), {name: arrays[path].get_value() for name, path, _ in named}


def _parameter_name(prefix: str, path: tuple) -> str:
    if path[-1] in ("lora_a", "lora_b"):
        prefix, path = "lora", (*path[:-1], path[-1].removeprefix("lora_"))
    return ".".join(map(str, (prefix, *path)))
