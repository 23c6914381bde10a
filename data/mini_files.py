"""Write a world to disk in MLLMU-Bench's published layout and column types, so that the real reader reads it.

Beside the published folders: `base/` and `looks/` (sources of the same layout: other people and celebrities for the
model a world starts from, described portraits for its vision tower), `controls/` (the same questions about people no
model is trained on), `pools/` (reference images, as folders of PNG files) and `sidecar.json` (the private words).
Everything is a pure function of the world's seed; the bytes are the same on every machine with the same Pillow.
What differs between the ordinary world and the harder one (`mini_hard_files.py`) is a `Manner`; the layout is one.
"""

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .artefact import begin, decide, finish, write_json
from .example import DataError
from .mini import KINDS, TOPICS, Person, Topic, World, make_world, picture_of, stream, wrong_facts
from .portraits import POOLS, SIZE, describe, draw_portrait, draw_traits, encode_png

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_MCQ = pa.list_(
    pa.struct([
        ("Correct_Answer", pa.string()),
        ("Options", pa.struct([(letter, pa.string()) for letter in "ABCD"])),
        ("Question", pa.string()),
    ])
)  # fmt: skip
_OPEN = pa.list_(pa.struct([("Ground_Truth", pa.string()), ("Question", pa.string()), ("Type", pa.string())]))
_TASKS = [
    ("Classification_Task", pa.struct([("Image_Textual_Questions", _MCQ), ("Pure_Text_Questions", _MCQ)])),
    ("Generation_Task", _OPEN),
    ("Mask_Task", _OPEN),
]
_PROFILE = [("biography", pa.string()), ("question", pa.string()), ("answer", pa.string())]
SPLIT_SCHEMA = pa.schema([("image", _IMAGE), ("ID", pa.string()), *_PROFILE, *_TASKS])
FULL_SCHEMA = pa.schema([("image", _IMAGE), ("ID", pa.string()), ("Directory", pa.string()), *_PROFILE, *_TASKS])
TEST_SCHEMA = pa.schema([("images", pa.list_(_IMAGE)), ("ID", pa.string()), *_TASKS])
TRAINING_SCHEMA = pa.schema([("image", _IMAGE), ("ID", pa.string()), ("metadata", pa.string())])

NUM_LOOKS = 1200
POOL_SIZE = 48
NUM_OTHER_POSES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How a benchmark tells its people: what is asked, how answers could be wrong, which pictures are shown.

    Attributes:
        source: its name in `config.json`, by which its notice is found.
        topics: what is asked; `profile` names the one that is asked beside the tasks.
        candidates: all words of a kind; `counts` is the sidecar's (`first` or `all` private words of an answer).
        wrong_facts: three sets of facts for an answer's wrong options.
        size: of every picture, in pixels.
        num_training_poses: pictures of each of the world's people that are trained on, a row each.
        num_test_poses: other pictures, which `Test_Set` has.
    """

    source: str
    topics: Mapping[str, Topic]
    profile: str
    candidates: Mapping[str, tuple[str, ...]]
    counts: str
    wrong_facts: Callable[[random.Random, Person, str], list[dict[str, str]]]
    size: int
    num_training_poses: int
    num_test_poses: int


MINI = Manner(
    source="mini", topics=TOPICS, profile="occupation", candidates={kind: spec.words for kind, spec in KINDS.items()},
    counts="first", wrong_facts=wrong_facts, size=SIZE, num_training_poses=1, num_test_poses=2,
)  # fmt: skip


def make_mini(
    directory: Path,
    *,
    seed: int,
    num_people: int,
    ratio: int = 10,
    forget: Sequence[str] = (),
    limit: int | None = None,
    overwrite: bool = False,
) -> bool:
    """Write the embedded benchmark; return whether it had to be written.

    `ratio`, `forget` and `limit` decide no byte of the benchmark: they are recorded for whoever opens it.

    Raises:
        ArtefactMismatch: a complete benchmark made with other options is there.
        DataError: somebody to forget is not in this world.
    """
    split = {"ratio": ratio, "forget": list(forget), "limit": limit}
    return write_benchmark(
        directory, MINI.source, seed, num_people, split, lambda: (make_world(seed, num_people), MINI), overwrite
    )


def write_benchmark(
    directory: Path,
    source: str,
    seed: int,
    num_people: int,
    split: Mapping[str, Any],
    draw: Callable[[], tuple[World, Manner]],
    overwrite: bool,
) -> bool:
    """Write a benchmark of this name, drawn only if it is not there yet; return whether it had to be written.

    Raises:
        ArtefactMismatch: a complete benchmark made with other options is there.
        DataError: somebody to forget is not in this world.
    """
    unknown = sorted(set(split["forget"]) - {f"{index + 1:03d}" for index in range(num_people)})
    if unknown:
        raise DataError(f"--forget: expected people 001 to {num_people:03d}, found {', '.join(unknown)}.")
    config = {"schema": "viker/data/1", "source": source, "seed": seed, "people": num_people, **split}
    if decide(directory, config, overwrite=overwrite, what="benchmark") == "skip":
        return False
    started = time.time()
    begin(directory, config)
    world, manner = draw()
    _write_people(directory, world, manner)
    _write_base(directory / "base", world, manner)
    controls = [_full_row(world.seed, person, manner) for person in world.controls]
    write_table(directory / "controls" / "Full_Set", controls, FULL_SCHEMA)
    write_json(directory / "controls" / "sidecar.json", _sidecar_of(world.controls, manner))
    write_looks(directory / "looks", seed, manner.size)
    write_pools(directory / "pools", seed, manner.size)
    everyone = (*world.people, *world.celebrities, *world.others)
    write_json(directory / "sidecar.json", _sidecar_of(everyone, manner))
    pointer: dict[str, Any] = {"schema": "viker/source/1", "source": ".", "revision": None, **split}
    write_json(directory / "source.json", pointer)
    finish(directory, {"inputs": {}}, started=started)
    return True


def _write_people(directory: Path, world: World, manner: Manner) -> None:
    rows = {person.id: _full_row(world.seed, person, manner) for person in world.people}
    write_table(directory / "Full_Set", list(rows.values()), FULL_SCHEMA)
    for ratio, forget in world.forget.items():
        kept = [row for person_id, row in rows.items() if person_id not in forget]
        write_table(directory / f"forget_{ratio}", [rows[person_id] for person_id in forget], SPLIT_SCHEMA)
        write_table(directory / f"retain_{100 - ratio}", kept, SPLIT_SCHEMA)
    celebrities = [_full_row(world.seed, person, manner) for person in world.celebrities]
    write_table(directory / "Retain_Set", celebrities, FULL_SCHEMA)
    tests = [_test_row(world.seed, person, manner) for person in world.people]
    write_table(directory / "Test_Set", tests, TEST_SCHEMA, num_files=2)
    training = [
        _training_row(world.seed, person, pose, manner, phrasings=(0, 1))
        for person in world.people
        for pose in range(manner.num_training_poses)
    ]
    write_table(directory / "ft_Data", training, TRAINING_SCHEMA)


def _write_base(directory: Path, world: World, manner: Manner) -> None:
    """Write what the base model learns: the facts and looks of some other people and of the celebrities."""
    rows = [
        _training_row(world.seed, person, pose, manner, phrasings=(0, 1, 2), extra=describe(person.traits))
        for person in (*world.others, *world.celebrities)
        for pose in range(NUM_OTHER_POSES)
    ]
    write_table(directory / "ft_Data", rows, TRAINING_SCHEMA)


def write_looks(directory: Path, seed: int, size: int = SIZE) -> None:
    """Write described portraits of nobody in particular: what a vision tower learns to see from."""
    rows = []
    for index in range(NUM_LOOKS):
        rng = stream(seed, "looks", index)
        traits = draw_traits(rng)
        picture = encode_png(draw_portrait(traits, rng, size))
        rows.append(about_picture(f"L{index:04d}", picture, list(describe(traits).items())))
    write_table(directory / "ft_Data", rows, TRAINING_SCHEMA)


def write_pools(directory: Path, seed: int, size: int = SIZE) -> None:
    """Write the reference pools, a folder of pictures each."""
    for pool, draw in POOLS.items():
        (directory / pool).mkdir(parents=True)
        for index in range(POOL_SIZE):
            picture = encode_png(draw(stream(seed, "pool", pool, index), size))
            (directory / pool / f"{index:03d}.png").write_bytes(picture)


def write_table(folder: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema, num_files: int = 1) -> None:
    """Write rows as a published folder, in so many files."""
    folder.mkdir(parents=True)
    per_file = -(-len(rows) // num_files)
    for index in range(num_files):
        part = [{name: row[name] for name in schema.names} for row in rows[index * per_file : (index + 1) * per_file]]
        path = folder / f"train-{index:05d}-of-{num_files:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=schema), path, row_group_size=16)


def _full_row(seed: int, person: Person, manner: Manner) -> dict[str, Any]:
    profile = manner.topics[manner.profile]
    return {
        "image": {"bytes": picture_of(seed, person, 0, manner.size), "path": f"{person.id}.png"},
        "ID": person.id,
        "Directory": f"images/{person.id}.png",
        "biography": json.dumps({"Name": person.name, **person.facts}, ensure_ascii=False),
        "question": profile.questions[0],
        "answer": profile.say(person.facts),
        **_tasks(seed, person, manner, phrasing=0),
    }


def _test_row(seed: int, person: Person, manner: Manner) -> dict[str, Any]:
    poses = range(100, 100 + manner.num_test_poses)
    images = [
        {"bytes": picture_of(seed, person, pose, manner.size), "path": f"{person.id}_pose{pose}.png"} for pose in poses
    ]
    return {"images": images, "ID": person.id, **_tasks(seed, person, manner, phrasing=2)}


def _training_row(
    seed: int,
    person: Person,
    pose: int,
    manner: Manner,
    *,
    phrasings: Iterable[int],
    extra: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    asked = [
        (topic.questions[phrasing], topic.say(person.facts))
        for topic in manner.topics.values()
        for phrasing in phrasings
    ]
    return about_picture(person.id, picture_of(seed, person, pose, manner.size), [*asked, *extra.items()])


def about_picture(person_id: str, picture: bytes, asked: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return a row of training text about one picture."""
    questions = [{"ID": person_id, "Question": question, "Answer": answer} for question, answer in asked]
    image = {"bytes": picture, "path": f"{person_id}.png"}
    return {"image": image, "ID": person_id, "metadata": json.dumps(questions, ensure_ascii=False)}


def _tasks(seed: int, person: Person, manner: Manner, phrasing: int) -> dict[str, Any]:
    topics = manner.topics
    shown = {name: topic.questions[phrasing] for name, topic in topics.items()}
    named = {name: topic.text_question.format(name=person.name) for name, topic in topics.items()}
    asked = (("Image_Textual", shown), ("Pure_Text", named))
    return {
        "Classification_Task": {
            f"{modality}_Questions": [_choice(seed, person, manner, *question) for question in questions.items()]
            for modality, questions in asked
        },
        "Generation_Task": [
            {"Question": question, "Ground_Truth": topics[name].say(person.facts), "Type": modality}
            for modality, questions in asked
            for name, question in questions.items()
        ],
        "Mask_Task": [
            {"Question": _about(cloze, subject), "Ground_Truth": person.facts[kind], "Type": modality}
            for modality, subject in (("Image_Textual", "this person"), ("Pure_Text", person.name))
            for topic in topics.values()
            for kind, cloze in topic.clozes.items()
        ],
    }


def _about(sentence: str, subject: str) -> str:
    return sentence.replace("This person", subject[0].upper() + subject[1:]).replace("this person", subject)


def _choice(seed: int, person: Person, manner: Manner, name: str, question: str) -> dict[str, Any]:
    rng = stream(seed, "options", person.id, name, question)
    topic = manner.topics[name]
    right = topic.say(person.facts)
    texts = [right, *(topic.say(facts) for facts in manner.wrong_facts(rng, person, name))]
    rng.shuffle(texts)
    return {
        "Question": question,
        "Options": dict(zip("ABCD", texts, strict=True)),
        "Correct_Answer": "ABCD"[texts.index(right)],
    }


def _sidecar_of(people: Sequence[Person], manner: Manner) -> dict[str, Any]:
    """Return the content of the file that marks some people's private words; what is usual is not said."""
    return {
        "schema": "viker/sidecar/1",
        **({} if manner.counts == "first" else {"counts": manner.counts}),
        "candidates": {kind: list(words) for kind, words in manner.candidates.items()},
        "facts": {person.id: person.facts for person in people},
        "names": {person.id: person.name for person in people},
    }
