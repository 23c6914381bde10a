"""Write a mini CLEAR to disk in the published layout, column types and column orders, so that the real reader reads it.

All 21 configs are there with what real files do: pictures and text questions left null, texts null or empty, `full` in
two shards, a `forget10_perturbed` one row short of `forget10`, `real_faces` without a question. Beside them lie what
the embedded benchmark has: `base/` and `looks/` in MLLMU-Bench's training layout (other people and celebrities for the
model a world starts from, described portraits for its vision tower), `pools/`, `sidecar.json`, and `controls/`, a CLEAR
of its own about people nobody is trained on.
Everything is a pure function of the seed; the bytes are the same on every machine with the same Pillow.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from .artefact import begin, decide, finish, write_json
from .clear_rows import CAPTION_QUESTIONS, NAME_QUESTION, PUBLISHED, folder_of
from .example import DataError
from .mini import KINDS, Person, picture_of, stream
from .mini_clear import (
    TOLD,
    ClearWorld,
    Shot,
    caption_of,
    make_clear_world,
    paraphrase_of,
    questions_about,
    wall_of,
    wrong_captions,
    wrong_names,
)
from .mini_files import TRAINING_SCHEMA, about_picture, write_looks, write_pools, write_table
from .portraits import POOLS, SIZE, describe, encode_png

_IMAGE = ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
_TEXTS = pa.list_(pa.string())
_CAPTION, _NAME = ("caption", pa.string()), ("name", pa.string())
_PARAPHRASE = ("paraphrased_caption", pa.string())
_WRONG_CAPTIONS, _WRONG_NAMES = ("perturbed_captions", _TEXTS), ("perturbed_names", _TEXTS)
_QUESTION, _ANSWER, _OPTIONS = ("question", pa.string()), ("answer", pa.string()), ("options", _TEXTS)

PLAIN_SCHEMA = pa.schema([_IMAGE, _CAPTION, _NAME])
TOFU_SCHEMA = pa.schema([_IMAGE, _CAPTION, _QUESTION, _ANSWER])
PERTURBED_SCHEMAS = {
    "forget01": pa.schema([_IMAGE, _CAPTION, _NAME, _WRONG_CAPTIONS, _PARAPHRASE, _WRONG_NAMES]),
    "forget05": pa.schema([_IMAGE, _CAPTION, _NAME, _PARAPHRASE, _WRONG_NAMES, _WRONG_CAPTIONS]),
    "forget10": pa.schema([_IMAGE, _CAPTION, _NAME, _PARAPHRASE, _WRONG_NAMES, _WRONG_CAPTIONS]),
    "retain": pa.schema([_IMAGE, _CAPTION, _PARAPHRASE, _WRONG_CAPTIONS, _NAME, _WRONG_NAMES]),
}
FACES_SCHEMA = pa.schema([_IMAGE, _ANSWER, _OPTIONS])
WORLD_SCHEMA = pa.schema([_QUESTION, _ANSWER, _OPTIONS, _IMAGE])

NUM_RETAIN_SHOTS = 2  # of a person in retain_perturbed, which CLEAR samples too
NUM_THINGS = 24
_FIRST_POSES = {"people": 0, "controls": 0, "base": 10, "faces": 20}
_THINGS = {"pets": "the head of a pet", "scenes": "a wide and quiet landscape", "patterns": "a pattern of two colors"}
_THING_QUESTION = "What kind of picture is this?"


def make_mini_clear(
    directory: Path,
    *,
    seed: int,
    num_people: int,
    ratio: int = 10,
    forget: Sequence[str] = (),
    limit: int | None = None,
    overwrite: bool = False,
) -> bool:
    """Write a mini CLEAR; return whether it had to be written.

    `ratio`, `forget` (names) and `limit` decide no byte of the benchmark: they are recorded for whoever opens it.

    Raises:
        ArtefactMismatch: a complete benchmark made with other options is there.
        DataError: somebody to forget is not in this world.
    """
    world = make_clear_world(seed, num_people)
    names = sorted(person.name for person in world.people)
    if unknown := sorted(set(forget) - set(names)):
        raise DataError(f"--forget: expected names such as {names[0]}, found {', '.join(unknown)}. Name people here.")
    split = {"ratio": ratio, "forget": list(forget), "limit": limit}
    config = {"schema": "viker/data/1", "source": "mini-clear", "seed": seed, "people": num_people, **split}
    if decide(directory, config, overwrite=overwrite, what="benchmark") == "skip":
        return False
    started = time.time()
    begin(directory, config)
    _write_people(directory, world)
    _write_real(directory, world)
    _write_controls(directory / "controls", world)
    _write_base(directory / "base", world)
    write_looks(directory / "looks", seed)
    write_pools(directory / "pools", seed)
    write_json(directory / "sidecar.json", _sidecar(world))
    pointer: dict[str, Any] = {"schema": "viker/source/1", "source": ".", "revision": None, **split}
    write_json(directory / "source.json", pointer)
    finish(directory, {"inputs": {}}, started=started)
    return True


def _shots(world: ClearWorld, person: Person, use: str, count: int) -> list[Shot]:
    first = _FIRST_POSES[use]
    pictures = [picture_of(world.seed, person, first + index) for index in range(count)]
    return [Shot(person, picture, wall_of(picture)) for picture in pictures]


def _num_shots(world: ClearWorld, person: Person) -> int:
    return stream(world.seed, "clear", "shots", person.id).choice((3, 4, 4, 5))


def _write_people(directory: Path, world: ClearWorld) -> None:
    shots = {person.id: _shots(world, person, "people", _num_shots(world, person)) for person in world.people}
    parts: dict[str, Sequence[Person]] = {"full": world.people}
    for ratio, forgotten in world.forget.items():
        parts[f"forget{ratio:02d}"] = [person for person in world.people if person in forgotten]
        parts[f"retain{100 - ratio}"] = [person for person in world.people if person not in forgotten]
    for part, people in parts.items():
        shown = [shot for person in people for shot in shots[person.id]]
        num_files = 2 if part == "full" else 1
        _write_config(directory, part, map(_plain_row, shown), PLAIN_SCHEMA, num_files)
        _write_config(directory, f"{part}+tofu", _tofu_rows(shown, people), TOFU_SCHEMA, num_files)
        if part.startswith("forget"):
            rows = [_perturbed_row(world, shot) for shot in shown]
            kept = rows[:-1] if part == "forget10" else rows
            _write_config(directory, f"{part}_perturbed", kept, PERTURBED_SCHEMAS[part])
    everything = [_plain_row(shot) for person in world.people for shot in shots[person.id]]
    _write_config(directory, "default", everything, PLAIN_SCHEMA)
    retained = [shot for person in parts["retain90"] for shot in shots[person.id][:NUM_RETAIN_SHOTS]]
    rows = [_perturbed_row(world, shot) for shot in retained]
    _write_config(directory, "retain_perturbed", rows, PERTURBED_SCHEMAS["retain"])


def _write_real(directory: Path, world: ClearWorld) -> None:
    names = [person.name for person in world.celebrities]
    faces = [
        {**_image_of(shot), "answer": person.name, "options": _choices(world, f"face {person.id}", names, person.name)}
        for person in world.celebrities
        for shot in _shots(world, person, "faces", 2)
    ]
    _write_config(directory, "real_faces", faces, FACES_SCHEMA)
    things = [
        {
            "question": _THING_QUESTION, "answer": answer, "image": {"bytes": picture, "path": None},
            "options": [other for other in _THINGS.values() if other != answer],
        }
        for picture, answer in _things(world, "real")
    ]  # fmt: skip
    _write_config(directory, "real_world", things, WORLD_SCHEMA)


def _write_controls(directory: Path, world: ClearWorld) -> None:
    shots = [shot for person in world.controls for shot in _shots(world, person, "controls", 4)]
    _write_config(directory, "full", map(_plain_row, shots), PLAIN_SCHEMA)
    _write_config(directory, "full+tofu", _tofu_rows(shots, world.controls), TOFU_SCHEMA)
    rows = [_perturbed_row(world, shot) for shot in shots]
    _write_config(directory, "retain_perturbed", rows, PERTURBED_SCHEMAS["retain"])


def _write_base(directory: Path, world: ClearWorld) -> None:
    """Write what the base model learns: captions, names and facts of some other people, looks, and kinds of picture."""
    rows = []
    for person in (*world.others, *world.celebrities):
        for index, shot in enumerate(_shots(world, person, "base", 3)):
            asked = [(CAPTION_QUESTIONS[(3 * index + offset) % 9], caption_of(shot)) for offset in range(3)]
            asked += [(NAME_QUESTION, person.name), ("Can you say it in other words?", paraphrase_of(shot))]
            asked += questions_about(person) if index == 0 else describe(person.traits).items()
            rows.append(about_picture(person.id, shot.picture, asked))
    for index, (picture, answer) in enumerate(_things(world, "base")):
        rows.append(about_picture(f"T{index:03d}", picture, [(_THING_QUESTION, answer)]))
    write_table(directory / "ft_Data", rows, TRAINING_SCHEMA)


def _things(world: ClearWorld, use: str) -> Iterable[tuple[bytes, str]]:
    """Yield pictures of no person, with what they show."""
    for index in range(NUM_THINGS):
        pool = list(_THINGS)[index % len(_THINGS)]
        yield encode_png(POOLS[pool](stream(world.seed, "clear", use, pool, index), SIZE)), _THINGS[pool]


def _write_config(
    directory: Path, config: str, rows: Iterable[dict[str, Any]], schema: pa.Schema, num_files: int = 1
) -> None:
    assert config in PUBLISHED
    write_table(directory / folder_of(config), list(rows), schema, num_files)


def _image_of(shot: Shot) -> dict[str, Any]:
    return {"image": {"bytes": shot.picture, "path": f"{shot.person.id}.png"}}


def _plain_row(shot: Shot) -> dict[str, Any]:
    return {**_image_of(shot), "caption": caption_of(shot), "name": shot.person.name}


def _perturbed_row(world: ClearWorld, shot: Shot) -> dict[str, Any]:
    return {
        **_plain_row(shot),
        "paraphrased_caption": paraphrase_of(shot),
        "perturbed_captions": wrong_captions(world, shot),
        "perturbed_names": wrong_names(world, shot.person),
    }


def _tofu_rows(shots: Sequence[Shot], people: Sequence[Person]) -> list[dict[str, Any]]:
    """Return rows of pictures, then of text questions; what a row lacks is null in one and empty in the next."""
    captions: list[dict[str, Any]] = [
        {**_plain_row(shot), "question": blank, "answer": blank} for shot, blank in _with_blanks(shots)
    ]
    asked = [pair for person in people for pair in questions_about(person)]
    return captions + [
        {"image": None, "caption": blank, "question": question, "answer": answer}
        for (question, answer), blank in _with_blanks(asked)
    ]


def _with_blanks(items: Sequence[Any]) -> Iterable[tuple[Any, str | None]]:
    return ((item, None if index % 2 else "") for index, item in enumerate(items))


def _choices(world: ClearWorld, purpose: str, names: Sequence[str], right: str) -> list[str]:
    return stream(world.seed, "clear", purpose).sample([name for name in names if name != right], 3)


def _sidecar(world: ClearWorld) -> dict[str, Any]:
    everyone = (*world.people, *world.celebrities, *world.others, *world.controls)
    names = sorted([person.name for person in everyone] + list(world.nobody))
    facts = {person.name: {"name": person.name, **{kind: person.facts[kind] for kind in TOLD}} for person in everyone}
    return {
        "schema": "viker/sidecar/1",
        "candidates": {"name": names, **{kind: list(KINDS[kind].words) for kind in TOLD}},
        "facts": facts,
        "names": {person.name: person.name for person in everyone},
    }
