"""Items to the padded NumPy `Batch` of static shape that enters jit: prompt, token ids, patches, buckets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from smart_jax.files import having
from smart_jax.inputs.collate import Row, bucket, buckets, check_collate, check_sizes, octaves, pad_text, span
from smart_jax.inputs.image import IMAGE_FILES, ImageSettings, process_image, read_image_settings
from smart_jax.inputs.item import check_items, parse_item
from smart_jax.inputs.presets import open_settings
from smart_jax.inputs.prompt import (
    TOKENIZER_FILES,
    Prompt,
    added_ids,
    dropped_token_ids,
    read_chat_template,
    read_tokenizer,
)
from smart_jax.inputs.settings import Settings
from smart_jax.inputs.video import VideoPatches, middle_frame, process_video
from smart_jax.models import Batch, Grid, QwenVLConfig, VisionBatch, mrope_positions, patch_geometry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Preprocessor", "Row", "check_items"]

SMALLEST_LENGTH, SMALLEST_PATCHES = 32, 64


class Preprocessor:
    """Turns items into rows and rows into batches.

    Attributes:
      config: of the backbone.
      tokenizer: of the checkpoint.
      settings, images: prompt, pooling and sizes; image arithmetic.
      length_buckets, patch_buckets: the padded sizes that `collate` uses, ascending: at most
        len(length_buckets) * (1 + len(patch_buckets)) shapes, and so compilations, per batch size; with shared bins
        len(length_buckets) * (1 + 2 * len(patch_buckets)).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None,
        config: QwenVLConfig,
        images: ImageSettings,
        settings: Settings,
    ):
        self.tokenizer, self.config = tokenizer, config
        self.images, self.settings = images, settings
        self._prompt, self._chat_template = Prompt(settings.prompt, tokenizer, config, chat_template), chat_template
        unit = images.merge_size**2
        longest = settings.max_length
        self.length_buckets = buckets(settings.length_buckets or octaves(SMALLEST_LENGTH, longest), longest, 1)
        # One image at the pixel ceiling is the commonest large page: it gets a bucket of its own.
        sizes = settings.patch_buckets or [*octaves(SMALLEST_PATCHES, longest * unit), images.max_patches]
        self.patch_buckets = buckets(sizes, longest * unit, unit)
        self._image_token = str(tokenizer.convert_ids_to_tokens(config.image_token_id))
        self._video_token = str(tokenizer.convert_ids_to_tokens(config.video_token_id))
        token = settings.pooling_token
        self._placeholders = [self._image_token, self._video_token, *([] if token is None else [token])]
        self._pooling_id = None if token is None else tokenizer.convert_tokens_to_ids(token)
        self._marks = [
            str(tokenizer.convert_ids_to_tokens(i)) for i in (config.vision_start_token_id, config.vision_end_token_id)
        ]
        self._dropped = np.array(sorted(dropped_token_ids(tokenizer, config)), np.int64)
        self._prefix, self._suffix = added_ids(tokenizer)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._check()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config: QwenVLConfig, *, base: str | Path | None = None, **overrides: Any
    ) -> Preprocessor:
        """Reads tokenizer, chat template, preprocessor_config.json and, if there is one, smart_jax.json.

        The head, that is prompt and pooling, is told by config.json, the folder's name or `overrides`.

        Args:
          folder: checkpoint in Hugging Face layout.
          config: of its backbone.
          base: has the files that the folder lacks, see `hub.resolve_base`; the template comes with the tokenizer.
          **overrides: fields of `Settings`.

        Raises:
          FileNotFoundError: the tokenizer or preprocessor_config.json is missing.
          ValueError: one of the files is corrupt, unknown settings, an unknown head (see `open_settings`), or they
            contradict the backbone's config.
        """
        settings = open_settings(folder, config.model_type, base=base, **overrides)
        images = read_image_settings(
            having(folder, base, *IMAGE_FILES),
            config.vision,
            min_pixels=settings.min_pixels,
            max_pixels=settings.max_pixels,
            first_pixels=settings.first_pixels,
        )
        words = having(folder, base, *TOKENIZER_FILES)
        tokenizer = read_tokenizer(words, added=settings.pooling_token)
        chat_template = None if isinstance(settings.prompt, str) else read_chat_template(words, tokenizer)
        return cls(tokenizer, chat_template, config, images, settings)

    def description(self) -> tuple[Any, ...]:
        """All that rows depend on beside the config; its `repr` is the same in every process."""
        return self.settings, self.images, self._chat_template, self.tokenizer.backend_tokenizer.to_str()

    def _check(self) -> None:
        if self.config.vision.in_channels != 3:
            raise ValueError(f"config.json: in_channels is {self.config.vision.in_channels}, only RGB (3) is supported")
        largest = max(self.tokenizer.get_vocab().values())
        if largest >= self.config.text.vocab_size:
            raise ValueError(
                f"the tokenizer has token ids up to {largest}, the backbone's vocabulary ends before "
                f"{self.config.text.vocab_size}: tokenizer and config.json belong to different checkpoints"
            )
        try:
            prompt = self.prompt(["text"], 1)
        except Exception as error:  # jinja2 and the template's own raise_exception have no common base
            raise ValueError(f"the chat template can not be rendered ({error}): fetch the checkpoint again") from error
        ids = self._encode(prompt)
        if prompt.count(self._image_token) != 1 or self.config.image_token_id not in ids:
            raise ValueError(
                f"the chat template or prompt does not write the backbone's image token '{self._image_token}' (id "
                f"{self.config.image_token_id}) for an image: tokenizer, template and config.json do not match"
            )
        both = self.prompt(["text"], 1, video_count=1)
        if both.rfind(self._video_token) > both.find(self._image_token):
            raise ValueError("the prompt writes images before videos, whose patches come first: turn them round")
        if self._pooling_id is not None and np.sum(ids == self._pooling_id) != 1:
            raise ValueError(
                f"pooling is '{self.settings.pooling}', but the prompt does not hold '{self.settings.pooling_token}' "
                "once: write it there or use another pooling rule"
            )

    def prompt(
        self,
        texts: Sequence[str],
        image_count: int = 0,
        *,
        instruction: str | None = None,
        video_count: int = 0,
        query: bool = False,
    ) -> str:
        """The prompt of one item, with one placeholder per video and image; see `smart_jax.inputs.prompt.Prompt`."""
        if not (instruction or "").strip():
            own = self.settings.query_instruction if query else None
            instruction = self.settings.default_instruction if own is None else own
        return self._prompt(texts, images=image_count, videos=video_count, instruction=instruction or "", query=query)

    def row(self, item: Any, *, instruction: str | None = None, query: bool = False, name: str = "item") -> Row:
        """Token ids, keep mask and patches of one item.

        A row longer than max_length is cut at its end, as the reference's tokenizer does: text goes and so does the
        template's end, and the last token left is the one that is pooled. Where a token of the template names the
        pooled one, text is dropped instead. Videos and images are never cut.

        Args:
          item: as in `parse_item`.
          instruction: where the item carries none of its own; None = the default instruction.
          query: whether it is a query, with a query's default instruction and kept tokens.
          name: of the item, for messages.

        Raises:
          TypeError, ValueError, FileNotFoundError: the item can not be used; the message says why and what to do.
          ImportError: the item has a video file, and PyAV is not installed.
        """
        parsed = parse_item(item, name=name)
        instruction = self._checked_instruction(parsed.instruction or instruction, query, name)
        for text in (*parsed.texts, instruction or ""):
            if found := [token for token in self._placeholders if token in text]:
                raise ValueError(
                    f"{name}: the text contains the prompt's own token {found[0]}: remove it from the text"
                )

        sizes = self.settings.videos
        how: dict[str, Any] = {"fps": parsed.fps, "max_frames": parsed.max_frames, "name": name}
        films, stills = parsed.videos, [process_image(image, self.images, name=name) for image in parsed.images]
        if self.settings.video == "middle":
            frames = [middle_frame(film, self.images, sizes, **how) for film in films]
            films, stills = (), [process_image(frame, self.images, name=name) for frame in frames] + stills

        def prompt(texts: Sequence[str]) -> str:
            return self.prompt(texts, len(stills), instruction=instruction, video_count=len(films), query=query)

        if films:
            self._check_video(prompt(parsed.texts), len(films), name)
        videos = [process_video(film, self.images, sizes, **how) for film in films]
        runs = [run for video in videos for run in self._runs(video)] + [(grid, 1.0) for _, grid in stills]
        grids = tuple(grid for grid, _ in runs)

        def written(texts: Sequence[str]) -> Int[np.ndarray, " L"]:
            return self._expand(self._encode(self._write_times(prompt(texts), videos)), grids)

        if self._pooling_id is None:
            ids = self._fit(written(parsed.texts), name)
        else:
            ids = self._fit_text(written, parsed.texts, name)
        patches = [*(video.patches for video in videos), *(p for p, _ in stills)]
        if not patches:
            patches = [np.zeros((0, self.images.patch_values), np.float32)]
        pool = self._pool(ids)
        return Row(
            input_ids=ids.astype(np.int32),
            keep=self._keep(ids, pool, query),
            grids=grids,
            patches=patches[0] if len(patches) == 1 else np.concatenate(patches),
            pool=pool,
            steps=tuple(step for _, step in runs),
        )

    def _checked_instruction(self, instruction: str | None, query: bool, name: str) -> str | None:
        allowed = {"all": True, "queries": query, "none": False}[self.settings.instructions]
        if instruction and instruction.strip() and not allowed:
            who = "queries only" if self.settings.instructions == "queries" else "no item"
            raise ValueError(
                f"{name} has an instruction, which this model ({self.settings.head}) takes for {who}: leave it out"
            )
        return instruction

    def _pool(self, ids: Int[np.ndarray, " L"]) -> Bool[np.ndarray, " L"] | None:
        """Where the states are whose mean is the pooled one; None = at the end."""
        if self.settings.pooling == "last":
            return None
        position = np.arange(len(ids))
        if self._pooling_id is not None:
            return position == np.argmax(ids == self._pooling_id) - 1
        marks = np.flatnonzero(np.isin(ids, [self.config.vision_start_token_id, self.config.vision_end_token_id]))
        return (position >= marks[0]) & (position <= marks[-1]) if len(marks) else np.ones(len(ids), bool)

    def _keep(
        self, ids: Int[np.ndarray, " L"], pool: Bool[np.ndarray, " L"] | None, query: bool
    ) -> Bool[np.ndarray, " L"]:
        """Tokens of late interaction (method section 3)."""
        keep = np.ones(len(ids), bool) if self.settings.keep == "all" else ~np.isin(ids, self._dropped)
        if query and not self.settings.query_visual:
            keep &= ~self._is_visual(ids)
        # An item of special tokens only is scored by the pooling position's state, which is its pooled vector.
        keep[-1 if pool is None else np.flatnonzero(pool)[-1]] |= not keep.any()
        return keep

    def _runs(self, video: VideoPatches) -> list[tuple[Grid, float]]:
        """Grid and temporal step of each run of the video's visual tokens."""
        if self.config.timestamps:
            return [(grid, 1.0) for grid in video.grids]
        rate = self.config.vision.tokens_per_second
        _, height, width = video.grids[0]
        return [((len(video.grids), height, width), 1.0 if rate is None else rate * video.interval)]

    def _check_video(self, prompt: str, videos: int, name: str) -> None:
        if self.settings.video == "none":
            raise ValueError(
                f"{name} has a video, which this model ({self.settings.head}) does not take: pass some frames as images"
            )
        if prompt.count(self._video_token) != videos:
            raise ValueError(
                f"{name} has a video, but the checkpoint's chat template does not write the video token "
                f"'{self._video_token}': the model has no video support; pass some frames as images"
            )

    def _write_times(self, prompt: str, videos: Sequence[VideoPatches]) -> str:
        """Each video's placeholder becomes a time and a marked placeholder per temporal patch.

        The template's own marks around a video go, as in the transformers (4.57) that the Qwen3-VL models came with;
        from version 5 on it leaves them in, two tokens more. Models without timestamps take the prompt as it is.
        """
        if not self.config.timestamps:
            return prompt
        start, end = self._marks
        marked = f"{start}{self._video_token}{end}"
        placeholder = marked if marked in prompt else self._video_token
        head, *tails = prompt.split(placeholder) if videos else [prompt]
        for video, tail in zip(videos, tails, strict=True):
            head += "".join(f"<{t:.1f} seconds>{marked}" for t in video.seconds) + tail
        return head

    def _is_visual(self, ids: Int[np.ndarray, " L"]) -> Bool[np.ndarray, " L"]:
        return np.isin(ids, [self.config.image_token_id, self.config.video_token_id])

    def _encode(self, prompt: str) -> Int[np.ndarray, " L"]:
        return np.asarray(self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"], np.int64)

    def _expand(self, ids: Int[np.ndarray, " l"], grids: Sequence[Grid]) -> Int[np.ndarray, " L"]:
        """Each image's, video's or temporal patch's placeholder, repeated once per visual token."""
        times = np.ones(len(ids), np.int64)
        times[self._is_visual(ids)] = [t * h * w // self.images.merge_size**2 for t, h, w in grids]
        return np.repeat(ids, times)

    def _fit(self, ids: Int[np.ndarray, " text"], name: str) -> Int[np.ndarray, " L"]:
        """The ids between what the tokenizer adds at either end, cut to max_length."""
        room = self.settings.max_length - len(self._prefix) - len(self._suffix)
        visual = self._is_visual(ids)
        if (lost := int(np.sum(visual[max(room, 0) :]))) > 0:
            raise ValueError(
                f"{name}: {lost} of {int(np.sum(visual))} visual tokens do not fit in max_length "
                f"{self.settings.max_length}: pass fewer images or frames, lower max_pixels (video_total_pixels) or "
                "raise max_length"
            )
        return np.concatenate([self._prefix, ids[: max(room, 0)], self._suffix]).astype(np.int64)

    def _fit_text(
        self, written: Callable[[Sequence[str]], Int[np.ndarray, " L"]], texts: Sequence[str], name: str
    ) -> Int[np.ndarray, " L"]:
        """The ids of `written(texts)`, with as much less text as max_length asks for."""
        room = self.settings.max_length - len(self._prefix) - len(self._suffix)
        ids, text = written(texts), " ".join(texts)
        while (excess := len(ids) - room) > 0:
            words = self._encode(text)
            if len(words) <= excess:
                raise ValueError(
                    f"{name}: the prompt and its {int(np.sum(self._is_visual(ids)))} visual tokens do not fit in "
                    f"max_length {self.settings.max_length}: pass fewer images, lower max_pixels or raise max_length"
                )
            text = str(self.tokenizer.decode(words[: len(words) - excess])).rstrip("\ufffd")  # half a character
            ids = written([text])
        return np.concatenate([self._prefix, ids, self._suffix]).astype(np.int64)

    def length_bucket(self, n: int) -> int:
        """Padded length of rows of at most n tokens."""
        return bucket(n, self.length_buckets, "tokens")

    def patch_bucket(self, n: int) -> int:
        """Padded number of patches of rows of at most n patches."""
        return bucket(n, self.patch_buckets, "patches")

    def collate(
        self,
        rows: Sequence[Row],
        *,
        length: int | None = None,
        patches: int | None = None,
        batch_size: int | None = None,
        shards: int | None = None,
        padding_side: Literal["right", "left"] = "right",
    ) -> Batch:
        """A batch of static shape.

        Args:
          rows: at least one.
          length: padded length L; None = the bucket of the longest row.
          patches: padded patches P of every row's bin; None = the bucket of the fullest, or no vision part where no row
            has an image; 0 = no vision part.
          batch_size: B; the batch is filled up with rows of one attended padding token and nothing kept.
          shards: rows may share bins, if that makes the vision encoder cheaper, but not across this number of equal
            parts of the batch, which go to different devices; None = a bin for each row.
          padding_side: side of the tokens that is padded.

        Returns:
          `Batch` of NumPy arrays; int32, bool and float32.

        Raises:
          ValueError: no rows, or a size that they do not fit.
        """
        check_collate(rows, padding_side)
        longest, fullest = max(len(r.input_ids) for r in rows), max(len(r.patches) for r in rows)
        B = len(rows) if batch_size is None else batch_size
        L = self.length_bucket(longest) if length is None else length
        P = (self.patch_bucket(fullest) if fullest else 0) if patches is None else patches
        check_sizes(batch_size=(B, len(rows)), length=(L, longest), patches=(P, fullest))
        if P % self.images.merge_size**2:
            raise ValueError(f"patches is {P}, expected a multiple of merge_size**2 = {self.images.merge_size**2}")
        G = B
        if shards is not None and patches is None and P:
            if B % shards:
                raise ValueError(f"batch_size {B} does not divide by shards = {shards}")
            G, P = self._cheapest_bins(rows, (B, P), shards)
        return self._pad(rows, (B, L, G, P), left=padding_side == "left")

    def _cheapest_bins(self, rows: Sequence[Row], by_row: tuple[int, int], shards: int) -> tuple[int, int]:
        """Number and size of the bins: `by_row`, one for each row, or one for each shard."""
        own = by_row[0] // shards  # rows of a shard
        shared = max(sum(len(r.patches) for r in rows[i : i + own]) for i in range(0, by_row[0], own))
        if shared > self.patch_buckets[-1]:
            return by_row

        def cost(bins: int, size: int) -> int:  # of matrix products (12 W**2 a patch) and dense attention (2 W P)
            return bins * size * (6 * self.config.vision.hidden_size + size)

        return min([by_row, (shards, self.patch_bucket(shared))], key=lambda choice: cost(*choice))

    def _pad(self, rows: Sequence[Row], shape: tuple[int, int, int, int], *, left: bool) -> Batch:
        B, L, G, P = shape
        batch = pad_text(rows, (B, L), self._positions, pad_id=self._pad_id, left=left)
        bins = [rows[i : i + B // G] for i in range(0, B, B // G)]
        unit = self.images.merge_size**2
        first = [sum(len(r.patches) for r in some[:i]) // unit for some in bins for i in range(len(some))]
        for b, row in enumerate(rows):
            visual = self._is_visual(row.input_ids)
            batch.index[b, span(row, L, left=left)] = np.where(visual, first[b] + np.cumsum(visual) - 1, -1)
        return dataclasses.replace(batch, vision=self._pad_vision(bins, (G, P)) if P else None)

    def _positions(self, row: Row) -> Int[np.ndarray, "3 L"]:
        if self.settings.positions == "sequential":
            return np.broadcast_to(np.arange(len(row.input_ids)), (3, len(row.input_ids)))
        return mrope_positions(
            row.input_ids,
            row.grids,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            merge=self.images.merge_size,
            steps=row.steps,
        )

    def _pad_vision(self, bins: Sequence[Sequence[Row]], shape: tuple[int, int]) -> VisionBatch:
        G, P = shape
        vision = self.config.vision
        v = VisionBatch(
            patches=np.zeros((G, P, self.images.patch_values), np.float32),
            coords=np.zeros((G, P, 2), np.int32),
            interp_idx=None if vision.grid_side is None else np.zeros((G, P, 4), np.int32),
            interp_w=None if vision.grid_side is None else np.zeros((G, P, 4), np.float32),
            segment=np.zeros((G, P), np.int32),
            window=None if vision.window_patches is None else np.zeros((G, P), np.int32),
        )
        for g, rows in enumerate(bins):
            end = 0
            for row in rows:
                start, end = end, end + len(row.patches)
                v.patches[g, start:end] = row.patches
            geometry = patch_geometry(
                [grid for row in rows for grid in row.grids],
                merge=self.images.merge_size,
                side=vision.grid_side,
                window=vision.window_patches,
            )
            for name, values in geometry._asdict().items():
                if values is not None:
                    getattr(v, name)[g, :end] = values
        return v
