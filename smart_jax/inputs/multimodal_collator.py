"""Tokenised items with images and videos as the padded `Batch` of static shape that enters jit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from smart_jax.inputs.collate import check_collate, pad_text, span
from smart_jax.inputs.image import ImageSettings
from smart_jax.inputs.padded_sizes import bucket, buckets, check_sizes, octaves
from smart_jax.inputs.settings import Settings
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import Batch, QwenVLConfig, VisionBatch, mrope_positions, patch_geometry

SMALLEST_LENGTH, SMALLEST_PATCHES = 32, 64


class MultimodalCollator:
    """Pads tokenised items to batches; items of different sizes may share bins of patches.

    Attributes:
      config: the backbone's config, as the settings ask for it.
      images, settings: sizes of images; positions and padded sizes.
      length_buckets, patch_buckets: the padded sizes that `collate` uses, ascending: at most
        len(length_buckets) * (1 + len(patch_buckets)) shapes, and so compilations, per batch size; with shared bins
        len(length_buckets) * (1 + 2 * len(patch_buckets)).
    """

    def __init__(self, config: QwenVLConfig, images: ImageSettings, settings: Settings, *, pad_id: int):
        self.config, self.images, self.settings = settings.configured(config), images, settings
        unit, longest = self.merge_size**2, settings.max_length
        self.length_buckets = buckets(settings.length_buckets or octaves(SMALLEST_LENGTH, longest), longest, 1)
        # One image at the pixel ceiling is the commonest large page: it gets a bucket of its own.
        sizes = settings.patch_buckets or [*octaves(SMALLEST_PATCHES, longest * unit), images.max_patches]
        self.patch_buckets = buckets(sizes, longest * unit, unit)
        self._pad_id = pad_id

    @property
    def visual_ids(self) -> tuple[int, ...]:
        """Token ids of the placeholders of images and videos."""
        return (self.config.image_token_id, self.config.video_token_id)

    @property
    def merge_size(self) -> int:
        """Number of patches on a side of a visual token."""
        return self.images.merge_size

    def length_bucket(self, n: int) -> int:
        """Returns the padded length of items of at most n tokens."""
        return bucket(n, self.length_buckets, "tokens")

    def patch_bucket(self, n: int) -> int:
        """Returns the padded number of patches of items of at most n patches."""
        return bucket(n, self.patch_buckets, "patches")

    def collate(
        self,
        items: Sequence[TokenizedItem],
        *,
        length: int | None = None,
        patches: int | None = None,
        batch_size: int | None = None,
        shards: int | None = None,
        padding_side: Literal["right", "left"] = "right",
    ) -> Batch:
        """Returns a batch of static shape.

        Args:
          items: at least one.
          length: padded length L; None = the bucket of the longest item.
          patches: padded patches V of every row's bin; None = the bucket of the fullest, or no vision part where no
            item has an image; 0 = no vision part.
          batch_size: B; the batch is filled up with rows of one attended padding token and no kept one.
          shards: rows may share bins, if that makes the vision encoder cheaper, but not across this number of equal
            parts of the batch, which go to different devices; None = a bin for each row.
          padding_side: side of the tokens that is padded.

        Returns:
          `Batch` of NumPy arrays; int32, bool and float32.

        Raises:
          ValueError: there are no items, or they do not fit a size.
        """
        check_collate(items, padding_side)
        longest, fullest = max(map(len, items)), max(len(item.patches) for item in items)
        B = len(items) if batch_size is None else batch_size
        L = self.length_bucket(longest) if length is None else length
        V = (self.patch_bucket(fullest) if fullest else 0) if patches is None else patches
        check_sizes(batch_size=(B, len(items)), length=(L, longest), patches=(V, fullest))
        if V % self.merge_size**2:
            raise ValueError(f"patches is {V}, expected a multiple of merge_size**2 = {self.merge_size**2}")
        G = B
        if shards is not None and patches is None and V:
            if B % shards:
                raise ValueError(f"batch_size {B} does not divide by shards = {shards}")
            G, V = self._cheapest_bins(items, (B, V), shards)
        return self._pad(items, (B, L, G, V), left=padding_side == "left")

    def _cheapest_bins(self, items: Sequence[TokenizedItem], by_row: tuple[int, int], shards: int) -> tuple[int, int]:
        """Returns number and size of the bins: `by_row`, one for each row, or one for each shard."""
        each = by_row[0] // shards
        shared = max(sum(len(item.patches) for item in items[i : i + each]) for i in range(0, by_row[0], each))
        if shared > self.patch_buckets[-1]:
            return by_row

        def cost(bins: int, size: int) -> int:  # of matrix products (12 W**2 a patch) and dense attention (2 W V)
            return bins * size * (6 * self.config.vision.hidden_size + size)

        return min([by_row, (shards, self.patch_bucket(shared))], key=lambda choice: cost(*choice))

    def _pad(self, items: Sequence[TokenizedItem], shape: tuple[int, int, int, int], *, left: bool) -> Batch:
        B, L, G, V = shape
        batch = pad_text(items, (B, L), self._positions, pad_id=self._pad_id, left=left)
        bins = [items[i : i + B // G] for i in range(0, B, B // G)]
        unit = self.merge_size**2
        first = [sum(len(item.patches) for item in some[:i]) // unit for some in bins for i in range(len(some))]
        for b, item in enumerate(items):
            visual = self._is_visual(item.input_ids)
            batch.index[b, span(item, L, left=left)] = np.where(visual, first[b] + np.cumsum(visual) - 1, -1)
        return dataclasses.replace(batch, vision=self._pad_vision(bins, (G, V)) if V else None)

    def _positions(self, item: TokenizedItem) -> Int[np.ndarray, "3 L"]:
        if self.settings.positions == "sequential":
            return np.broadcast_to(np.arange(len(item)), (3, len(item)))
        return mrope_positions(
            item.input_ids,
            item.grids,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            merge=self.merge_size,
            steps=item.steps,
        )

    def _pad_vision(self, bins: Sequence[Sequence[TokenizedItem]], shape: tuple[int, int]) -> VisionBatch:
        """Returns the patches of each bin's items, one after another, with what the vision encoder knows of each."""
        G, V = shape
        vision = self.config.vision
        v = VisionBatch(
            patches=np.zeros((G, V, self.images.patch_values), np.float32),
            coords=np.zeros((G, V, 2), np.int32),
            interp_idx=None if vision.grid_side is None else np.zeros((G, V, 4), np.int32),
            interp_w=None if vision.grid_side is None else np.zeros((G, V, 4), np.float32),
            segment=np.zeros((G, V), np.int32),
            window=None if vision.window_patches is None else np.zeros((G, V), np.int32),
        )
        for g, items in enumerate(bins):
            end = 0
            for item in items:
                start, end = end, end + len(item.patches)
                v.patches[g, start:end] = item.patches
            geometry = patch_geometry(
                [grid for item in items for grid in item.grids],
                merge=self.merge_size,
                side=vision.grid_side,
                window=vision.window_patches,
            )
            for name, values in geometry._asdict().items():
                if values is not None:
                    getattr(v, name)[g, :end] = values
        return v

    def _is_visual(self, ids: Int[np.ndarray, " L"]) -> Bool[np.ndarray, " L"]:
        return np.isin(ids, self.visual_ids)
