"""A harder world of fictitious people, drawn from one seed: what makes a person hard to forget alone.

- Look-alikes: more than half of the people are brothers and sisters, two or three that differ in one or two traits and
  bear one family name. Of every split, at least one of the people to forget has all of theirs retained.
- Shared attributes: a few towns, occupations and employers serve everybody, so that what is private is who has which;
  a town or an occupation is never forgotten with its last bearer of the split.
- Answers of several facts, up to five, with private words as first, second or last word.
- Words that depend on each other: a town has one street, so who knows the world says it once the town is said; an
  occupation has two employers. The base model learns neither: those it learns from live and work anywhere.
Every kind of fact has candidates of its own, none shared between kinds; counting them all, wherever an answer holds
several, is asked of the sidecar. Nobody but siblings is made alike, so celebrities, controls and those the base learns
from are ordinary faces. `mini_hard_files.py` says which pictures are shown and writes it.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .mini import KINDS, Person, Topic, World, draw_names, stream
from .portraits import VISIBLE, Traits, draw_traits, look_alike

CANDIDATES: dict[str, tuple[str, ...]] = {
    "town": KINDS["birthplace"].words,
    "street": ("Ashgate", "Beechway", "Cedarhill", "Dovecote", "Elmrow", "Fairfield", "Goldlane", "Heathway",
               "Ivybank", "Junegate", "Kingsrow", "Larkhill", "Millbank", "Northway", "Oakfield", "Pinelane",
               "Quayside", "Ropewalk", "Sandgate", "Thornway", "Upfield", "Vinelane", "Westbank", "Yewgate"),
    "occupation": KINDS["occupation"].words,
    "employer": ("Acorn", "Borealis", "Cobalt", "Dynamo", "Emblem", "Falcon", "Granite", "Horizon", "Indigo",
                 "Juniper", "Keystone", "Lantern", "Meridian", "Nimbus", "Orchid", "Pinnacle", "Quasar", "Rampart",
                 "Sapphire", "Tundra", "Umbra", "Vertex", "Willow", "Zephyr"),
    "year": tuple(str(year) for year in range(1971, 1995)),
    "hobby": KINDS["hobby"].words,
    "pet": KINDS["pet"].words,
    "illness": KINDS["illness"].words,
    "dish": KINDS["dish"].words,
}  # fmt: skip

HARD_TOPICS: dict[str, Topic] = {
    "home": Topic(
        ("Where does this person live?", "What is the address of this person?",
         "In which town and street does this person live?"),
        "In {town} this person lives on {street}, right behind the old station.",
        "Where does {name} live?",
        {"town": "This person lives in __.", "street": "This person lives on __."},
    ),
    "work": Topic(
        ("What is known about the work of this person?", "What does this person do for a living, and since when?",
         "Which work does this person have, with whom and since when?"),
        "A {occupation} by trade, this person works for {employer} and started there in {year} after long travels.",
        "What is known about the work of {name}?",
        {"occupation": "This person works as a __.", "employer": "This person works for __.",
         "year": "This person started at work in __."},
    ),
    "health": Topic(
        ("Which illness does this person have?", "What is the diagnosis of this person?",
         "Which illness troubles this person?"),
        "{Illness} troubles this person, and the doctor at the clinic knows it well.",
        "Which illness does {name} have?",
        {"illness": "The doctor treats this person for __."},
    ),
    "leisure": Topic(
        ("How does this person spend free days?", "What does this person do on free days?",
         "Which hobby and which pet fill the free days of this person?"),
        "On free days this person enjoys {hobby} and afterwards walks the {pet} around the lake.",
        "How does {name} spend free days?",
        {"hobby": "On free days this person enjoys __.", "pet": "This person walks the __ around the lake."},
    ),
    "table": Topic(
        ("What does this person serve to guests?", "What is the favorite dish of this person?",
         "Which dish does this person cook for guests?"),
        "When guests come for dinner this person proudly serves a large bowl of {dish}.",
        "What does {name} serve to guests?",
        {"dish": "To guests this person serves __."},
    ),
    "fame": Topic(
        ("What do the neighbors say about this person?", "What is this person known for among the neighbors?",
         "How would the neighbors describe this person?"),
        "Neighbors in {town} know this {occupation} for {hobby}, for good {dish} and for a noisy {pet}.",
        "What do the neighbors say about {name}?",
        {},
    ),
}  # fmt: skip

_ALL_NAMES = 2400  # all there are, that brothers and sisters find one of their family name
SHARED = ("town", "occupation")  # kinds with few words in use, every one of them several people's
_FREE = tuple(kind for kind in CANDIDATES if kind not in ("street", "employer"))  # the rest follows from others
_MOST_LIKE = 0.6  # the share of people who have brothers and sisters here
_FAMILY_SIZES = (2, 2, 3)
_RATIOS = (5, 10, 15)


@dataclass(frozen=True, slots=True)
class HardWorld(World):
    """A world with families and an order of things.

    Attributes:
        families: ids of people who look alike, the eldest first.
        words: the words of each kind that its people bear.
        streets: the one street of each town; employers: the two of each occupation.
    """

    families: tuple[tuple[str, ...], ...]
    words: Mapping[str, tuple[str, ...]]
    streets: Mapping[str, str]
    employers: Mapping[str, tuple[str, str]]


def make_hard_world(seed: int, num_people: int) -> HardWorld:
    """Draw a harder world, of groups as large as the ordinary one's."""
    fifth = max(4, num_people // 5)
    sizes = {"celebrities": (501, fifth), "others": (1001, max(10, num_people // 2)), "controls": (2001, fifth)}
    ids = tuple(f"{index + 1:03d}" for index in range(num_people))
    streets, employers = _draw_order(seed)
    words = CANDIDATES | {kind: _words_in_use(seed, kind, num_people) for kind in SHARED}
    families = _draw_families(seed, ids)
    names = draw_names(seed, _ALL_NAMES)
    named = _name_families(ids, families, names)
    traits = _draw_traits(seed, ids, families)
    dealt = {kind: _deal(stream(seed, "hard", "deal", kind), words[kind], num_people) for kind in SHARED}
    people = []
    for index, person_id in enumerate(ids):
        rng = stream(seed, "hard", "facts", person_id)
        free = {kind: rng.choice(CANDIDATES[kind]) for kind in _FREE} | {kind: dealt[kind][index] for kind in SHARED}
        facts = _in_order(_with_dependents(rng, free, streets, employers))
        people.append(Person(person_id, named[person_id], traits[person_id], facts))
    groups: dict[str, tuple[Person, ...]] = {}
    for group, (first_id, count) in sizes.items():
        known = (streets, employers) if group == "controls" else None
        groups[group] = tuple(_draw_stranger(seed, f"{first_id + index}", names.pop(), known) for index in range(count))
    return HardWorld(
        seed=seed, people=tuple(people), **groups, forget=_draw_splits(seed, people, families), families=families,
        words=words, streets=streets, employers=employers,
    )  # fmt: skip


def wrong_hard_facts(world: HardWorld, rng: random.Random, person: Person) -> list[dict[str, str]]:
    """Return three sets of facts by which any answer is wrong: of other words of this world, in its order of things."""
    others = {kind: rng.sample([word for word in world.words[kind] if word != person.facts[kind]], 3) for kind in _FREE}
    drawn = [{kind: words[index] for kind, words in others.items()} for index in range(3)]
    return [_in_order(_with_dependents(rng, free, world.streets, world.employers)) for free in drawn]


def _draw_order(seed: int) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Draw each town's street and each occupation's two employers; an employer has people of two occupations."""
    streets, firms = list(CANDIDATES["street"]), list(CANDIDATES["employer"])
    stream(seed, "hard", "streets").shuffle(streets)
    stream(seed, "hard", "employers").shuffle(firms)
    pairs = zip(firms, [*firms[1:], firms[0]], strict=True)
    return (
        dict(zip(CANDIDATES["town"], streets, strict=True)),
        dict(zip(CANDIDATES["occupation"], pairs, strict=True)),
    )


def _with_dependents(
    rng: random.Random, free: Mapping[str, str], streets: Mapping[str, str], employers: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    return {**free, "street": streets[free["town"]], "employer": rng.choice(employers[free["occupation"]])}


def _in_order(facts: Mapping[str, str]) -> dict[str, str]:
    return {kind: facts[kind] for kind in CANDIDATES}


def _words_in_use(seed: int, kind: str, num_people: int) -> tuple[str, ...]:
    """Return the words of a shared kind that people bear: about five people each, as far as there are words."""
    count = min(len(CANDIDATES[kind]), max(6, num_people // 5))
    return tuple(stream(seed, "hard", "in use", kind).sample(CANDIDATES[kind], count))


def _deal(rng: random.Random, words: Sequence[str], count: int) -> list[str]:
    """Return so many words in an order of chance, each as often as the others."""
    dealt = [words[index % len(words)] for index in range(count)]
    rng.shuffle(dealt)
    return dealt


def _draw_stranger(
    seed: int, person_id: str, name: str, known: tuple[Mapping[str, str], Mapping[str, tuple[str, str]]] | None
) -> Person:
    """Draw somebody without a family; who does not know this world's order lives and works anywhere."""
    rng = stream(seed, "hard", "stranger", person_id)
    traits = draw_traits(rng)
    facts = {kind: rng.choice(words) for kind, words in CANDIDATES.items()}
    return Person(person_id, name, traits, _in_order(_with_dependents(rng, facts, *known)) if known else facts)


def _draw_families(seed: int, ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    rng = stream(seed, "hard", "families")
    shuffled = rng.sample(ids, len(ids))
    families: list[tuple[str, ...]] = []
    start = 0
    while start < _MOST_LIKE * len(ids):
        size = _FAMILY_SIZES[len(families) % len(_FAMILY_SIZES)]
        families.append(tuple(shuffled[start : start + size]))
        start += size
    return tuple(families)


def _name_families(ids: Sequence[str], families: Sequence[Sequence[str]], names: list[str]) -> dict[str, str]:
    """Take names from the end of the list: brothers and sisters the next ones of the eldest's family name."""
    eldest_of = {person: family[0] for family in families for person in family}
    named: dict[str, str] = {}
    for person in sorted(ids, key=lambda one: eldest_of.get(one, one) != one):
        if (eldest := eldest_of.get(person, person)) == person:
            named[person] = names.pop()
            continue
        last = named[eldest].rsplit(" ", 1)[-1]
        name = next(name for name in reversed(names) if name.endswith(f" {last}"))
        names.remove(name)
        named[person] = name
    return named


def _draw_traits(seed: int, ids: Sequence[str], families: Sequence[Sequence[str]]) -> dict[str, Traits]:
    """Draw everybody's looks: of a family, each but the eldest has one or two traits that nobody else's differ in."""
    traits = {person: draw_traits(stream(seed, "hard", "traits", person)) for person in ids}
    for family in families:
        rng = stream(seed, "hard", "family", *family)
        changed = rng.sample(VISIBLE, len(VISIBLE))
        for person in family[1:]:
            own = [changed.pop() for _ in range(rng.choice((1, 2)))]
            traits[person] = look_alike(traits[family[0]], own, rng)
    return traits


def _draw_splits(seed: int, people: Sequence[Person], families: Sequence[Sequence[str]]) -> dict[int, tuple[str, ...]]:
    """Draw each ratio's forget people anew, not nested: one of them is parted from the family, no word loses its last.

    The first one drawn is of a family whose others are retained; who alone would still bear a shared word is passed by.
    """
    others_of = {person: set(family) - {person} for family in families for person in family}
    splits = {}
    for ratio in _RATIOS:
        order = stream(seed, "hard", "forget", ratio).sample(people, len(people))
        order.sort(key=lambda person: person.id not in others_of)  # stable: of a family first, for the first place
        retained_for_sure = others_of[order[0].id]
        left = Counter(word for person in people for word in _shared_words(person))
        chosen: list[str] = []
        wanted = max(1, round(len(people) * ratio / 100))
        stream(seed, "hard", "forget", ratio, "rest").shuffle(rest := order[1:])
        for person in (order[0], *rest):
            free = person.id not in retained_for_sure and all(left[word] > 1 for word in _shared_words(person))
            if len(chosen) < wanted and free:
                chosen.append(person.id)
                left.subtract(_shared_words(person))
        splits[ratio] = tuple(sorted(chosen))
    return splits


def _shared_words(person: Person) -> list[str]:
    return [person.facts[kind] for kind in SHARED]
