"""Changed pictures: the same for everybody, of the right size and mode, and never a way around the cap on pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from viker.data.example import DataError, EncodedImage, Example, ask_about
from viker.evaluate.attacks.attacks import ATTACKS
from viker.evaluate.attacks.pictures import (
    BLUR_RADIUS,
    CROP_KEPT,
    JPEG_QUALITY,
    NOISE_DEVIATION,
    STRENGTHS,
    change_picture,
    change_pictures,
)
from viker.models import pictures
from viker.models.pictures import decode

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = tuple(STRENGTHS)


def gradient(width: int, height: int) -> np.ndarray:
    across = np.linspace(40, 215, width)[None, :].repeat(height, 0)
    down = np.linspace(40, 215, height)[:, None].repeat(width, 1)
    return np.stack([across, down, (across + down) / 2], -1).astype(np.uint8)


def stored(picture: Image.Image, form: str = "PNG", **options: object) -> EncodedImage:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return EncodedImage(buffer.getvalue(), "row 3 of 001")


@pytest.fixture
def portrait() -> EncodedImage:
    return stored(Image.fromarray(gradient(50, 40)))


def pixels(image: EncodedImage) -> np.ndarray:
    return np.asarray(decode(image)).astype(int)


def test_the_attacks_on_pictures_are_those_of_the_list():
    assert set(NAMES) == {name for name, attack in ATTACKS.items() if attack.kind == "pictures"}


def test_the_list_tells_the_strengths_that_are_used():
    assert f"{CROP_KEPT:.0%}".replace("%", " %") in ATTACKS["crop"].summary
    assert f"{BLUR_RADIUS:.0%}".replace("%", " %") in ATTACKS["blur"].summary
    assert f"{NOISE_DEVIATION:.0%}".replace("%", " %") in ATTACKS["noise"].summary
    assert f"quality {JPEG_QUALITY}." in ATTACKS["jpeg"].summary


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_picture_depends_on_seed_picture_and_attack_alone(portrait, name):
    again = EncodedImage(portrait.data, "another row")
    assert change_picture(portrait, name, 0).sha256 == change_picture(again, name, 0).sha256
    assert not np.array_equal(pixels(change_picture(portrait, name, 0)), pixels(portrait))


@pytest.mark.parametrize("name", ["crop", "noise"])
def test_chance_is_the_seeds_and_the_pictures(portrait, name):
    drawn = {change_picture(portrait, name, seed).sha256 for seed in range(4)}
    assert len(drawn) >= 3
    black, other = (stored(Image.new("RGB", (50, 40), color)) for color in ((9, 9, 9), (10, 9, 9)))
    noise = [pixels(change_picture(image, "noise", 0)) for image in (black, other)]
    assert np.abs(noise[0] - noise[1]).mean() > 5, "two pictures do not share their noise"


def test_noise_is_the_frozen_stream_of_numpy():
    """Golden, of a picture whose bytes no compression decides: what was measured once stays comparable."""
    plain = stored(Image.fromarray(gradient(50, 40)), "PPM")
    found = hashlib.sha256(pixels(change_picture(plain, "noise", 7)).astype(np.uint8).tobytes()).hexdigest()
    assert found[:16] == "5b1e16c52f42b847"


@pytest.mark.parametrize(
    ("name", "size"), [("crop", (45, 36)), ("flip", (50, 40)), ("blur", (50, 40)), ("noise", (50, 40)),
                       ("jpeg", (50, 40))],
)  # fmt: skip
def test_sizes(portrait, name, size):
    changed = change_picture(portrait, name, 0)
    assert decode(changed).size == size
    with Image.open(io.BytesIO(changed.data)) as picture:
        assert (picture.format, picture.mode) == ("JPEG" if name == "jpeg" else "PNG", "RGB")
    assert changed.origin == f"row 3 of 001 ({name})"


def test_each_does_what_its_name_says(portrait):
    whole = pixels(portrait)
    assert np.array_equal(pixels(change_picture(portrait, "flip", 0)), whole[:, ::-1])
    cropped = pixels(change_picture(portrait, "crop", 0))
    windows = np.lib.stride_tricks.sliding_window_view(whole, cropped.shape)[:, :, 0]
    assert (windows == cropped).all((-1, -2, -3)).any(), "a crop is a part of the picture"
    blurred = pixels(change_picture(portrait, "blur", 0))
    assert np.abs(np.diff(blurred, axis=0)).max() <= np.abs(np.diff(whole, axis=0)).max()
    grey = stored(Image.new("RGB", (200, 200), (128, 128, 128)))
    noisy = pixels(change_picture(grey, "noise", 0)) - 128
    assert noisy.std() == pytest.approx(255 * NOISE_DEVIATION, rel=0.02)
    assert noisy.mean() == pytest.approx(0, abs=0.3)


MODES: dict[str, Callable[[], EncodedImage]] = {
    "grey": lambda: stored(Image.fromarray(gradient(50, 40)).convert("L")),
    "palette": lambda: stored(Image.fromarray(gradient(50, 40)).convert("P")),
    "alpha": lambda: stored(Image.fromarray(gradient(50, 40)).convert("RGBA")),
    "16 bit": lambda: stored(Image.fromarray(gradient(50, 40)[..., 0].astype(np.uint16) * 257)),
    "1 bit": lambda: stored(Image.fromarray(gradient(50, 40)).convert("1")),
    "cmyk": lambda: stored(Image.fromarray(gradient(50, 40)).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_is_converted_as_models_do(mode):
    image = MODES[mode]()
    assert np.array_equal(pixels(change_picture(image, "flip", 0)), pixels(image)[:, ::-1])
    for name in NAMES:
        assert decode(change_picture(image, name, 0)).mode == "RGB"


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_one_pixel_stays_one(name):
    assert decode(change_picture(stored(Image.new("RGB", (1, 1))), name, 0)).size == (1, 1)


def test_pixels_are_capped_and_rubbish_is_named(portrait, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1999)
    with pytest.raises(DataError, match="row 3 of 001: expected at most 1999 pixels, found 50 x 40"):
        change_picture(portrait, "blur", 0)
    with pytest.raises(DataError, match="row 4: expected a picture"):
        change_picture(EncodedImage(b"no picture", "row 4"), "blur", 0)


def test_questions_about_one_picture_share_the_changed_one(portrait, monkeypatch):
    example = Example(
        id="1", people=("001",), images=(portrait,), messages=ask_about(portrait, "Who?"), answer="Ada",
        task="generation",
    )  # fmt: skip
    copy = dataclasses.replace(example, id="2", images=(EncodedImage(portrait.data, "elsewhere"),))
    text = dataclasses.replace(example, id="3", images=(), messages=ask_about(None, "Who?"))
    changed = change_pictures([example, copy, text], "noise", 0)
    assert changed[0].images[0] is changed[1].images[0]
    assert changed[2] == text
    assert [one.id for one in changed] == ["1", "2", "3"]
    assert changed[0].images[0].sha256 == change_picture(portrait, "noise", 0).sha256
