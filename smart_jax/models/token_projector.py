"""Token projectors: the linear map that makes a multi-vector model's token vectors, and where a checkpoint has it."""

from __future__ import annotations

import re
from typing import NamedTuple

from smart_jax.files import SINGLE_FILE, Checkpoint, path_inside, shown, tensor_shapes
from smart_jax.models.sentence_modules import MODULES_FILE, read_modules, read_part
from smart_jax.typing import JsonObject

# What colpali-engine calls it, and what transformers and Tomoro's checkpoints do; whole in a PEFT adapter, too.
_NAMES = re.compile(r"(?:.+\.)?(custom_text_proj|embedding_proj_layer)(?:\.modules_to_save(?:\.default)?)?\.weight")
_ACTIVATIONS = (None, "torch.nn.modules.linear.Identity")


class TokenProjector(NamedTuple):
    """Linear map from a token's last state to its vector, before this is normalised.

    Attributes:
      name: of the module in the checkpoint, such as "custom_text_proj".
      width: number of components that it makes.
      bias: whether it has one.
      folder: of sentence-transformers' module "linear", whose weights are a file of its own there; None = they are
        among the model's.

    Example:
      >>> TokenProjector("linear", 128, bias=False, folder="1_Dense").module
      '1_Dense.linear'
    """

    name: str
    width: int
    bias: bool = True
    folder: str | None = None

    @property
    def module(self) -> str:
        """Name of the module among the model's: a folder's stands before it."""
        return self.name if self.folder is None else f"{self.folder}.{self.name}"


def declared_projector(hf: JsonObject) -> TokenProjector | None:
    """Returns the projector that a config.json gives the width of, as jina-embeddings-v4's does (arXiv:2506.18902).

    Raises:
      ValueError: the width is no positive integer.
    """
    width = hf.get("multi_vector_projector_dim")
    if width is None:
        return None
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"config.json: multi_vector_projector_dim is {width!r}, expected a positive integer")
    return TokenProjector("multi_vector_projector", width)


def find_projector(checkpoint: Checkpoint) -> TokenProjector | None:
    """Returns the projector that a checkpoint's files hold; None = there is none.

    It is a Dense module that sentence-transformers' modules.json has before any pooling, or else tensors with one of
    the names of multi-vector models, in the weights or whole in the PEFT adapter. Only headers of files are read.

    Raises:
      ValueError: a file is corrupt, or the Dense module is more than a linear map.
    """
    if (dense := _dense(checkpoint)) is not None:
        return dense
    shapes = tensor_shapes(checkpoint.weights)
    if (adapter := checkpoint.adapter) is not None:
        shapes |= tensor_shapes(adapter)
    for name, shape in shapes.items():
        if (match := _NAMES.fullmatch(name)) and len(shape) == 2:
            return TokenProjector(match[1], shape[0], bias=f"{name.removesuffix('weight')}bias" in shapes)
    return None


def _dense(checkpoint: Checkpoint) -> TokenProjector | None:
    root = checkpoint.having(MODULES_FILE)
    modules = read_modules(root)
    kinds = [module.kind for module in modules]
    if "Dense" not in kinds or "Pooling" in kinds[: kinds.index("Dense")]:
        return None
    folder = modules[kinds.index("Dense")].path
    path = path_inside(root, f"{folder}/config.json", str(root / MODULES_FILE))
    config = read_part(path, dict)
    width = None if config is None else config.get("out_features")
    if config is None or isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"{path} does not say out_features of the Dense module: fetch the checkpoint again")
    if kinds.count("Dense") > 1 or config.get("activation_function") not in tuple(_ACTIVATIONS):
        raise ValueError(
            f"{root / MODULES_FILE}: one linear Dense module is computed here, not {kinds.count('Dense')} with the "
            f"activation {shown(config.get('activation_function'))}"
        )
    own = (path.parent / SINGLE_FILE).is_file()
    bias = bool(config.get("bias", True))
    return TokenProjector("linear" if own else f"{folder}.linear", width, bias, folder if own else None)
