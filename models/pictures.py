"""Decode the encoded image bytes of an example to upright RGB, whatever mode they were stored in.

Bytes come from strangers: pixels are capped before they are decoded, and a picture that cannot be read is an error
that names the row and person it came from, never a blank.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from ..data.example import DataError, EncodedImage

MAX_PIXELS = 64 * 1024 * 1024


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


def perceptual_hash(image: EncodedImage) -> int:
    """Return a 512-bit difference hash: pictures that look alike differ in few bits."""
    grey = np.asarray(decode(image).convert("L").resize((17, 17), Image.Resampling.BOX), dtype=np.int16)
    across, down = grey[:16, 1:] > grey[:16, :-1], grey[1:, :16] > grey[:-1, :16]
    return int.from_bytes(np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes(), "big")
