"""Decode the encoded image bytes of an example to upright RGB, whatever mode they were stored in.

Bytes come from strangers: pixels are capped before they are decoded, and a picture that cannot be read is an error
that names the row and person it came from, never a blank.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..data.example import DataError, EncodedImage

MAX_PIXELS = 64 * 1024 * 1024
MAX_DIFFERENCE = 8.0


def decode(image: EncodedImage) -> Image.Image:
    """Return the picture as 8-bit RGB.

    Raises:
        DataError: the bytes are no picture Pillow can read, or it has more than 64 Mi pixels.
    """
    try:
        with Image.open(io.BytesIO(image.data)) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{image.origin}: expected at most {MAX_PIXELS} pixels, found {width} x {height}. Reduce it."
                )
            return _to_rgb(ImageOps.exif_transpose(picture))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        raise DataError(
            f"{image.origin}: expected a picture that Pillow can read, found {len(image.data)} bytes it cannot "
            f"({type(error).__name__}: {error}). Replace the image or leave this row out."
        ) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(picture, dtype=np.float64)), mode=None).convert("RGB")
    if "transparency" in picture.info or picture.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        layered = picture.convert("RGBA")
        backdrop = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(backdrop, layered).convert("RGB")
    return picture.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit or float grey values to 0..255 (values already in that range stay)."""
    top = values.max(initial=0.0)
    scale = 255.0 / 65535.0 if top > 255 else (255.0 if 0 < top <= 1 else 1.0)
    return np.clip(values * scale, 0, 255).astype(np.uint8)


def thumbnail(image: EncodedImage) -> NDArray[np.float32]:
    """Return a picture's 8 x 8 RGB thumbnail, float32 [8, 8, 3] in 0..255: what survives resizing and recompression."""
    return np.asarray(decode(image).resize((8, 8), Image.Resampling.BOX), dtype=np.float32)


def look_alike(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Tell whether two thumbnails are of (nearly) the same picture.

    JPEG copies of the embedded benchmark's pictures down to quality 60, resized or not, differ by at most 5.6 grey
    levels on average, different ones by at least 12.4.
    """
    return float(np.abs(first - second).mean()) <= MAX_DIFFERENCE
