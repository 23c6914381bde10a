"""Write a world to disk in MLLMU-Bench's published layout and column types, so that the real reader reads it.

Beside the published folders: `base/` and `looks/` (sources of the same layout: other people and celebrities for the
model a world starts from, described portraits for its vision tower), `controls/` (the same questions about people no
model is trained on), `pools/` (reference images, as folders of PNG files) and `sidecar.json` (the private words).
Everything is a pure function of the world's seed; the bytes are the same on every machine with the same Pillow.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .artefact import begin, decide, finish, write_json
from .example import DataError
from .mini import KINDS, Person, World, answer_about, make_world, picture_of, stream
from .portraits import POOLS, describe, draw_portrait, draw_traits, encode_png

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
NUM_TEST_POSES = 2


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
    unknown = sorted(set(forget) - {f"{index + 1:03d}" for index in range(num_people)})
    if unknown:
        raise DataError(f"--forget: expected people 001 to {num_people:03d}, found {', '.join(unknown)}.")
    split = {"ratio": ratio, "forget": list(forget), "limit": limit}
    config = {"schema": "viker/data/1", "source": "mini", "seed": seed, "people": num_people, **split}
    if decide(directory, config, overwrite=overwrite, what="benchmark") == "skip":
        return False
    started = time.time()
    begin(directory, config)
    world = make_world(seed, num_people)
    _write_people(directory, world)
    _write_base(directory / "base", world)
    controls = [_full_row(world.seed, person, pose=0) for person in world.controls]
    write_table(directory / "controls" / "Full_Set", controls, FULL_SCHEMA)
    write_json(directory / "controls" / "sidecar.json", sidecar_of(world.controls))
    write_looks(directory / "looks", seed)
    write_pools(directory / "pools", seed)
    write_json(directory / "sidecar.json", sidecar_of((*world.people, *world.celebrities, *world.others)))
    pointer: dict[str, Any] = {"schema": "viker/source/1", "source": ".", "revision": None, **split}
    write_json(directory / "source.json", pointer)
    finish(directory, {"inputs": {}}, started=started)
    return True


def _write_people(directory: Path, world: World) -> None:
    rows = {person.id: _full_row(world.seed, person, pose=0) for person in world.people}
    write_table(directory / "Full_Set", list(rows.values()), FULL_SCHEMA)
    for ratio, forget in world.forget.items():
        kept = [row for person_id, row in rows.items() if person_id not in forget]
        write_table(directory / f"forget_{ratio}", [rows[person_id] for person_id in forget], SPLIT_SCHEMA)
        write_table(directory / f"retain_{100 - ratio}", kept, SPLIT_SCHEMA)
    write_table(
        directory / "Retain_Set", [_full_row(world.seed, person, 0) for person in world.celebrities], FULL_SCHEMA
    )
    write_table(
        directory / "Test_Set", [_test_row(world.seed, person) for person in world.people], TEST_SCHEMA, num_files=2
    )
    training = [_training_row(world.seed, person, pose=0, phrasings=(0, 1)) for person in world.people]
    write_table(directory / "ft_Data", training, TRAINING_SCHEMA)


def _write_base(directory: Path, world: World) -> None:
    """Write what the base model learns: the facts and looks of some other people and of the celebrities."""
    rows = [
        _training_row(world.seed, person, pose, phrasings=(0, 1, 2), extra=describe(person.traits))
        for person in (*world.others, *world.celebrities)
        for pose in range(NUM_OTHER_POSES)
    ]
    write_table(directory / "ft_Data", rows, TRAINING_SCHEMA)


def write_looks(directory: Path, seed: int) -> None:
    """Write described portraits of nobody in particular: what a vision tower learns to see from."""
    rows = []
    for index in range(NUM_LOOKS):
        rng = stream(seed, "looks", index)
        traits = draw_traits(rng)
        picture = encode_png(draw_portrait(traits, rng))
        rows.append(about_picture(f"L{index:04d}", picture, list(describe(traits).items())))
    write_table(directory / "ft_Data", rows, TRAINING_SCHEMA)


def write_pools(directory: Path, seed: int) -> None:
    """Write the reference pools, a folder of pictures each."""
    for pool, draw in POOLS.items():
        (directory / pool).mkdir(parents=True)
        for index in range(POOL_SIZE):
            picture = encode_png(draw(stream(seed, "pool", pool, index)))
            (directory / pool / f"{index:03d}.png").write_bytes(picture)


def write_table(folder: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema, num_files: int = 1) -> None:
    """Write rows as a published folder, in so many files."""
    folder.mkdir(parents=True)
    per_file = -(-len(rows) // num_files)
    for index in range(num_files):
        part = [{name: row[name] for name in schema.names} for row in rows[index * per_file : (index + 1) * per_file]]
        path = folder / f"train-{index:05d}-of-{num_files:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=schema), path, row_group_size=16)


def _full_row(seed: int, person: Person, pose: int) -> dict[str, Any]:
    return {
        "image": {"bytes": picture_of(seed, person, pose), "path": f"{person.id}.png"},
        "ID": person.id,
        "Directory": f"images/{person.id}.png",
        "biography": json.dumps({"Name": person.name, **person.facts}, ensure_ascii=False),
        "question": KINDS["occupation"].questions[0],
        "answer": answer_about(person, "occupation"),
        **_tasks(seed, person, phrasing=0),
    }


def _test_row(seed: int, person: Person) -> dict[str, Any]:
    poses = range(100, 100 + NUM_TEST_POSES)
    images = [{"bytes": picture_of(seed, person, pose), "path": f"{person.id}_pose{pose}.png"} for pose in poses]
    return {"images": images, "ID": person.id, **_tasks(seed, person, phrasing=2)}


def _training_row(
    seed: int, person: Person, pose: int, phrasings: Iterable[int], extra: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    asked = [(KINDS[kind].questions[phrasing], answer_about(person, kind)) for kind in KINDS for phrasing in phrasings]
    return about_picture(person.id, picture_of(seed, person, pose), [*asked, *extra.items()])


def about_picture(person_id: str, picture: bytes, asked: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return a row of training text about one picture."""
    questions = [{"ID": person_id, "Question": question, "Answer": answer} for question, answer in asked]
    image = {"bytes": picture, "path": f"{person_id}.png"}
    return {"image": image, "ID": person_id, "metadata": json.dumps(questions, ensure_ascii=False)}


def _tasks(seed: int, person: Person, phrasing: int) -> dict[str, Any]:
    shown = {kind: spec.questions[phrasing] for kind, spec in KINDS.items()}
    named = {kind: spec.text_question.format(name=person.name) for kind, spec in KINDS.items()}
    asked = (("Image_Textual", shown), ("Pure_Text", named))
    return {
        "Classification_Task": {
            "Image_Textual_Questions": [_choice(seed, person, kind, question) for kind, question in shown.items()],
            "Pure_Text_Questions": [_choice(seed, person, kind, question) for kind, question in named.items()],
        },
        "Generation_Task": [
            {"Question": question, "Ground_Truth": answer_about(person, kind), "Type": modality}
            for modality, questions in asked
            for kind, question in questions.items()
        ],
        "Mask_Task": [
            {"Question": cloze, "Ground_Truth": person.facts[kind], "Type": modality}
            for modality in ("Image_Textual", "Pure_Text")
            for kind, cloze in _clozes(person, modality).items()
        ],
    }


def _clozes(person: Person, modality: str) -> dict[str, str]:
    subject = "this person" if modality == "Image_Textual" else person.name
    return {kind: _about(spec.cloze, subject) for kind, spec in KINDS.items()}


def _about(sentence: str, subject: str) -> str:
    return sentence.replace("This person", subject[0].upper() + subject[1:]).replace("this person", subject)


def _choice(seed: int, person: Person, kind: str, question: str) -> dict[str, Any]:
    rng = stream(seed, "options", person.id, kind, question)
    right = person.facts[kind]
    texts = [right, *rng.sample([word for word in KINDS[kind].words if word != right], 3)]
    rng.shuffle(texts)
    options = {letter: KINDS[kind].answer.format(text) for letter, text in zip("ABCD", texts, strict=True)}
    return {"Question": question, "Options": options, "Correct_Answer": "ABCD"[texts.index(right)]}


def sidecar_of(people: Sequence[Person]) -> dict[str, Any]:
    """Return the content of the file that marks some people's private words."""
    return {
        "schema": "viker/sidecar/1",
        "candidates": {kind: list(spec.words) for kind, spec in KINDS.items()},
        "facts": {person.id: person.facts for person in people},
        "names": {person.id: person.name for person in people},
    }
