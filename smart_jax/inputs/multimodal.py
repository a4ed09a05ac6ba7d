"""Texts, images, videos and audio to token ids, kept tokens and patches, with the prompt of a multimodal checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from smart_jax.files import Checkpoint
from smart_jax.inputs.audio import AudioClip, process_audio, refuse_audio, soft_tokens
from smart_jax.inputs.audio_settings import FILES as AUDIO_FILES
from smart_jax.inputs.audio_settings import AudioSettings, read_audio_settings
from smart_jax.inputs.image import (
    IMAGE_FILES,
    ImageLike,
    ImageSettings,
    image_grid,
    open_rgb,
    process_image,
    read_image_settings,
    size_grid,
)
from smart_jax.inputs.item import Item, ItemLike, parse_item
from smart_jax.inputs.multimodal_collator import MultimodalCollator
from smart_jax.inputs.origins import MARK, Frame, Origins, in_parts, text_places, text_spans
from smart_jax.inputs.pooling_rule import pooled_tokens
from smart_jax.inputs.preprocessor import Side
from smart_jax.inputs.presets import open_settings
from smart_jax.inputs.prompt import Prompt, dropped_token_ids, read_chat_template, token_ids
from smart_jax.inputs.settings import MultimodalConfig, Settings
from smart_jax.inputs.soft_tokens import VIDEO_FILES, read_soft_token_settings, with_frame_budget
from smart_jax.inputs.spectrogram import spectrogram
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.inputs.tokenizer import TOKENIZER_FILES, added_ids, panics_as_errors, read_tokenizer
from smart_jax.inputs.video import (
    VideoLike,
    VideoOutline,
    middle_frame,
    middle_size,
    outline_video,
    process_video,
    step_frame,
)
from smart_jax.models import EmbeddingGemma2Config, Grid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Seen(NamedTuple):
    """Videos and images of an item as its prompt shows them, without their pixels, and its audio."""

    videos: list[VideoOutline]
    images: list[Grid]
    clips: list[AudioClip]


class MultimodalPreprocessor(MultimodalCollator):
    """The `Preprocessor` of models that read texts, images and videos, and may hear audio.

    Attributes:
      tokenizer: of the checkpoint.
      audio: how audio becomes features; None = the model does not hear.
      and those of `MultimodalCollator`.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.models import load_config
      >>> preprocessor = MultimodalPreprocessor.from_pretrained(resolve("tiny"), load_config(resolve("tiny")))
      >>> preprocessor.tokenize(Image.new("RGB", (64, 96))).grids
      ((1, 6, 4),)
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None,
        config: MultimodalConfig,
        images: ImageSettings,
        settings: Settings,
        audio: AudioSettings | None = None,
    ):
        pad_id = tokenizer.pad_token_id
        super().__init__(config, images, settings, pad_id=0 if pad_id is None else pad_id)
        self.tokenizer, self.audio = tokenizer, audio
        self._prompt, self._chat_template = Prompt(settings.prompt, tokenizer, config, chat_template), chat_template
        self._image_token = str(tokenizer.convert_ids_to_tokens(config.image_token_id))
        self._video_token = str(tokenizer.convert_ids_to_tokens(config.video_token_id))
        token = settings.pooling_token
        heard = [str(tokenizer.convert_ids_to_tokens(i)) for i in self.audio_ids]
        self._placeholders = [self._image_token, self._video_token, *heard, *([] if token is None else [token])]
        named = None if token is None else tokenizer.convert_tokens_to_ids(token)
        assert named is None or isinstance(named, int)  # of one token it is one id
        self._pooling_id = named
        self._marks = [
            str(tokenizer.convert_ids_to_tokens(i)) for i in (config.vision_start_token_id, config.vision_end_token_id)
        ]
        self._dropped = np.array(sorted(dropped_token_ids(tokenizer, config)), np.int64)
        self._skipped = np.array(sorted(token_ids(tokenizer, settings.document_skips)), np.int64)
        self._prefix, self._suffix = added_ids(tokenizer)
        self._check()

    @property
    def preset(self) -> str | None:
        """Name of the preset that the settings come from."""
        return self.settings.head

    @property
    def modalities(self) -> tuple[str, ...]:
        """Kinds of content that an item may hold: "text" and, as checkpoint and settings have it, other media."""
        there = {"image": self.config.vision is not None, "video": self._takes_videos, "audio": self.audio is not None}
        return ("text", *(medium for medium, taken in there.items() if taken))

    @property
    def prompted(self) -> tuple[Side, ...]:
        """Sides whose prompt has a place for an instruction."""
        sides: dict[str, tuple[Side, ...]] = {"all": ("query", "document"), "queries": ("query",), "none": ()}
        return sides[self.settings.instructions]

    @classmethod
    def from_pretrained(
        cls, checkpoint: Checkpoint | str | Path, config: MultimodalConfig, **overrides: Any
    ) -> MultimodalPreprocessor:
        """Reads tokenizer, chat template, preprocessor_config.json and, if there is one, smart_jax.json.

        The preset, that is prompt and pooling, is told by config.json, the folder's name or `overrides`.

        Args:
          checkpoint: from `smart_jax.files.open_checkpoint`, or a folder; the template comes with the tokenizer.
          config: of its backbone.
          **overrides: fields of `Settings`.

        Raises:
          FileNotFoundError: the tokenizer or preprocessor_config.json is missing.
          ValueError: one of the files is corrupt, unknown settings, an unknown preset (see `open_settings`), or they
            contradict the backbone's config.
          ImportError: the resize is to be fast, and OpenCV is not installed.
        """
        checkpoint = Checkpoint.of(checkpoint)
        settings = open_settings(checkpoint, config.model_type, **overrides)
        if isinstance(config, EmbeddingGemma2Config):
            settings = with_frame_budget(checkpoint.having(*VIDEO_FILES), settings)
        elif settings.video_soft_tokens is not None:
            raise ValueError(
                f"video_soft_tokens is {settings.video_soft_tokens}, but a {config.model_type} bounds the pixels of a "
                "frame: set video_max_pixels instead"
            )
        images = _read_images(checkpoint.having(*IMAGE_FILES), config, settings)
        words = checkpoint.having(*TOKENIZER_FILES)
        tokenizer = read_tokenizer(words, added=settings.pooling_token)
        chat_template = None if isinstance(settings.prompt, str) else read_chat_template(words, tokenizer)
        audio = None
        if config.audio_ids:
            how = {"max_seconds": settings.max_seconds, "long_audio": settings.long_audio}
            audio = read_audio_settings(checkpoint.having(*AUDIO_FILES), **how)
        return cls(tokenizer, chat_template, config, images, settings, audio)

    def description(self) -> tuple[object, ...]:
        """Returns all that tokenised items depend on beside the config; its `repr` is the same in every process."""
        described = self.settings, self.images, self._chat_template, self.tokenizer.backend_tokenizer.to_str()
        return described if self.audio is None else (*described, self.audio)

    def _check(self) -> None:
        vision = self.config.vision
        if vision is not None and vision.in_channels != 3:
            raise ValueError(f"config.json: in_channels is {vision.in_channels}, only RGB (3) is supported")
        largest = max(self.tokenizer.get_vocab().values())
        if largest >= self.config.text.vocab_size:
            raise ValueError(
                f"the tokenizer has token ids up to {largest}, the backbone's vocabulary ends before "
                f"{self.config.text.vocab_size}: tokenizer and config.json belong to different checkpoints"
            )
        try:
            prompt = self.prompt(["text"], 1)
        except Exception as error:  # jinja2 and the template's own raise_exception have no common base
            raise ValueError(f"the chat template cannot be rendered ({error}): fetch the checkpoint again") from error
        ids = self._encode(prompt)
        if prompt.count(self._image_token) != 1 or self.config.image_token_id not in ids:
            raise ValueError(
                f"the chat template or prompt does not write the backbone's image token '{self._image_token}' (id "
                f"{self.config.image_token_id}) for an image: tokenizer, template and config.json do not match"
            )
        both = self.prompt(["text"], 1, video_count=1)
        written = self.settings.video == "frames" and self._video_token in both
        self._takes_videos = vision is not None and (written or self.settings.video == "middle")
        if self.audio is not None:
            heard, token = self.prompt(["text"], 1, audio_count=1), self._placeholders[2]
            if heard.count(token) != 1 or heard.find(token) < heard.find(self._image_token):
                raise ValueError(f"the prompt does not write '{token}' once for audio, after images")
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
        audio_count: int = 0,
        query: bool = False,
    ) -> str:
        """Returns the prompt of one item, with a placeholder per video, image and clip; see `inputs.prompt.Prompt`."""
        if not (instruction or "").strip():
            for_queries = self.settings.query_instruction if query else None
            instruction = self.settings.default_instruction if for_queries is None else for_queries
        counts = {"images": image_count, "videos": video_count, "audios": audio_count}
        return self._prompt(texts, **counts, instruction=instruction or "", query=query)

    def tokenize(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> TokenizedItem:
        """Returns token ids, kept tokens and patches of one item.

        An item longer than max_length is cut at its end, as the reference's tokenizer does: text goes and so does the
        template's end, and the last token left is the one that is pooled. Where a token of the template names the
        pooled one, text is dropped instead. Videos and images are never cut.

        Args:
          item: what `parse_item` takes, or its result.
          instruction: used where the item carries none of its own; None = the default instruction.
          query: whether it is a query, with a query's default instruction and kept tokens.
          name: what messages call the item.

        Raises:
          TypeError, ValueError, FileNotFoundError: the item cannot be used; the message says why and what to do.
          ImportError: the item has a video file, and PyAV is not installed.
        """
        parsed, instruction = self._parsed(item, instruction, query, name)
        images = [process_image(image, self.images, name=name) for image in self._stills(parsed, name)]
        videos = [
            process_video(film, self.images, self.settings.videos, **self._sampling(parsed), name=name)
            for film in self._films(parsed)
        ]
        seen = _Seen([video.outline for video in videos], [grid for _, grid in images], self._clips(parsed, name))
        patches = self._joined([video.patches for video in videos] + [patches for patches, _ in images])
        return self._written(parsed.texts, seen, patches, instruction, query, name)

    def outline(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> TokenizedItem:
        """Returns what `tokenize` gives, but without a patch: pixels are not decoded.

        Images are known by their headers, videos by their index; audio is decoded, which tells its length.

        Args:
          item, instruction, query, name: as in `tokenize`.

        Raises:
          TypeError, ValueError, FileNotFoundError, ImportError: as `tokenize`, as far as that shows without decoding.
        """
        parsed, instruction = self._parsed(item, instruction, query, name)
        return self._outlined(parsed, self._seen(parsed, name), instruction, query, name)

    def _seen(self, item: Item, name: str) -> _Seen:
        """Returns what the item's prompt shows, of which no pixels are decoded."""
        grids = [image_grid(image, self.images, name=name) for image in item.images]
        how = self._sampling(item)
        if self.settings.video == "middle":
            sizes = [middle_size(video, self.settings.videos, **how, name=name) for video in item.videos]
            grids = [size_grid(size, self.images, name=name) for size in sizes] + grids
        films = self._films(item)
        videos = [outline_video(film, self.images, self.settings.videos, **how, name=name) for film in films]
        return _Seen(videos, grids, self._clips(item, name))

    def _clips(self, item: Item, name: str) -> list[AudioClip]:
        """Returns what is heard of an item."""
        if self.audio is None:
            return []
        rate = item.sampling_rate
        return [process_audio(audio, self.audio, sampling_rate=rate, name=name) for audio in item.audios]

    def _outlined(self, item: Item, seen: _Seen, instruction: str | None, query: bool, name: str) -> TokenizedItem:
        width = self.images.patch_bytes * (self.images.temporal_patch_size if seen.videos else 1)
        return self._written(item.texts, seen, np.zeros((0, width), np.uint8), instruction, query, name)

    def origins(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> Origins:
        """Returns what each token of an item stands for; as in `outline`, no pixels are decoded.

        Args:
          item, instruction, query, name: as in `tokenize`.

        Raises:
          TypeError, ValueError, FileNotFoundError, ImportError: as `outline`.
        """
        parsed, instruction = self._parsed(item, instruction, query, name)
        seen = self._seen(parsed, name)
        tokens = self._outlined(parsed, seen, instruction, query, name)
        _, texts = self._fitted(parsed.texts, seen, instruction, query, name)
        prompt, marked = (self._prompt_of(x, seen, instruction, query) for x in (texts, [MARK] * len(texts)))
        with panics_as_errors():
            encoded = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = np.asarray(encoded["input_ids"], np.int64), np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
        times = self._times(ids, seen)
        room = len(tokens) - len(self._prefix) - len(self._suffix)
        offsets = np.repeat(np.where(self._is_soft(ids)[:, None], 0, offsets), times, axis=0)[:room]
        offsets = np.pad(offsets, ((len(self._prefix), len(self._suffix)), (0, 0)))
        spans = text_spans(offsets, prompt, text_places(prompt, marked, texts), texts)
        return Origins(
            tokens,
            pieces=tuple(prompt[start:stop] for start, stop in offsets.tolist()),
            spans=spans if len(texts) == len(parsed.texts) else in_parts(spans, parsed.texts),
            frames=tuple(self._frames(parsed, seen)),
        )

    def _frames(self, item: Item, seen: _Seen) -> Iterator[Frame]:
        """Yields the grids of cells of what the prompt shows, in its order."""

        def cells(grid: Grid) -> tuple[int, int]:
            return grid[1] // self.merge_size, grid[2] // self.merge_size

        for number, video in enumerate(seen.videos):
            for step, (grid, seconds) in enumerate(zip(video.grids, video.seconds, strict=True)):
                yield Frame("video", number, *cells(grid), step, seconds)
        middles = len(seen.images) - len(item.images)
        for number, grid in enumerate(seen.images):
            yield (
                Frame("video", number, *cells(grid))
                if number < middles
                else Frame("image", number - middles, *cells(grid))
            )
        for number, clip in enumerate(seen.clips):
            assert self.audio is not None  # otherwise there is no clip
            tokens = soft_tokens(len(clip.features))
            yield Frame("audio", number, 1, tokens, seconds=tokens * self.audio.token_seconds)

    def measure(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False, name: str = "item"
    ) -> tuple[int, int]:
        """Returns the numbers of tokens and of patches that `tokenize` gives, as `outline` tells them."""
        outline = self.outline(item, instruction=instruction, query=query, name=name)
        return len(outline), sum(int(np.prod(grid)) for grid in outline.grids)

    def _parsed(self, item: ItemLike, instruction: str | None, query: bool, name: str) -> tuple[Item, str | None]:
        """Returns an item and its instruction, checked as far as no image or video need be opened."""
        parsed = parse_item(item, name=name)
        if self.config.vision is None and (parsed.images or parsed.videos):
            raise ValueError(
                f"{name} has {'an image' if parsed.images else 'a video'}, but this checkpoint has no vision tower "
                "(vision_config of config.json is null): pass its text, or load a checkpoint with the tower"
            )
        instruction = self._checked_instruction(parsed.instruction or instruction, query, name)
        self._check_texts((*parsed.texts, instruction or ""), name)
        if films := len(self._films(parsed)):
            prompt = self.prompt(
                parsed.texts, len(parsed.images), instruction=instruction, video_count=films, query=query
            )
            self._check_video(prompt, films, name)
        if parsed.audios and "audio" not in self.modalities:
            raise refuse_audio(name, self.settings.head)
        return parsed, instruction

    def _written(
        self,
        texts: Sequence[str],
        seen: _Seen,
        patches: UInt8[np.ndarray, "V E"],
        instruction: str | None,
        query: bool,
        name: str,
    ) -> TokenizedItem:
        """Returns the item of these texts and of what is seen, whose patches may be left out."""
        ids, _ = self._fitted(texts, seen, instruction, query, name)
        marks = (self.config.vision_start_token_id, self.config.vision_end_token_id)
        pool = pooled_tokens(ids, self.settings.pooling, named=self._pooling_id, marks=marks)
        return TokenizedItem(
            input_ids=ids.astype(np.int32),
            keep=self._keep(ids, pool, query),
            grids=self._grids(seen),
            patches=patches,
            pool=pool,
            steps=tuple(step for _, step in self._runs(seen)),
            audio=tuple(clip.features for clip in seen.clips),
            unheard=sum(clip.unheard for clip in seen.clips),
        )

    def _fitted(
        self, texts: Sequence[str], seen: _Seen, instruction: str | None, query: bool, name: str
    ) -> tuple[Int[np.ndarray, " L"], Sequence[str]]:
        """Returns the ids of the prompt, and the texts that it was written of: one that is shorter if need be."""

        def written(texts: Sequence[str]) -> Int[np.ndarray, " L"]:
            ids = self._encode(self._prompt_of(texts, seen, instruction, query))
            return np.repeat(ids, self._times(ids, seen))

        if self._pooling_id is None:
            return self._fit(written(texts), self._longest(query), name), texts
        return self._fit_text(written, texts, self._longest(query), name)

    def _prompt_of(self, texts: Sequence[str], seen: _Seen, instruction: str | None, query: bool) -> str:
        """Returns the prompt as it is tokenised, with one placeholder per image and video, or temporal patch of one."""
        counts = {"image_count": len(seen.images), "video_count": len(seen.videos), "audio_count": len(seen.clips)}
        prompt = self.prompt(texts, instruction=instruction, query=query, **counts)
        return self._write_times(prompt, seen.videos)

    def picture(self, item: ItemLike) -> Image.Image | None:
        """Returns the first image, the middle frame of the first video, or the first clip drawn; None of a text."""
        parsed = parse_item(item)
        if parsed.images:
            return open_rgb(parsed.images[0])
        if parsed.videos:
            return self._middle_frame(parsed, parsed.videos[0], "video")
        clips = self._clips(parsed, "item")
        return spectrogram(clips[0].features) if clips else None

    def frame_picture(self, item: ItemLike, frame: Frame) -> Image.Image:
        """Returns the image that a frame of `origins` is of, in its full size; of a temporal patch its first."""
        parsed = parse_item(item)
        if frame.medium == "image":
            return open_rgb(parsed.images[frame.number])
        if frame.medium == "audio":
            return spectrogram(self._clips(parsed, "item")[frame.number].features)
        video = parsed.videos[frame.number]
        if frame.step is None:
            return self._middle_frame(parsed, video, "video")
        return step_frame(video, frame.step, self.images, self.settings.videos, **self._sampling(parsed))

    def _middle_frame(self, item: Item, video: VideoLike, name: str) -> Image.Image:
        return middle_frame(video, self.images, self.settings.videos, **self._sampling(item), name=name)

    def _sampling(self, item: Item) -> dict[str, Any]:
        return {"fps": item.fps, "max_frames": item.max_frames}

    def _films(self, item: Item) -> tuple[VideoLike, ...]:
        """Returns the videos that are read as such."""
        return () if self.settings.video == "middle" else item.videos

    def _stills(self, item: Item, name: str) -> list[ImageLike]:
        """Returns all that is read as an image."""
        middle = self.settings.video == "middle"
        frames = [self._middle_frame(item, video, name) for video in item.videos] if middle else []
        return [*frames, *item.images]

    def _joined(self, patches: Sequence[UInt8[np.ndarray, "_ _"]]) -> UInt8[np.ndarray, "patches E"]:
        if len(patches) == 1:
            return patches[0]
        width = max((each.shape[1] for each in patches), default=self.images.patch_bytes)
        frames = [np.tile(each, (1, width // each.shape[1])) for each in patches]  # a still image beside a video
        return np.concatenate([np.zeros((0, width), np.uint8), *frames])

    def _check_texts(self, texts: Sequence[str], name: str) -> None:
        for text in texts:
            if written := [token for token in self._placeholders if token in text]:
                raise ValueError(
                    f"{name}: the text contains the prompt's own token {written[0]}: remove it from the text"
                )

    def _checked_instruction(self, instruction: str | None, query: bool, name: str) -> str | None:
        allowed = {"all": True, "queries": query, "none": False}[self.settings.instructions]
        if instruction and instruction.strip() and not allowed:
            who = "queries only" if self.settings.instructions == "queries" else "no item"
            raise ValueError(
                f"{name} has an instruction, which this model ({self.settings.head}) takes for {who}: leave it out"
            )
        return instruction

    def _keep(
        self, ids: Int[np.ndarray, " L"], pool: Bool[np.ndarray, " L"] | None, query: bool
    ) -> Bool[np.ndarray, " L"]:
        """Returns the kept tokens, those of late interaction."""
        keep = np.ones(len(ids), bool) if self.settings.keep == "all" else ~np.isin(ids, self._dropped)
        if query and not self.settings.query_visual:
            keep &= ~self._is_soft(ids)
        if not query:
            keep &= ~np.isin(ids, self._skipped)
        # An item of special tokens only is scored by the pooling position's state, which is its pooled vector.
        keep[-1 if pool is None else np.flatnonzero(pool)[-1]] |= not keep.any()
        return keep

    def _grids(self, seen: _Seen) -> tuple[Grid, ...]:
        return tuple(grid for grid, _ in self._runs(seen))

    def _runs(self, seen: _Seen) -> list[tuple[Grid, float]]:
        """Returns grid and temporal step of each run of visual tokens."""
        return [run for video in seen.videos for run in self._video_runs(video)] + [(grid, 1.0) for grid in seen.images]

    def _video_runs(self, video: VideoOutline) -> list[tuple[Grid, float]]:
        if self.config.marked_frames:
            return [(grid, 1.0) for grid in video.grids]
        rate = None if self.config.vision is None else self.config.vision.tokens_per_second
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

    def _write_times(self, prompt: str, videos: Sequence[VideoOutline]) -> str:
        """Returns the prompt with a time and a marked placeholder for each temporal patch of each video.

        The template's own marks around a video go, as in the transformers (4.57) that the Qwen3-VL models came with;
        from version 5 on it leaves them in, two tokens more. EmbeddingGemma 2 marks frames, but is not told their
        times. Other models take the prompt as it is.
        """
        if not self.config.marked_frames:
            return prompt
        start, end = self._marks
        marked = f"{start}{self._video_token}{end}"
        placeholder = marked if marked in prompt else self._video_token
        head, *tails = prompt.split(placeholder) if videos else [prompt]
        for video, tail in zip(videos, tails, strict=True):
            times = [f"<{t:.1f} seconds>" if self.config.timestamps else "" for t in video.seconds]
            head += "".join(f"{time}{marked}" for time in times) + tail
        return head

    def _encode(self, prompt: str) -> Int[np.ndarray, " L"]:
        with panics_as_errors():
            encoded = self.tokenizer(prompt, add_special_tokens=False, verbose=False)
        return np.asarray(encoded["input_ids"], np.int64)

    def _times(self, ids: Int[np.ndarray, " l"], seen: _Seen) -> Int[np.ndarray, " l"]:
        """Returns how often each id stands in the sequence: a placeholder once for each soft token."""
        times = np.ones(len(ids), np.int64)
        times[self._is_visual(ids)] = [t * h * w // self.merge_size**2 for t, h, w in self._grids(seen)]
        times[self._is_audio(ids)] = [soft_tokens(len(clip.features)) for clip in seen.clips]
        return times

    def _longest(self, query: bool) -> int:
        """Returns the largest number of tokens of an item."""
        of_queries = self.settings.query_length if query else None
        return self.settings.max_length if of_queries is None else min(of_queries, self.settings.max_length)

    def _fit(self, ids: Int[np.ndarray, " text"], longest: int, name: str) -> Int[np.ndarray, " L"]:
        """Returns the ids between what the tokenizer adds at either end, at most `longest` of them."""
        room = longest - len(self._prefix) - len(self._suffix)
        visual = self._is_soft(ids)
        if (lost := int(np.sum(visual[max(room, 0) :]))) > 0:
            raise ValueError(
                f"{name}: {lost} of {int(np.sum(visual))} visual tokens do not fit in max_length "
                f"{longest}: pass fewer images or frames, lower max_pixels (video_total_pixels) or raise max_length"
            )
        return np.concatenate([self._prefix, ids[: max(room, 0)], self._suffix]).astype(np.int64)

    def _fit_text(
        self, written: Callable[[Sequence[str]], Int[np.ndarray, " L"]], texts: Sequence[str], longest: int, name: str
    ) -> tuple[Int[np.ndarray, " L"], Sequence[str]]:
        """Returns the ids of `written(texts)`, at most `longest`, with as little less text as that asks for."""
        room = longest - len(self._prefix) - len(self._suffix)
        ids, text = written(texts), " ".join(texts)
        while (excess := len(ids) - room) > 0:
            words = self._encode(text)
            if len(words) <= excess:
                raise ValueError(
                    f"{name}: the prompt and its {int(np.sum(self._is_visual(ids)))} visual tokens do not fit in "
                    f"max_length {longest}: pass fewer images, lower max_pixels or raise max_length"
                )
            text = str(self.tokenizer.decode(words[: len(words) - excess])).rstrip("\ufffd")  # half a character
            texts = [text]
            ids = written(texts)
        return np.concatenate([self._prefix, ids, self._suffix]).astype(np.int64), texts


def _read_images(folder: Path, config: MultimodalConfig, settings: Settings) -> ImageSettings:
    """Reads the settings by which images become patches, of the kind that the backbone's have."""
    if isinstance(config, EmbeddingGemma2Config):
        return read_soft_token_settings(folder, config, settings)
    if settings.soft_tokens is not None:
        raise ValueError(
            f"soft_tokens is {settings.soft_tokens}, but a {config.model_type} bounds the pixels of an image: set "
            "max_pixels instead"
        )
    return read_image_settings(
        folder,
        config.vision,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        first_pixels=settings.first_pixels,
        first_size=settings.first_size,
        resize=settings.resize,
    )
