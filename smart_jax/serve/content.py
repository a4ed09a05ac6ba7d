"""Content of queries and documents as clients send it, and as the encoder takes it: no file, no address is opened."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from smart_jax.serve.errors import Refusal
from smart_jax.serve.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
Text = Annotated[str, StringConstraints(min_length=1, max_length=2**20)]


class Content(BaseModel):
    """A text, an image, or both in one."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = None
    image: str | None = Field(
        default=None, description="A file in base64, with or without `data:image/png;base64,` before it."
    )


Anything = Text | Content


def to_item(content: str | Content, limits: Limits) -> dict[str, Any]:
    """Returns an item that the encoder takes; a text is a text, whatever it says.

    Raises:
      Refusal: the image cannot be used, or there is nothing.
    """
    if isinstance(content, str):
        content = Content(text=content)
    item: dict[str, Any] = {} if content.text is None else {"text": content.text}
    if content.image is not None:
        item["image"] = _image(content.image, limits)
    if not any(value if key == "image" else value.strip() for key, value in item.items()):
        raise Refusal(422, "there is nothing to encode: give a text that is not blank, or an image")
    return item


def _image(text: str, limits: Limits) -> Image.Image:
    rest = text.partition(",")[2] if text.startswith("data:") else text
    if "://" in rest[:20]:
        raise Refusal(422, "an image is sent as base64: addresses are not opened")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(rest, validate=True)), formats=FORMATS)
        if image.width * image.height > limits.pixels:
            raise Refusal(413, f"an image has {image.width} x {image.height} pixels: at most {limits.pixels} are read")
        image.load()
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        raise Refusal(422, f"an image cannot be read ({error}): send {', '.join(FORMATS)} in base64") from None
    return image
