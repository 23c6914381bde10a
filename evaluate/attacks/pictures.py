"""Change pictures as an attacker would: crop, mirror, blur, noise, JPEG.

A changed picture is a pure function of (seed, digest of the picture's bytes, attack), so models are shown the same one,
and every question about a picture too. Pictures are decoded by `models/pictures.py` (upright RGB whatever the mode, and
capped in pixels) and stored again without loss, but for JPEG, whose loss is the attack. Strengths are mild: a model
that knows somebody should still do (the embedded benchmark's tiny one loses most facts at a crop of 0.8, none or few at
0.9); `recovery.py` shows what retain people lost beside what came back.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from ...data.example import EncodedImage, Example
from ...models.pictures import decode

CROP_KEPT = 0.9  # of the width and of the height
BLUR_RADIUS = 0.02  # of the shorter side
NOISE_DEVIATION = 0.08  # of the grey range
JPEG_QUALITY = 20

STRENGTHS: Mapping[str, Mapping[str, float]] = {
    "crop": {"kept": CROP_KEPT},
    "flip": {},
    "blur": {"radius": BLUR_RADIUS},
    "noise": {"deviation": NOISE_DEVIATION},
    "jpeg": {"quality": JPEG_QUALITY},
}


def change_pictures(examples: Sequence[Example], attack: str, seed: int) -> list[Example]:
    """Return the examples with all their pictures changed; a picture of several questions is changed once."""
    changed: dict[str, EncodedImage] = {}
    for image in (image for example in examples for image in example.images):
        if image.sha256 not in changed:
            changed[image.sha256] = change_picture(image, attack, seed)
    return [replace(example, images=tuple(changed[image.sha256] for image in example.images)) for example in examples]


def change_picture(image: EncodedImage, attack: str, seed: int) -> EncodedImage:
    """Return a picture under one of the attacks of `STRENGTHS`.

    Raises:
        DataError: the bytes are no picture Pillow can read, or it has more than 64 Mi pixels.
    """
    draws = np.random.RandomState(_stream(seed, image.sha256, attack))  # its stream is frozen across numpy versions
    picture = _CHANGES[attack](decode(image), draws)
    buffer = io.BytesIO()
    if attack == "jpeg":
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(buffer, format="PNG")
    return EncodedImage(buffer.getvalue(), f"{image.origin} ({attack})")


def _stream(seed: int, digest: str, attack: str) -> int:
    """Return the seed of one picture's random numbers, 32 bits."""
    return int.from_bytes(hashlib.sha256(f"viker/{attack}/{seed}/{digest}".encode()).digest()[:4], "big")


def _crop(picture: Image.Image, draws: np.random.RandomState) -> Image.Image:
    kept = [max(1, round(length * CROP_KEPT)) for length in picture.size]
    left, top = (int(draws.randint(whole - part + 1)) for whole, part in zip(picture.size, kept, strict=True))
    return picture.crop((left, top, left + kept[0], top + kept[1]))


def _flip(picture: Image.Image, _draws: np.random.RandomState) -> Image.Image:
    return ImageOps.mirror(picture)


def _blur(picture: Image.Image, _draws: np.random.RandomState) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(BLUR_RADIUS * min(picture.size)))


def _noise(picture: Image.Image, draws: np.random.RandomState) -> Image.Image:
    """Add noise a row at a time: a large picture's numbers as floats take 8 times its bytes."""
    pixels = np.array(picture)
    for row in pixels:
        row[:] = np.clip(np.rint(row + draws.normal(0.0, 255 * NOISE_DEVIATION, row.shape)), 0, 255)
    return Image.fromarray(pixels)


def _jpeg(picture: Image.Image, _draws: np.random.RandomState) -> Image.Image:
    return picture


_CHANGES: Mapping[str, Callable[[Image.Image, np.random.RandomState], Image.Image]] = {
    "crop": _crop, "flip": _flip, "blur": _blur, "noise": _noise, "jpeg": _jpeg,
}  # fmt: skip
