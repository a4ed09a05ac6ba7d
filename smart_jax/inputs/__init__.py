"""Items (texts, images, videos, audio) to tokenised batches: the only floor with tokenizers and codecs."""

from smart_jax.inputs.audio_batch import audio_shape
from smart_jax.inputs.checkpoint_preprocessor import open_preprocessor
from smart_jax.inputs.file_kinds import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from smart_jax.inputs.fingerprint import item_parts, items_fingerprint
from smart_jax.inputs.image import ImageLike, open_image, open_rgb
from smart_jax.inputs.item import Item, ItemLike, Items, parse_item, parse_items
from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.inputs.origins import Frame, Origins
from smart_jax.inputs.preprocessor import Preprocessor
from smart_jax.inputs.presets import PRESETS, Preset
from smart_jax.inputs.settings import SETTINGS_FILE, Settings, TextSettings, read_settings
from smart_jax.inputs.spectrogram import draw_audio
from smart_jax.inputs.text import TextPreprocessor
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.inputs.tokenizer import TOKENIZER_FILES
from smart_jax.inputs.video import middle_frame
from smart_jax.inputs.video_file import check_video_file
from smart_jax.inputs.video_settings import check_sampling

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "PRESETS",
    "SETTINGS_FILE",
    "TOKENIZER_FILES",
    "Frame",
    "ImageLike",
    "Item",
    "ItemLike",
    "Items",
    "MultimodalPreprocessor",
    "Origins",
    "Preprocessor",
    "Preset",
    "Settings",
    "TextPreprocessor",
    "TextSettings",
    "TokenizedItem",
    "audio_shape",
    "check_sampling",
    "check_video_file",
    "draw_audio",
    "item_parts",
    "items_fingerprint",
    "middle_frame",
    "open_image",
    "open_preprocessor",
    "open_rgb",
    "parse_item",
    "parse_items",
    "read_settings",
]
