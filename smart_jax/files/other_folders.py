"""Folders of this library that are no checkpoints, told by a file in them: what each of them is, and what opens it."""

from __future__ import annotations

from pathlib import Path

# By a file that it has: what the folder is, and the call that opens it, with its path for {}.
_KINDS = {
    "index.db": ("an index", "smart_jax.Index('{}')"),
    "embeddings.json": ("embeddings", "smart_jax.Embeddings.load('{}')"),
    "adapter.json": ("an adapter", "smart_jax.load(MODEL, adapter='{}')"),
    "adapter.pt": ("an adapter of the paper's implementation", "smart_jax.load(MODEL, adapter='{}')"),
    "model/config.json": ("a training run", "smart_jax.load('{}/model')"),
    "adapter/adapter.json": ("a training run", "smart_jax.load(MODEL, adapter='{}/adapter')"),
}


def other_folder(folder: str | Path) -> str | None:
    """Returns what a folder without a checkpoint holds and how it is opened, in words; None = nothing that is known.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Path(folder, "embeddings.json").touch()
      ...     other_folder(folder).replace(folder, "corpus")
      "it holds embeddings: open it with smart_jax.Embeddings.load('corpus')"
    """
    for file, (what, opened) in _KINDS.items():
        if (Path(folder) / file).is_file():
            return f"it holds {what}: open it with {opened.format(folder)}"
    return None
