"""Images and frames of videos in the MMEB-V2 folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.benchmarks.messages import abridged
from eval.benchmarks.mmeb_v2.table import Task, how_to_unpack
from smart_jax.files import path_inside
from smart_jax.inputs import open_image

SUFFIXES = (".jpg", ".jpeg", ".png")
SMALLEST, ENLARGED = 28, (56, 56)  # an image with a shorter side becomes one of this size, in VLM2Vec's loader


class Media:
    """Files of one task, by their names in its annotations; `check` names those that are missing.

    A name that leads out of the task's folder, by itself or by a link, is a ValueError.
    """

    def __init__(self, task: Task, root: str | Path):
        """Looks for the task's folders.

        Raises:
          FileNotFoundError: the MMEB-V2 folder has none of them; the message says how to get one.
        """
        self._task, self._root = task, Path(root)
        self._folders = [folder for name in task.media if (folder := self._root / name).is_dir()]
        self._missing: list[str] = []
        self._videos: dict[str, list[str]] = {}
        self._small: dict[Path, Image.Image | None] = {}
        if not self._folders:
            looked = " or ".join(f"'{self._root / name}'" for name in task.media)
            raise FileNotFoundError(f"there is no folder {looked}. {self._remedy()}")

    def image(self, name: str) -> str | Image.Image:
        """Returns the path of an image, or an image of 56 x 56 where one of its sides is below 28 pixels.

        That is what VLM2Vec's loader does, with which the leaderboard's figures were made.
        """
        paths = [self._inside(folder, name) for folder in self._folders]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            self._missing.append(str(paths[0]))
            return str(paths[0])
        if path not in self._small:
            self._small[path] = _enlarged(path)
        return self._small[path] or str(path)

    def frames(self, name: str, count: int) -> list[str]:
        """Returns paths of a video's frames in order, `count` of them evenly spread, or all if there are fewer."""
        if name not in self._videos:
            self._videos[name] = self._list(name)
        frames = self._videos[name]
        if count >= len(frames):
            return frames
        return [frames[i] for i in np.linspace(0, len(frames) - 1, count, dtype=int)]

    def folders(self, name: str) -> list[str]:
        """Returns the names of the folders in a folder, in natural order."""
        for folder in self._folders:
            if (place := self._inside(folder, name)).is_dir():
                return sorted((path.name for path in place.iterdir() if path.is_dir()), key=_natural)
        self._missing.append(str(self._folders[0] / name))
        return []

    def check(self) -> None:
        """Checks that everything that was asked for is there.

        Raises:
          FileNotFoundError: something is missing; the message names it.
        """
        if self._missing:
            missing = list(dict.fromkeys(self._missing))
            what = f"{len(missing)} images or folders of frames are missing ({abridged(missing)})"
            raise FileNotFoundError(f"{what}. {self._remedy()}")

    def _list(self, name: str) -> list[str]:
        for folder in self._folders:
            if (place := self._inside(folder, name)).is_dir():
                frames = [path for path in place.iterdir() if path.suffix.lower() in SUFFIXES]
                for link in filter(Path.is_symlink, frames):
                    self._inside(folder, f"{name}/{link.name}")
                if frames:
                    return [str(path) for path in sorted(frames, key=lambda path: _natural(path.name))]
        self._missing.append(str(self._folders[0] / name))
        return []

    def _inside(self, folder: Path, name: str) -> Path:
        return path_inside(folder, name, "an annotation")

    def _remedy(self) -> str:
        return f"`{how_to_unpack(self._task.archive, self._root)}` gets them"


def _enlarged(path: Path) -> Image.Image | None:
    """Returns a small image enlarged, None of others; of these only the header is read."""
    try:
        with open_image(path) as image:
            return image.convert("RGB").resize(ENLARGED) if min(image.size) < SMALLEST else None
    except OSError:  # no image: the encoder names it
        return None


def _natural(name: str) -> list[Any]:
    """Returns what names are sorted by such that numbers are in the order of their values."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"([0-9]+)", name)]
