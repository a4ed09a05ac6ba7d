"""`open_adapter`: an adapter by the folder, the file or the hub repository that holds it."""

from __future__ import annotations

from pathlib import Path

from smart_jax.files import CONFIG_FILE as PEFT_FILE
from smart_jax.files import download, is_hub_id
from smart_jax.retrieval.adapter import CONFIG, REFERENCE, WEIGHTS, Adapter
from smart_jax.retrieval.reference_adapter import import_reference

# Where the paper's implementation looks first, in the folder of a run.
PLACES = ("", "best_adapter", "last_1/best_adapter")


def open_adapter(source: str | Path, *, revision: str | None = None) -> Adapter:
    """Opens an adapter of this library or of the paper's implementation.

    Args:
      source: a folder that `Adapter.save` wrote; the paper's `adapter.pt`, its folder, or the folder of its run, of
        which the best adapter is taken, or the only one below it; or the id of a hub repository that holds any of
        these, which is downloaded once.
      revision: branch, tag or commit of the hub repository.

    Raises:
      FileNotFoundError: there is no such folder, file or repository, or it holds no adapter.
      ConnectionError: a hub id is not in the local cache, and the hub is offline or out of reach.
      ValueError: several adapters are there, or the one there is corrupt.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> from smart_jax import Adapter, AdapterConfig
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Adapter(AdapterConfig(hidden_size=8, kind="mlp", mlp_dim=16), rngs=nnx.Rngs(0)).save(folder)
      ...     open_adapter(folder).config.kind
      'mlp'
    """
    path = Path(source)
    if path.is_file():
        return Adapter.load(path.parent) if path.name in (CONFIG, WEIGHTS) else import_reference(path)
    if path.is_dir():
        return _in_folder(path)
    if isinstance(source, Path) or not is_hub_id(source):
        raise FileNotFoundError(
            f"there is no adapter '{source}': give a folder of Adapter.save, an {REFERENCE} or its folder, or a hub id "
            "such as 'owner/name'"
        )
    return _in_folder(download(source, revision=revision, patterns=(CONFIG, WEIGHTS, f"*{REFERENCE}")))


def _in_folder(folder: Path) -> Adapter:
    if (folder / CONFIG).is_file():
        return Adapter.load(folder)
    if first := next((path for place in PLACES if (path := folder / place / REFERENCE).is_file()), None):
        return import_reference(first)
    below = sorted(folder.glob(f"**/{REFERENCE}"))
    if len(below) > 1:
        names = ", ".join(f"'{path.parent.relative_to(folder)}'" for path in below)
        raise ValueError(f"'{folder}' holds several adapters, in {names}: give the folder of one of them")
    if below:
        return import_reference(below[0])
    if (folder / PEFT_FILE).is_file():
        raise FileNotFoundError(
            f"'{folder}' holds a PEFT adapter, not a token projection: load it as a model, smart_jax.load('{folder}')"
        )
    return Adapter.load(folder)  # says what is missing
