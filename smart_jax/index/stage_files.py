"""Files of the first stages: of each segment as many marks as it has tokens, and the centroids.

Like those of segments they have no header and only grow, and a file's end that the catalog does not count is of a write
that was cut off. A stage that is made anew has another number, and other files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from smart_jax.index.segment_files import Extent, append_rows, flush_folder, map_rows
from smart_jax.index.stages import Marks, Stage
from smart_jax.index.vector_format import VectorFormat

STAGE_FOLDER = "stages"  # in that of an index
LONGEST = 1.01  # component of a centroid, whose length is 1 or, of tokens that cancel out, less


class StageFiles:
    """The files of all stages, in a folder.

    Attributes:
      folder: that holds them and nothing else.
      format: of the vectors that they are of.
    """

    def __init__(self, folder: Path, vector_format: VectorFormat):
        self.folder, self.format = folder, vector_format

    def append(self, stage: Stage, extent: Extent, marks: Marks) -> None:
        """Writes marks behind those of a segment's tokens, to the disk."""
        self.folder.mkdir(exist_ok=True)
        append_rows({self.folder / stage.file(extent.number): (extent.tokens, marks)})
        if extent.tokens == 0:
            flush_folder(self.folder)

    def write_centroids(self, stage: Stage, centroids: Float[np.ndarray, "centroids D"]) -> None:
        """Writes centroids to the disk."""
        self.folder.mkdir(exist_ok=True)
        append_rows({self.folder / stage.file(): (0, centroids)})
        flush_folder(self.folder)

    def centroids(self, stage: Stage) -> Float[np.ndarray, "centroids D"]:
        """Returns the centroids; raises what `marks` does, and ValueError where one is no direction."""
        path, shape = self.folder / stage.file(), (stage.centroids, self.format.token_width)
        centroids = map_rows(path, np.dtype(np.float32), shape)
        if not (np.abs(centroids) <= LONGEST).all():  # NaN is not, either
            raise ValueError(f"'{path}' has centroids that are not of length 1: the index is damaged; restore the file")
        return centroids

    def marks(self, stage: Stage, extent: Extent) -> Marks:
        """Returns the marks of a segment's tokens, left in the file.

        Raises:
          FileNotFoundError: the file is missing, perhaps since the stage was made anew.
          ValueError: the file is too short.
        """
        dtype, shape = stage.mark_shape(self.format)
        return map_rows(self.folder / stage.file(extent.number), dtype, (extent.tokens, *shape))

    def trim(self, stages: Sequence[Stage], extents: Iterable[Extent]) -> None:
        """Removes what belongs to no stage and no extent: files, and the ends of files."""
        if not self.folder.is_dir():
            return
        keep: dict[str, int] = {}
        there = list(extents)
        for stage in stages:
            dtype, shape = stage.mark_shape(self.format)
            size = dtype.itemsize * int(np.prod(shape))
            keep |= {stage.file(extent.number): extent.tokens * size for extent in there}
            if stage.name == "centroids":
                keep[stage.file()] = 4 * stage.centroids * self.format.token_width
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()
            elif path.stat().st_size > keep[path.name]:
                os.truncate(path, keep[path.name])
        if not stages:
            self.folder.rmdir()
