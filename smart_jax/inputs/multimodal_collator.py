"""Tokenised items with images and videos as the padded `Batch` of static shape that enters jit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from smart_jax.inputs.audio_batch import pad_audio
from smart_jax.inputs.collate import check_collate, pad_text, span
from smart_jax.inputs.image import ImageSettings
from smart_jax.inputs.padded_sizes import (
    Shape,
    bucket,
    buckets,
    budget_sizes,
    check_sizes,
    page_shapes,
    page_sizes,
    text_sizes,
)
from smart_jax.inputs.settings import MultimodalConfig, Settings
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import Batch, QwenVLConfig, VisionBatch, mrope_positions, patch_geometry


class MultimodalCollator:
    """Pads tokenised items to batches; items of different sizes may share bins of patches.

    Attributes:
      config: the backbone's config, as the settings ask for it.
      images, settings: sizes of images; positions and padded sizes.
      length_buckets, patch_buckets: padded lengths of texts, and numbers of patches, ascending.
      shapes: the shapes that `collate` uses, and so the most compilations for a batch size. Batches with images have a
        length for each number of patches, unless the settings name sizes: then they have each length with each number.
    """

    def __init__(self, config: MultimodalConfig, images: ImageSettings, settings: Settings, *, pad_id: int):
        self.config, self.images, self.settings = settings.configured(config), images, settings
        unit, longest = self.merge_size**2, settings.max_length
        self.length_buckets = buckets(settings.length_buckets or text_sizes(longest), longest, 1)
        largest = min(images.max_patches, longest * unit)
        few = budget_sizes if images.soft_tokens is not None else page_sizes
        sizes = settings.patch_buckets or few(largest, longest * unit)
        self.patch_buckets = buckets(sizes, longest * unit, unit)
        texts = [Shape(length) for length in self.length_buckets]
        if settings.length_buckets is None and settings.patch_buckets is None:
            pages = page_shapes(self.patch_buckets, largest, longest, unit)
        else:
            every = itertools.product(self.length_buckets, self.patch_buckets, (False, True))
            pages = [Shape(*shape) for shape in every]
        self.shapes = (*texts, *pages)
        self._pad_id = pad_id

    @property
    def visual_ids(self) -> tuple[int, ...]:
        """Token ids of the placeholders of images and videos."""
        return (self.config.image_token_id, self.config.video_token_id)

    @property
    def audio_ids(self) -> tuple[int, ...]:
        """Token ids of the placeholder of audio; () = the model does not hear."""
        return self.config.audio_ids[1:2]

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
        videos: bool | None = None,
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
          videos: whether patches have room for all frames of a video's; None = only if an item has a video.

        Returns:
          `Batch` of NumPy arrays; int32, bool and float32, and uint8 of the patches.

        Raises:
          ValueError: there are no items, they do not fit a size, or the backbone takes no padding before a row.
        """
        check_collate(items, padding_side)
        if padding_side == "left" and self.config.text.state_products:
            raise ValueError(
                f"padding_side is 'left', but a {self.config.model_type} carries a state from its row's first position "
                "to the last: pad on the right"
            )
        longest, fullest = max(map(len, items)), max(len(item.patches) for item in items)
        B = len(items) if batch_size is None else batch_size
        check_sizes(batch_size=(B, len(items)))
        if B % (shards or 1):
            raise ValueError(f"batch_size {B} does not divide by shards = {shards}")
        if patches is None:
            each = B // (shards or B)
            together = [sum(len(item.patches) for item in items[i : i + each]) for i in range(0, len(items), each)]
            need = longest, fullest, max(together) if shards else None
            L, V, shared = self._cheapest(need, (B, shards or B), length)
        else:
            L, V, shared = self.length_bucket(longest) if length is None else length, patches, False
        check_sizes(length=(L, longest), patches=(V, fullest))
        if V % self.merge_size**2:
            raise ValueError(f"patches is {V}, expected a multiple of merge_size**2 = {self.merge_size**2}")
        still = self.images.patch_bytes
        filmed = videos or any(item.patches.shape[1] > still for item in items)
        E = still * (self.images.temporal_patch_size if filmed else 1)
        return self._pad(items, (B, L, shards or B if shared else B, V, E), left=padding_side == "left")

    def padded_sizes(self, tokens: int, patches: int) -> tuple[int, int]:
        """Returns the padded length and patches that `collate` gives items of at most so many tokens and patches.

        Each row has a bin of its own; with 0 patches there is no image.

        Raises:
          ValueError: no shape holds them.
        """
        return self._cheapest((tokens, patches, None), (1, 1), None)[:2]

    def _cheapest(self, need: tuple[int, int, int | None], counts: tuple[int, int], length: int | None) -> Shape:
        """Returns the shape that costs least among those that hold the items.

        Args:
          need: tokens of the longest item, patches of the fullest, and of the fullest shard; None = nothing is shared.
          counts: number of rows and of shards.
          length: which the shape has; None = its own.
        """
        longest, fullest, together = need
        shapes = self.shapes if length is None else [shape._replace(length=length) for shape in self.shapes]
        fitting = [
            shape
            for shape in shapes
            if (length is not None or shape.length >= longest)
            and (shape.patches > 0) == (fullest > 0)
            and (together is not None and shape.patches >= together if shape.shared else shape.patches >= fullest)
        ]
        if not fitting:  # one of these is too much, since the largest shape holds both
            self.length_bucket(longest), self.patch_bucket(fullest)
        rows, shards = counts
        return min(fitting, key=lambda shape: self._cost(shape, rows, shards if shape.shared else rows))

    def _cost(self, shape: Shape, rows: int, bins: int) -> int:
        """Returns multiplications of a batch: of matrix products, causal attention, and the tower's dense attention."""
        text, vision = self.config.text, self.config.vision
        heads = text.head_dim * text.num_attention_heads
        weights = text.hidden_size * (2 * heads + 2 * text.head_dim * text.num_key_value_heads)
        token = text.num_hidden_layers * (weights + 3 * text.hidden_size * text.intermediate_size)
        token += text.attention_layers * heads * shape.length + text.state_products
        if vision is None:
            return rows * shape.length * token
        block = vision.hidden_size * (4 * vision.hidden_size + (2 + vision.gated_mlp) * vision.intermediate_size)
        patch = vision.depth * (block + 2 * vision.hidden_size * shape.patches)
        return rows * shape.length * token + bins * shape.patches * patch

    def _pad(self, items: Sequence[TokenizedItem], shape: tuple[int, int, int, int, int], *, left: bool) -> Batch:
        B, L, G, V, E = shape
        batch = pad_text(items, (B, L), self._positions, pad_id=self._pad_id, left=left)
        bins = [items[i : i + B // G] for i in range(0, B, B // G)]
        unit = self.merge_size**2
        first = [sum(len(item.patches) for item in some[:i]) // unit for some in bins for i in range(len(some))]
        for b, item in enumerate(items):
            visual = self._is_visual(item.input_ids)
            batch.index[b, span(item, L, left=left)] = np.where(visual, first[b] + np.cumsum(visual) - 1, -1)
        heard = np.zeros((len(items), L), bool)
        for b, item in enumerate(items):
            heard[b, span(item, L, left=left)] = self._is_audio(item.input_ids)
        vision = self._pad_vision(bins, (G, V, E)) if V else None
        return dataclasses.replace(batch, vision=vision, audio=pad_audio(items, heard, B))

    def _positions(self, item: TokenizedItem) -> Int[np.ndarray, "3 L"]:
        if self.settings.positions == "sequential" or not isinstance(self.config, QwenVLConfig):
            return np.broadcast_to(np.arange(len(item)), (3, len(item)))
        return mrope_positions(
            item.input_ids,
            item.grids,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            merge=self.merge_size,
            steps=item.steps,
        )

    def _pad_vision(self, bins: Sequence[Sequence[TokenizedItem]], shape: tuple[int, int, int]) -> VisionBatch:
        """Returns the patches of each bin's items, one after another, with what the vision encoder knows of each."""
        G, V, E = shape
        vision = self.config.vision
        assert vision is not None  # items with patches have passed `tokenize`
        v = VisionBatch(
            patches=np.zeros((G, V, E), np.uint8),
            coords=np.zeros((G, V, 2), np.int32),
            interp_idx=None if vision.grid_side is None else np.zeros((G, V, 4), np.int32),
            interp_w=None if vision.grid_side is None else np.zeros((G, V, 4), np.float32),
            segment=np.zeros((G, V), np.int32),
            normalisation=self.images.normalisation,
            window=None if vision.window_patches is None else np.zeros((G, V), np.int32),
        )
        for g, items in enumerate(bins):
            end = 0
            for item in (item for item in items if len(item.patches)):
                start, end = end, end + len(item.patches)
                place = v.patches[g, start:end]
                place.reshape(len(place), -1, item.patches.shape[1])[:] = item.patches[:, None]  # for each frame
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

    def _is_audio(self, ids: Int[np.ndarray, " L"]) -> Bool[np.ndarray, " L"]:
        return np.isin(ids, self.audio_ids)

    def _is_soft(self, ids: Int[np.ndarray, " L"]) -> Bool[np.ndarray, " L"]:
        return np.isin(ids, (*self.visual_ids, *self.audio_ids))
