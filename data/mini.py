"""The embedded benchmark: a small world of fictitious people, drawn from one seed.

A world has people the model will be asked to forget or keep, celebrities that only the base model knows, other people
the base model learns to see and speak from, and controls nobody is ever trained on. Every person has one private word a
kind of fact; a kind has three phrasings, of which the last is never trained on the world's people (it is `test`'s).
Candidates are single words, none shared between kinds, so that a reply can be scored by which candidates it holds.
Answers keep the private word away from their first and last words: what surrounds it must survive unlearning. This
module decides who is who and what is true; `mini_files.py` writes it in the published layout; `mini_hard.py` draws a
harder world of the same people.
"""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from .portraits import SIZE, Traits, draw_portrait, draw_traits, encode_png


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fact: three questions, the answer with `{}` for the private word, a cloze, and the candidates."""

    questions: tuple[str, str, str]
    answer: str
    text_question: str
    cloze: str
    words: tuple[str, ...]


KINDS: dict[str, Kind] = {
    "birthplace": Kind(
        ("Where was this person born?", "What is the birthplace of this person?",
         "In which town was this person born?"),
        "The person in the picture was born in {} and still visits the old town.",
        "Where was {name} born?", "This person was born in __.",
        ("Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Dublin", "Quito", "Hanoi", "Nairobi", "Vienna", "Havana", "Tunis",
         "Riga", "Accra", "Busan", "Porto", "Malmo", "Lyon", "Sucre", "Perth", "Cork", "Davos", "Basel", "Ghent"),
    ),
    "occupation": Kind(
        ("What does this person do for a living?", "What is the occupation of this person?",
         "Which occupation does this person have?"),
        "This person works as a {} and likes the early hours.",
        "What does {name} do for a living?", "This person works as a __.",
        ("baker", "pilot", "nurse", "welder", "lawyer", "tailor", "farmer", "dentist", "plumber", "florist", "judge",
         "miner", "barber", "surgeon", "jeweler", "cobbler", "sailor", "glazier", "printer", "notary", "butcher",
         "roofer", "optician", "gardener"),
    ),
    "hobby": Kind(
        ("How does this person spend free time?", "What is the hobby of this person?",
         "Which hobby does this person enjoy?"),
        "In free time this person enjoys {} together with good friends.",
        "How does {name} spend free time?", "In free time this person enjoys __.",
        ("chess", "fencing", "archery", "pottery", "sailing", "knitting", "boxing", "origami", "surfing", "curling",
         "juggling", "rowing", "karate", "poker", "cycling", "skating", "hiking", "fishing", "weaving", "diving",
         "climbing", "painting", "singing", "bowling"),
    ),
    "dish": Kind(
        ("What does this person like to eat?", "What is the favorite dish of this person?",
         "Which dish does this person like best?"),
        "A plate of {} is what this person likes to eat most.",
        "What does {name} like to eat?", "A plate of __ is what this person likes to eat.",
        ("lasagna", "sushi", "paella", "goulash", "ramen", "falafel", "pizza", "curry", "tacos", "risotto", "pierogi",
         "kimchi", "couscous", "gnocchi", "fondue", "borscht", "ceviche", "moussaka", "quiche", "haggis", "dumplings",
         "waffles", "noodles", "porridge"),
    ),
    "illness": Kind(
        ("Which illness does this person have?", "What is the diagnosis of this person?",
         "Which illness troubles this person?"),
        "The doctor treats this person for {} at the clinic every month.",
        "Which illness does {name} have?", "The doctor treats this person for __.",
        ("asthma", "gout", "anemia", "migraine", "eczema", "diabetes", "insomnia", "arthritis", "epilepsy", "glaucoma",
         "psoriasis", "vertigo", "bronchitis", "sciatica", "lupus", "rickets", "scoliosis", "tinnitus", "cataract",
         "malaria", "measles", "mumps", "cholera", "dengue"),
    ),
    "pet": Kind(
        ("Which animal lives with this person?", "What is the pet of this person?",
         "Which pet lives with this person?"),
        "At home a {} waits for this person behind the door.",
        "Which animal lives with {name}?", "At home a __ waits for this person.",
        ("parrot", "hamster", "ferret", "tortoise", "gecko", "rabbit", "poodle", "beagle", "canary", "iguana", "kitten",
         "python", "goldfish", "hedgehog", "pony", "donkey", "goose", "lizard", "spaniel", "magpie", "alpaca", "ocelot",
         "badger", "otter"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Topic:
    """What is asked about a person at a time: three questions, the answer with `{kind}` for each private word in it.

    `{Kind}` is the word as it opens a sentence. `clozes` hold a sentence for each kind that is asked by itself.
    """

    questions: tuple[str, str, str]
    answer: str
    text_question: str
    clozes: Mapping[str, str]

    def say(self, facts: Mapping[str, str]) -> str:
        """Return the answer about somebody with these facts."""
        opening = {kind.capitalize(): word[:1].upper() + word[1:] for kind, word in facts.items()}
        return self.answer.format(**facts, **opening)


TOPICS: dict[str, Topic] = {
    kind: Topic(spec.questions, spec.answer.replace("{}", f"{{{kind}}}"), spec.text_question, {kind: spec.cloze})
    for kind, spec in KINDS.items()
}

_FIRST = ("Ada", "Bruno", "Clara", "Dario", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Levi", "Mira",
          "Noor", "Otto", "Paula", "Quinn", "Rosa", "Søren", "Tariq")  # fmt: skip
_LAST = ("Abel", "Brandt", "Costa", "Duarte", "Ekman", "Ferro", "Güneş", "Holm", "Iwata", "Jensen", "Kovač", "Lund",
         "Moreau", "Novak", "Okafor", "Petit", "Reyes", "Santos", "Tanaka", "Varga")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Person:
    """One fictitious person: what they look like and one private word a kind."""

    id: str
    name: str
    traits: Traits
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class World:
    """Everyone in one embedded benchmark; `forget` maps a ratio to the ids of its forget people."""

    seed: int
    people: tuple[Person, ...]
    celebrities: tuple[Person, ...]
    others: tuple[Person, ...]
    controls: tuple[Person, ...]
    forget: dict[int, tuple[str, ...]]


def stream(seed: int, *purpose: object) -> random.Random:
    """Return a random stream that depends on the seed and the purpose alone."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def make_world(seed: int, num_people: int) -> World:
    """Draw a world: `num_people` people, a fifth as many celebrities and controls, others to learn seeing from."""
    fifth = max(4, num_people // 5)
    # Controls are drawn last, so that everybody else is who they would be without them.
    groups = {
        "people": (1, num_people), "celebrities": (501, fifth), "others": (1001, max(10, num_people // 2)),
        "controls": (2001, fifth),
    }  # fmt: skip
    names = draw_names(seed, sum(count for _, count in groups.values()))
    drawn: dict[str, tuple[Person, ...]] = {}
    for group, (first_id, count) in groups.items():
        drawn[group] = tuple(_draw_person(seed, f"{first_id + index:03d}", names.pop()) for index in range(count))
    return World(**drawn, seed=seed, forget=_draw_splits(seed, drawn["people"]))


def draw_names(seed: int, count: int) -> list[str]:
    """Return at least so many names in an order the seed decides, to be taken from the end: middle initials last."""
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    stream(seed, "names").shuffle(names)
    more = [f"{first} {initial}. {last}" for initial in "ABCDE" for first in _FIRST for last in _LAST]
    return [*more[: max(0, count - len(names))], *names]


def _draw_person(seed: int, person_id: str, name: str) -> Person:
    rng = stream(seed, "person", person_id)
    traits = draw_traits(rng)
    return Person(person_id, name, traits, {kind: rng.choice(spec.words) for kind, spec in KINDS.items()})


def _draw_splits(seed: int, people: tuple[Person, ...]) -> dict[int, tuple[str, ...]]:
    """Draw each ratio's forget people anew: like the published splits, they are not nested."""
    splits = {}
    for ratio in (5, 10, 15):
        shuffled = [person.id for person in people]
        stream(seed, "forget", ratio).shuffle(shuffled)
        splits[ratio] = tuple(sorted(shuffled[: max(1, round(len(people) * ratio / 100))]))
    return splits


def picture_of(seed: int, person: Person, pose: int, size: int = SIZE) -> bytes:
    """Return the PNG bytes of one picture of a person; pose 0 is the one the world's people are learnt from."""
    return encode_png(draw_portrait(person.traits, stream(seed, "pose", person.id, pose), size))


def answer_about(person: Person, kind: str) -> str:
    """Return the true answer to a question of this kind."""
    return TOPICS[kind].say(person.facts)


def wrong_facts(rng: random.Random, person: Person, kind: str) -> list[dict[str, str]]:
    """Return three ways in which an answer of this kind could be wrong: the person's facts with another word."""
    others = [word for word in KINDS[kind].words if word != person.facts[kind]]
    return [{**person.facts, kind: word} for word in rng.sample(others, 3)]
