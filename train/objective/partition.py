"""Parameters by dotted name, the modules that they belong to, and which of them are trained."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
from flax import nnx

VISION_TOWERS = ("visual", "vision_tower", "embed_vision")  # first names of what comes before the text's layers
# By dotted name: "adapter.proj.kernel", "model.visual.blocks.0.norm1.scale", "lora.visual.blocks.0.attn.qkv.a", ...
Params = dict[str, jax.Array]
T = TypeVar("T")  # an array, or its shape


class Part(enum.Enum):
    """Part of the model that a parameter belongs to; the value is the first word of its name.

    Example:
      >>> Part("lora")
      <Part.LORA: 'lora'>
    """

    ADAPTER = "adapter"  # the token projection
    LORA = "lora"  # low-rank branches of the backbone's linear maps
    BACKBONE = "model"  # the backbone's own weights
    TEMPERATURE = "log_temperature"  # learned logarithms of the loss's temperatures


class Place(NamedTuple):
    """Place of a parameter: its part of the model, and whether it is in the vision tower.

    Example:
      >>> Place(Part.BACKBONE, vision=True).part.value
      'model'
    """

    part: Part
    vision: bool = False


class Leaf(NamedTuple):
    """A parameter of an nnx module, without its array."""

    name: str
    place: Place
    path: tuple[Any, ...]  # in the module's flat state: names and numbers
    variable: nnx.Variable


class Structure(NamedTuple):
    """nnx module without its arrays, see `take_apart`.

    Example:
      >>> structure, params = take_apart(Part.ADAPTER, *nnx.split(nnx.LayerNorm(4, rngs=nnx.Rngs(0))))
      >>> [leaf.name for leaf in structure.leaves]
      ['adapter.bias', 'adapter.scale']
    """

    graphdef: nnx.GraphDef
    leaves: tuple[Leaf, ...]

    def merge(self, params: Params) -> Any:  # a module of whatever class
        """Returns the module with its arrays taken from `params`, which may hold others, too."""
        return nnx.merge(self.graphdef, self.state(params))

    def state(self, params: Params) -> nnx.State:
        """Returns the module's state with its arrays taken from `params`."""
        return nnx.from_flat_state([(leaf.path, leaf.variable.replace(params[leaf.name])) for leaf in self.leaves])


def take_apart(part: Part, graphdef: nnx.GraphDef, state: nnx.State) -> tuple[Structure, dict[str, Any]]:
    """Turns the result of `nnx.split` into a structure and parameters by dotted name.

    A name starts with the part's value; low-rank factors form a part of their own: "model.language_model.norm.scale",
    but "lora.language_model.layers.0.mlp.up_proj.a".

    Args:
      part: what the module is.
      graphdef: its graph.
      state: its parameters, arrays or abstract ones.

    Returns:
      The structure, and the leaves of `state` by name: `Params`, or shapes where it is abstract.

    Example:
      >>> structure, params = take_apart(Part.ADAPTER, *nnx.split(nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))))
      >>> {name: x.shape for name, x in params.items()}
      {'adapter.kernel': (2, 3)}
      >>> structure.merge(params)(jax.numpy.ones((1, 2))).shape
      (1, 3)
    """
    arrays = dict(nnx.to_flat_state(state))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    leaves = tuple(_leaf(part, path, variable) for path, variable in nnx.to_flat_state(abstract))
    return Structure(graphdef, leaves), {leaf.name: arrays[leaf.path].get_value() for leaf in leaves}


def _leaf(part: Part, path: tuple[Any, ...], variable: nnx.Variable) -> Leaf:
    names = path
    if path[-1] in ("lora_a", "lora_b"):
        part, names = Part.LORA, (*path[:-1], path[-1].removeprefix("lora_"))
    return Leaf(".".join(map(str, (part.value, *names))), Place(part, path[0] in VISION_TOWERS), path, variable)


def temperature_name(score: str) -> str:
    """Returns the name of a score's learned temperature among the parameters, where it is a logarithm.

    Example:
      >>> temperature_name("late")
      'log_temperature.late'
    """
    return f"{Part.TEMPERATURE.value}.{score}"


def beside_backbone(name: str, place: Place) -> bool:
    """Returns whether a parameter is none of the backbone's own weights; `name` does not matter."""
    return place.part is not Part.BACKBONE


@dataclasses.dataclass(frozen=True)
class Partition:
    """Trained and frozen parameters, and the part that each of them belongs to.

    Attributes:
      trained: places by name of what an update changes.
      frozen: places by name of what stays as it is.

    Example:
      >>> backbone, adapter = {"model.norm.scale": Place(Part.BACKBONE)}, {"adapter.proj.kernel": Place(Part.ADAPTER)}
      >>> partition = Partition(trained=adapter, frozen=backbone)
      >>> trained, frozen = partition.split({"adapter.proj.kernel": jax.numpy.ones((2, 2))})
      >>> list(trained), list(frozen), partition.trains_backbone
      (['adapter.proj.kernel'], [], False)
    """

    trained: Mapping[str, Place]
    frozen: Mapping[str, Place]

    @classmethod
    def of(
        cls,
        structures: Iterable[Structure | None],
        trained: Callable[[str, Place], bool] = beside_backbone,
        temperatures: Iterable[str] = (),
    ) -> Partition:
        """Divides the parameters of some modules.

        Args:
          structures: the modules; None stands for one that there is not.
          trained: whether a parameter is, by its name and place; by default adapter and low-rank branches are.
          temperatures: names of the scores whose temperature is learned.
        """
        places = {leaf.name: leaf.place for structure in structures if structure for leaf in structure.leaves}
        chosen = {name: place for name, place in places.items() if trained(name, place)}
        frozen = {name: place for name, place in places.items() if name not in chosen}
        return cls(chosen | {temperature_name(score): Place(Part.TEMPERATURE) for score in temperatures}, frozen)

    def place(self, name: str) -> Place:
        """Returns where a parameter stands, trained or not."""
        return self.trained[name] if name in self.trained else self.frozen[name]

    def split(self, params: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        """Returns the trained and the frozen ones of `params`."""
        trained = {name: x for name, x in params.items() if name in self.trained}
        return trained, {name: x for name, x in params.items() if name in self.frozen}

    def select(self, params: Mapping[str, T], part: Part) -> dict[str, T]:
        """Returns those of `params` that belong to a part."""
        return {name: x for name, x in params.items() if self.place(name).part is part}

    @property
    def trains_backbone(self) -> bool:
        """Whether a gradient passes through the backbone: to its weights or to branches of them."""
        return any(place.part in (Part.BACKBONE, Part.LORA) for place in self.trained.values())

    @property
    def trains_vision(self) -> bool:
        """Whether a gradient passes through the backbone's vision tower."""
        return any(place.vision for place in self.trained.values())
