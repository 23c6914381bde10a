"""Draw the embedded benchmark's pictures: procedural portraits, pets, scenes and patterns.

A portrait is a pure function of a person's traits and a pose number, so the same person can be drawn again in another
picture: traits (skin, hair, eyes, glasses, beard, clothes) stay, pose (place, size, tilt, light, background, mouth)
changes. Pictures are drawn on one large canvas and reduced to the size asked for, since Pillow's shapes are not
antialiased.
What the people are asked about, and how files are laid out, is `mini.py`'s job.
"""

import colorsys
import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

SIZE = 56
_SCALE = 4
_CANVAS = SIZE * _SCALE

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Traits:
    """What makes a face this person's: it is the same in every picture of them."""

    skin: Color
    hair: Color
    hair_style: int
    eyes: Color
    glasses: int
    beard: int
    clothes: Color
    collar: int
    face_width: float


def _color(rng: random.Random, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return int(red * 255), int(green * 255), int(blue * 255)


def _skin(rng: random.Random) -> Color:
    light = rng.uniform(0.3, 1.0)
    return int(70 + 180 * light), int(40 + 165 * light), int(25 + 150 * light * rng.uniform(0.8, 1.0))


def draw_traits(rng: random.Random) -> Traits:
    """Draw one person's traits."""
    return Traits(
        skin=_skin(rng),
        hair=_color(rng, (0.2, 1.0), (0.1, 0.95)),
        hair_style=rng.randrange(6),
        eyes=_color(rng, (0.6, 1.0), (0.4, 0.9)),
        glasses=rng.randrange(3),
        beard=rng.randrange(3),
        clothes=_color(rng, (0.5, 1.0), (0.3, 1.0)),
        collar=rng.randrange(4),
        face_width=rng.uniform(0.8, 1.12),
    )


_CHOICES = {"hair_style": 6, "glasses": 3, "beard": 3, "collar": 4}  # how many of each there are
VISIBLE = (*_CHOICES, "hair", "clothes")  # traits that tell two look-alikes apart in a picture of any pose


def look_alike(traits: Traits, changed: Iterable[str], rng: random.Random) -> Traits:
    """Return the same traits but for those named (of `VISIBLE`), each plainly another: a color across the wheel."""
    others: dict[str, int | Color] = {}
    for name in changed:
        before = getattr(traits, name)
        if name in _CHOICES:
            others[name] = rng.choice([value for value in range(_CHOICES[name]) if value != before])
        else:
            others[name] = _across(before, rng)
    return replace(traits, **others)  # type: ignore[arg-type]


def _across(color: Color, rng: random.Random) -> Color:
    hue, _, _ = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    red, green, blue = colorsys.hsv_to_rgb(
        (hue + rng.uniform(0.35, 0.65)) % 1, rng.uniform(0.6, 1), rng.uniform(0.6, 1)
    )
    return int(red * 255), int(green * 255), int(blue * 255)


_HUES = ("red", "orange", "yellow", "lime", "green", "mint", "cyan", "azure", "blue", "violet", "magenta", "rose")
_STYLES = ("short", "long", "straight", "spiky", "tied", "curly")
_GLASSES = ("no glasses", "round glasses", "dark glasses")
_BEARDS = ("no beard", "a mustache", "a beard")
_COLLARS = ("plain", "open", "striped", "formal")


def name_color(color: Color) -> str:
    """Name a color by lightness and hue, as the appearance descriptions do."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    shade = "dark" if value < 0.45 else "bright" if saturation > 0.65 else "pale"
    return f"{shade} {_HUES[int(hue * 12 + 0.5) % 12]}"


def describe(traits: Traits) -> dict[str, str]:
    """Return questions about what anybody can see in a portrait, with their answers; nothing in them is private."""
    skin = ("deep", "brown", "tan", "fair")[min(3, int((traits.skin[0] - 120) / 33))]
    face = "narrow" if traits.face_width < 0.96 else "wide"
    return {
        "What is the hair like?": f"The hair is {name_color(traits.hair)} and {_STYLES[traits.hair_style]}.",
        "What is the face like?": f"The face is {face} and {skin}, with {_BEARDS[traits.beard]}.",
        "What are the eyes like?": f"The eyes are {name_color(traits.eyes)}, with {_GLASSES[traits.glasses]}.",
        "What are the clothes like?": f"The clothes are {name_color(traits.clothes)} and {_COLLARS[traits.collar]}.",
    }


def _box(x: float, y: float, half_width: float, half_height: float) -> tuple[float, float, float, float]:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _draw_hair(draw: ImageDraw.ImageDraw, traits: Traits, x: float, y: float, half: float) -> None:
    if traits.hair_style == 1:
        draw.ellipse(_box(x, y - 12, half + 14, 74), fill=traits.hair)
    elif traits.hair_style == 2:
        draw.rectangle((x - half - 12, y - 40, x + half + 12, y + 70), fill=traits.hair)
        draw.ellipse(_box(x, y - 30, half + 12, 50), fill=traits.hair)
    elif traits.hair_style == 3:
        draw.polygon(
            [(x - half - 6, y - 20), (x - 10, y - 98), (x + 8, y - 70), (x + half + 6, y - 20)], fill=traits.hair
        )
    elif traits.hair_style == 4:
        draw.ellipse(_box(x, y - 78, 24, 24), fill=traits.hair)
        draw.ellipse(_box(x, y - 28, half + 6, 46), fill=traits.hair)
    elif traits.hair_style == 5:
        for offset in (-36, -12, 12, 36):
            draw.ellipse(_box(x + offset, y - 56, 22, 24), fill=traits.hair)
    else:
        draw.ellipse(_box(x, y - 24, half + 5, 52), fill=traits.hair)


def _draw_face(draw: ImageDraw.ImageDraw, traits: Traits, x: float, y: float, smile: float) -> None:
    half = 48 * traits.face_width
    if traits.beard == 2:
        draw.ellipse(_box(x, y + 18, half + 2, 56), fill=traits.hair)
    draw.ellipse(_box(x, y, half, 60), fill=traits.skin)
    if traits.beard == 1:
        draw.rectangle((x - 20, y + 22, x + 20, y + 30), fill=traits.hair)
    if traits.beard == 2:
        draw.pieslice(_box(x, y + 8, half, 54), 20, 160, fill=traits.hair)
    for side in (-1, 1):
        eye_x = x + side * half * 0.42
        draw.ellipse(_box(eye_x, y - 8, 10, 8), fill=(250, 250, 250))
        draw.ellipse(_box(eye_x, y - 8, 6, 7), fill=traits.eyes)
        if traits.glasses == 1:
            draw.ellipse(_box(eye_x, y - 8, 18, 17), outline=(20, 20, 20), width=5)
        if traits.glasses == 2:
            draw.rectangle(_box(eye_x, y - 8, 18, 14), fill=(25, 25, 35))
    draw.arc(_box(x, y + 26 - smile * 4, 18, 6 + 8 * smile), 10, 170, fill=(150, 30, 40), width=5)


def draw_portrait(traits: Traits, rng: random.Random, size: int = SIZE) -> Image.Image:
    """Draw one picture of a person, `size` pixels wide; `rng` chooses the pose."""
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), _color(rng, (0.05, 0.35), (0.55, 0.95)))
    draw = ImageDraw.Draw(canvas)
    x, y = _CANVAS / 2, _CANVAS * 0.47
    half = 48 * traits.face_width
    draw.ellipse(_box(x, _CANVAS + 10, 96, 78), fill=traits.clothes)
    contrast: Color = (255 - traits.clothes[0], 255 - traits.clothes[1], 255 - traits.clothes[2])
    if traits.collar in (1, 3):
        draw.polygon([(x - 26, 168), (x + 26, 168), (x, 214)], fill=contrast)
    if traits.collar in (2, 3):
        draw.rectangle((x - 90, 200, x + 90, 210), fill=contrast)
    draw.rectangle((x - 18, y + 40, x + 18, y + 78), fill=traits.skin)
    _draw_hair(draw, traits, x, y, half)
    _draw_face(draw, traits, x, y, rng.random())
    tilt, shift_x, shift_y, zoom = rng.uniform(-4, 4), rng.randint(-7, 7), rng.randint(-7, 7), rng.uniform(0.95, 1.05)
    canvas = canvas.rotate(
        tilt, resample=Image.Resampling.BICUBIC, translate=(shift_x, shift_y), fillcolor=canvas.getpixel((2, 2))
    )
    margin = _CANVAS * (1 - 1 / zoom) / 2
    canvas = canvas.transform(
        (_CANVAS, _CANVAS), Image.Transform.EXTENT, (margin, margin, _CANVAS - margin, _CANVAS - margin),
        resample=Image.Resampling.BICUBIC, fillcolor=canvas.getpixel((2, 2)),
    )  # fmt: skip
    return _reduce(ImageEnhance.Brightness(canvas).enhance(rng.uniform(0.9, 1.1)), size)


def _reduce(canvas: Image.Image, size: int) -> Image.Image:
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


def draw_pet(rng: random.Random, size: int = SIZE) -> Image.Image:
    """Draw an animal's head: round or long, with ears, whiskers and spots."""
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), _color(rng, (0.2, 0.6), (0.5, 0.9)))
    draw = ImageDraw.Draw(canvas)
    fur, x, y, long = _color(rng, (0.1, 0.7), (0.2, 0.95)), 112, 120, rng.uniform(0.8, 1.3)
    for side in (-1, 1):
        draw.polygon([(x + side * 20, y - 50), (x + side * 72, y - 96 * long), (x + side * 70, y - 10)], fill=fur)
    draw.ellipse(_box(x, y, 70, 60 * long), fill=fur)
    for _ in range(rng.randrange(5)):
        draw.ellipse(
            _box(x + rng.uniform(-45, 45), y + rng.uniform(-40, 40), 12, 10), fill=_color(rng, (0.1, 0.5), (0.1, 0.9))
        )
    for side in (-1, 1):
        draw.ellipse(_box(x + side * 28, y - 14, 11, 12), fill=(20, 20, 20))
        draw.line((x + side * 12, y + 28, x + side * 76, y + rng.uniform(14, 40)), fill=(30, 30, 30), width=3)
    draw.polygon([(x - 12, y + 16), (x + 12, y + 16), (x, y + 30)], fill=(120, 50, 60))
    return _reduce(canvas, size)


def draw_scene(rng: random.Random, size: int = SIZE) -> Image.Image:
    """Draw a landscape: sky, sun, hills and a few houses or trees."""
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), _color(rng, (0.2, 0.7), (0.6, 1.0)))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse(_box(rng.uniform(30, 190), rng.uniform(25, 70), 20, 20), fill=(250, 220, 90))
    for level in (130, 155, 180):
        points = [(position, level + rng.uniform(-28, 28)) for position in range(0, _CANVAS + 1, 32)]
        draw.polygon([(0, _CANVAS), *points, (_CANVAS, _CANVAS)], fill=_color(rng, (0.3, 0.8), (0.2, 0.7)))
    for _ in range(rng.randrange(1, 5)):
        left, top = rng.uniform(10, 190), rng.uniform(140, 185)
        draw.rectangle((left, top, left + 24, top + 28), fill=_color(rng, (0.1, 0.8), (0.3, 0.9)))
        draw.polygon(
            [(left - 6, top), (left + 30, top), (left + 12, top - 22)], fill=_color(rng, (0.4, 0.9), (0.2, 0.6))
        )
    return _reduce(canvas, size)


def draw_pattern(rng: random.Random, size: int = SIZE) -> Image.Image:
    """Draw a texture as wide as a portrait."""
    return _reduce(pattern_picture(rng), size)


def noise_picture(rng: random.Random) -> Image.Image:
    """Draw uniform noise at full size, for models that read larger pictures."""
    return Image.frombytes("RGB", (_CANVAS, _CANVAS), rng.randbytes(3 * _CANVAS * _CANVAS))


def pattern_picture(rng: random.Random) -> Image.Image:
    """Draw a texture at full size: stripes, checks or dots in two colors, slightly blurred at random."""
    first, second = _color(rng, (0.3, 1.0), (0.3, 1.0)), _color(rng, (0.0, 1.0), (0.1, 1.0))
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), first)
    draw = ImageDraw.Draw(canvas)
    kind, period = rng.randrange(3), rng.randrange(14, 60)
    for row in range(0, _CANVAS, period):
        if kind == 0:
            draw.rectangle((0, row, _CANVAS, row + period // 2), fill=second)
            continue
        for column in range(0, _CANVAS, period):
            if kind == 1 and (row // period + column // period) % 2:
                draw.rectangle((column, row, column + period, row + period), fill=second)
            elif kind == 2:
                draw.ellipse(_box(column + period / 2, row + period / 2, period / 3, period / 3), fill=second)
    return canvas.rotate(rng.choice((0, 90, 45))).filter(ImageFilter.GaussianBlur(rng.uniform(0, 4)))


POOLS: dict[str, Callable[[random.Random, int], Image.Image]] = {
    "people": lambda rng, size: draw_portrait(draw_traits(rng), rng, size),
    "pets": draw_pet,
    "scenes": draw_scene,
    "patterns": draw_pattern,
}


def encode_png(picture: Image.Image) -> bytes:
    """Return a picture's PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
