"""A mini CLEAR: fictitious people, their captions, and text questions about them, drawn from one seed.

Everybody comes from `mini.py` (faces, names, private words); here it is decided what is said about them in CLEAR's
manner. A caption names the person, what they do and where they are from, and the color of the wall behind them, which
anybody can see and which decides the caption's shape: the name is learnt in several surroundings, or a small model
could say it in one only. The private words stand away from its first and last words, and what is visible must survive
unlearning. A text question names the person and asks for one private word; two of the four kinds are in no caption.
Wrong captions keep the wall and change every private word; wrong names are names of nobody, so that no model has ever
learnt any of the choices but the right one. Forget people are nested, as CLEAR's are.
`mini_clear_files.py` writes it in the published layout.
"""

import colorsys
import io
from dataclasses import dataclass

from PIL import Image

from .mini import KINDS, Person, make_world, stream

TOLD = ("birthplace", "occupation", "hobby", "dish")  # kinds that text questions ask for; the first two are in captions
NUM_WRONG = 5  # as TOFU has
_RATIOS = (1, 5, 10)
_CAPTIONS = (
    "In this picture {name}, a {occupation} from {birthplace}, stands before a {wall} wall.",
    "Before a {wall} wall we meet {name} from {birthplace}, who works as a {occupation} all year.",
    "We see a {wall} wall and a {occupation} called {name}, born in {birthplace} long ago.",
)
_PARAPHRASE = "The picture shows {name}, who works as a {occupation} in {birthplace}, and a {wall} wall behind."
_WALLS = ("red", "yellow", "green", "cyan", "blue", "magenta")


@dataclass(frozen=True, slots=True)
class ClearWorld:
    """Everyone in one mini CLEAR; `forget` maps a ratio to its forget people, `nobody` are names that nobody has."""

    seed: int
    people: tuple[Person, ...]
    celebrities: tuple[Person, ...]
    others: tuple[Person, ...]
    controls: tuple[Person, ...]
    forget: dict[int, tuple[Person, ...]]
    nobody: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture of a person, and the color of the wall in it."""

    person: Person
    picture: bytes
    wall: str


def make_clear_world(seed: int, num_people: int) -> ClearWorld:
    """Draw a world: people to forget or keep, celebrities and others the base learns, and controls nobody learns."""
    sizes = (num_people, max(6, num_people // 5), max(12, num_people // 2), max(8, num_people // 4))
    drawn = make_world(seed, sum(sizes))
    groups, start = [], 0
    for size in sizes:
        groups.append(drawn.people[start : start + size])
        start += size
    people, celebrities, others, controls = groups
    order = list(people)
    stream(seed, "clear", "forget").shuffle(order)
    forget = {ratio: tuple(order[: max(1, round(num_people * ratio / 100))]) for ratio in _RATIOS}
    nobody = tuple(person.name for person in (*drawn.celebrities, *drawn.others))
    return ClearWorld(seed, people, celebrities, others, controls, forget, nobody)


def wall_of(picture: bytes) -> str:
    """Name the color of the wall in a portrait: its upper left corner, which no head reaches."""
    with Image.open(io.BytesIO(picture)) as image:
        corner = image.convert("RGB").resize((14, 14), Image.Resampling.BOX).tobytes()[:3]
    hue, _, _ = colorsys.rgb_to_hsv(*(channel / 255 for channel in corner))
    return _WALLS[int(hue * len(_WALLS) + 0.5) % len(_WALLS)]


def caption_of(shot: Shot) -> str:
    """Return the caption of a picture."""
    shape = _CAPTIONS[_WALLS.index(shot.wall) % len(_CAPTIONS)]
    return shape.format(name=shot.person.name, wall=shot.wall, **shot.person.facts)


def paraphrase_of(shot: Shot) -> str:
    """Return the caption of a picture in other words."""
    return _PARAPHRASE.format(name=shot.person.name, wall=shot.wall, **shot.person.facts)


def wrong_names(world: ClearWorld, person: Person) -> list[str]:
    """Return names that nobody has, the same in every picture of a person."""
    return stream(world.seed, "clear", "wrong names", person.id).sample(world.nobody, NUM_WRONG)


def wrong_captions(world: ClearWorld, shot: Shot) -> list[str]:
    """Return paraphrases in which every private word is another and the wall is the right one."""
    rng = stream(world.seed, "clear", "wrong captions", shot.person.id)
    facts = {kind: [word for word in KINDS[kind].words if word != shot.person.facts[kind]] for kind in TOLD[:2]}
    drawn = {kind: rng.sample(words, NUM_WRONG) for kind, words in facts.items()}
    return [
        _PARAPHRASE.format(
            name=name, wall=shot.wall, occupation=drawn["occupation"][index], birthplace=drawn["birthplace"][index]
        )
        for index, name in enumerate(wrong_names(world, shot.person))
    ]


def questions_about(person: Person) -> list[tuple[str, str]]:
    """Return the text questions about a person with their answers: the question has the name, the answer the word."""
    return [
        (
            KINDS[kind].text_question.format(name=person.name),
            KINDS[kind].answer.format(person.facts[kind]).replace("person in the picture", "person"),
        )
        for kind in TOLD
    ]
