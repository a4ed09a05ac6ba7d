"""Whether a path that a file names stays in the folder of that file: one function decides it for all readers."""

from __future__ import annotations

from pathlib import Path

REMEDY = "copy the file into the folder"


def path_inside(folder: str | Path, name: object, where: str, *, absolute: bool = False, remedy: str = REMEDY) -> Path:
    """Returns the path of a file that a file of the folder names, once it is sure to be in the folder.

    Symbolic links are followed: one that leads out of the folder is refused, too. In a snapshot of the hub's cache,
    whose files are links to the repository's blobs, the folder is the repository's.

    Args:
      folder: in which the path has to be.
      name: relative to the folder, as the file has it.
      where: what names it, for the message.
      absolute: whether an absolute path of what is in the folder is taken, too.
      remedy: what to do about one that is not in the folder, for the message.

    Raises:
      ValueError: it is no text, is absolute and must not be, or leads out of the folder.

    Example:
      >>> path_inside("pages", "images/1.png", "corpus.jsonl, line 1").as_posix()
      'pages/images/1.png'
      >>> path_inside("pages", "../secret.png", "corpus.jsonl, line 1")
      Traceback (most recent call last):
      ValueError: corpus.jsonl, line 1 names '../secret.png', which is not inside 'pages': copy the file into the folder
    """
    folder = Path(folder)
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 4096:
        kind = f"a text of {len(name)} characters" if isinstance(name, str) else f"a {type(name).__name__}"
        raise ValueError(f"{where} names {kind} where the path of a file in '{folder}' is expected")
    path = folder / name
    try:
        inside = (absolute or not Path(name).is_absolute()) and path.resolve().is_relative_to(_root(folder))
    except (OSError, RuntimeError):  # a loop of links, or a name that is too long for the file system
        inside = False
    if not inside:
        raise ValueError(f"{where} names '{name}', which is not inside '{folder}': {remedy}")
    return path


def _root(folder: Path) -> Path:
    """Returns the folder that links may lead to: of a snapshot of the hub's cache the repository's."""
    root = folder.resolve()
    for parent in root.parents[:4]:
        if parent.name == "snapshots" and parent.parent.name.startswith(("models--", "datasets--")):
            return parent.parent
    return root
