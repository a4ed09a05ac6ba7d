"""Items (texts, images, videos) to tokenised batches: the only floor with tokenizers and codecs."""

from smart_jax.inputs.collate import Row
from smart_jax.inputs.image import ImageLike, open_rgb
from smart_jax.inputs.item import check_items, parse_item
from smart_jax.inputs.multimodal import Preprocessor
from smart_jax.inputs.prompt import TOKENIZER_FILES
from smart_jax.inputs.settings import SETTINGS_FILE, Settings, read_settings
from smart_jax.inputs.text import AnyPreprocessor, TextPreprocessor, open_preprocessor
from smart_jax.inputs.video import check_sampling, check_video_file, middle_frame

__all__ = [
    "SETTINGS_FILE",
    "TOKENIZER_FILES",
    "AnyPreprocessor",
    "ImageLike",
    "Preprocessor",
    "Row",
    "Settings",
    "TextPreprocessor",
    "check_items",
    "check_sampling",
    "check_video_file",
    "middle_frame",
    "open_preprocessor",
    "open_rgb",
    "parse_item",
    "read_settings",
]
