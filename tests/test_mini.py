"""The embedded benchmark: the same bytes from the same seed, the published layout, and facts that can be scored."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from conftest import NUM_PEOPLE
from PIL import Image
from viker.data.artefact import ArtefactMismatch
from viker.data.mini import KINDS, make_world
from viker.data.mini_files import make_mini
from viker.data.references import read_pool
from viker.data.sidecar import fact_in, read_sidecar
from viker.data.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

_IMAGE = "struct<bytes: binary, path: string>"
_OPTIONS = "struct<A: string, B: string, C: string, D: string>"
_CHOICES = f"list<element: struct<Correct_Answer: string, Options: {_OPTIONS}, Question: string>>"
_OPEN = "list<element: struct<Ground_Truth: string, Question: string, Type: string>>"
_TASKS = {
    "Classification_Task": f"struct<Image_Textual_Questions: {_CHOICES}, Pure_Text_Questions: {_CHOICES}>",
    "Generation_Task": _OPEN,
    "Mask_Task": _OPEN,
}
_PROFILE = dict.fromkeys(("biography", "question", "answer"), "string")
COLUMNS = {
    "forget_10": {"image": _IMAGE, "ID": "string", **_PROFILE, **_TASKS},
    "Full_Set": {"image": _IMAGE, "ID": "string", "Directory": "string", **_PROFILE, **_TASKS},
    "Test_Set": {"images": f"list<element: {_IMAGE}>", "ID": "string", **_TASKS},
    "ft_Data": {"image": _IMAGE, "ID": "string", "metadata": "string"},
}
COLUMNS |= dict.fromkeys(("forget_5", "forget_15", "retain_95", "retain_90", "retain_85"), COLUMNS["forget_10"])
COLUMNS |= {"Retain_Set": COLUMNS["Full_Set"]}


def payload(directory: Path) -> dict[str, str]:
    """Digests of all files but the one that holds times."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "provenance.json")
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def ids(folder: Path) -> set[str]:
    return {row["ID"] for row in read_rows(folder)}


def pictures(folder: Path) -> set[bytes]:
    found = set()
    for row in read_rows(folder):
        found |= {image["bytes"] for image in row.get("images", [row.get("image")])}
    return found


def test_the_same_seed_gives_the_same_bytes(mini_world, tmp_path):
    make_mini(tmp_path / "again", seed=0, num_people=NUM_PEOPLE)
    assert payload(tmp_path / "again") == payload(mini_world)


def test_another_seed_gives_another_world():
    assert make_world(0, 6) != make_world(1, 6)


def test_a_complete_benchmark_is_not_written_again(mini_world):
    assert not make_mini(mini_world, seed=0, num_people=NUM_PEOPLE)


def test_a_benchmark_of_another_seed_is_an_error(mini_world):
    with pytest.raises(ArtefactMismatch, match="seed"):
        make_mini(mini_world, seed=1, num_people=NUM_PEOPLE)


@pytest.mark.parametrize("folder", sorted(COLUMNS))
def test_folders_have_the_published_columns(mini_world, folder):
    for path in sorted((mini_world / folder).glob("*.parquet")):
        schema = pq.read_schema(path)
        assert {field.name: str(field.type) for field in schema} == COLUMNS[folder]
        assert schema.names == list(COLUMNS[folder])


def test_splits_divide_everyone(mini_world):
    for ratio in (5, 10, 15):
        forget, retain = ids(mini_world / f"forget_{ratio}"), ids(mini_world / f"retain_{100 - ratio}")
        assert not forget & retain
        assert forget | retain == ids(mini_world / "Full_Set")
        assert len(forget) == NUM_PEOPLE * ratio // 100


def test_splits_are_not_nested():
    forget = make_world(0, 60).forget
    assert not set(forget[5]) <= set(forget[10])
    assert not set(forget[10]) <= set(forget[15])


def test_the_real_reader_reads_every_split(mini_world):
    source = open_source(str(mini_world))
    assert source.forget_people() == ids(mini_world / "forget_10")
    for split in ("forget", "retain", "test", "real"):
        examples = list(source.read(split))
        assert examples
        assert not source.skipped().get(split)
    assert {example.people[0] for example in source.read("test")} == source.forget_people()


def test_the_sidecar_is_readable_and_knows_everyone(mini_world):
    sidecar = read_sidecar(mini_world / "sidecar.json")
    assert set(sidecar.candidates) == set(KINDS)
    assert ids(mini_world / "Full_Set") | ids(mini_world / "base" / "ft_Data") <= set(sidecar.facts)


def test_no_candidate_belongs_to_two_kinds():
    words = [word.casefold() for kind in KINDS.values() for word in kind.words]
    assert len(words) == len(set(words))


def test_no_candidate_appears_in_a_question_or_in_the_words_around_a_fact():
    words = {word.casefold() for kind in KINDS.values() for word in kind.words}
    for kind in KINDS.values():
        for text in (*kind.questions, kind.answer, kind.text_question, kind.cloze):
            assert not words & set(text.casefold().replace("?", " ").replace(".", " ").split())


def test_an_answer_holds_its_own_private_word_and_no_other(mini_world):
    sidecar = read_sidecar(mini_world / "sidecar.json")
    for row in read_rows(mini_world / "ft_Data"):
        for pair in json.loads(row["metadata"]):
            stated = [
                kind
                for kind, word in sidecar.facts[row["ID"]].items()
                if fact_in(pair["Answer"], kind, word, sidecar.candidates)
            ]
            assert len(stated) == 1
            assert len(sidecar.private_spans(pair["Answer"], row["ID"])) == 1


def test_an_answer_neither_begins_nor_ends_with_its_private_word():
    for kind in KINDS.values():
        first, last = kind.answer.split()[0], kind.answer.split()[-1]
        assert "{}" not in first + last


def test_the_last_phrasing_is_never_trained_on_people_of_the_world(mini_world):
    held_out = {kind.questions[2] for kind in KINDS.values()}
    trained = {pair["Question"] for row in read_rows(mini_world / "ft_Data") for pair in json.loads(row["metadata"])}
    asked = {pair["Question"] for row in read_rows(mini_world / "Test_Set") for pair in row["Generation_Task"]}
    assert not trained & held_out
    assert held_out <= asked


def test_test_pictures_are_other_pictures_than_the_one_trained_on(mini_world):
    assert not pictures(mini_world / "Test_Set") & pictures(mini_world / "ft_Data")
    assert len(pictures(mini_world / "Test_Set")) == 2 * NUM_PEOPLE


def test_the_base_learns_from_nobody_who_could_be_forgotten(mini_world):
    assert not ids(mini_world / "base" / "ft_Data") & ids(mini_world / "Full_Set")


def test_pools_show_nobody_of_the_world(mini_world):
    folders = ("Full_Set", "Test_Set", "ft_Data", "Retain_Set", "base/ft_Data")
    people = {hashlib.sha256(data).hexdigest() for folder in folders for data in pictures(mini_world / folder)}
    pools = sorted((mini_world / "pools").iterdir())
    assert pools
    for folder in pools:
        pool = {image.sha256 for image in read_pool(folder).images}
        assert len(pool) == 48
        assert not pool & people


def test_answer_options_are_four_different_candidates_one_of_them_right(mini_world):
    sidecar = read_sidecar(mini_world / "sidecar.json")
    for row in read_rows(mini_world / "forget_10"):
        for question in row["Classification_Task"]["Image_Textual_Questions"]:
            options = question["Options"]
            assert len(set(options.values())) == 4
            right = options[question["Correct_Answer"]]
            assert any(
                fact_in(right, kind, word, sidecar.candidates) for kind, word in sidecar.facts[row["ID"]].items()
            )


DRAWN = {  # quarters of the picture, three channels each
    "people": (135, 156, 132, 134, 156, 132, 123, 147, 112, 123, 148, 115),
    "pets": (82, 90, 116, 84, 91, 117, 89, 94, 122, 85, 92, 119),
    "scenes": (176, 185, 77, 167, 181, 75, 126, 83, 93, 126, 95, 65),
    "patterns": (116, 94, 25, 119, 98, 25, 116, 94, 25, 119, 98, 25),
    "001": (173, 127, 163, 181, 132, 176, 154, 143, 144, 159, 141, 157),
}


def test_the_ordinary_world_is_what_it_was(mini_world):
    """Golden, from before there was a harder world: all texts and splits, and what pictures look like.

    Another Pillow may draw an edge otherwise, so pictures are compared by the colors of their quarters.
    """
    told = hashlib.sha256()
    for folder in (*sorted(COLUMNS), "base/ft_Data", "looks/ft_Data", "controls/Full_Set"):
        for row in read_rows(mini_world / folder):
            for image in [row.pop("image", None), *row.pop("images", [])]:
                told.update((image or {}).get("path", "").encode())
            told.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    for name in ("sidecar.json", "controls/sidecar.json", "config.json", "source.json"):
        told.update((mini_world / name).read_bytes())
    assert told.hexdigest() == "2b3a03930f80cde1b5c6e3e0e5baacedfbf1c7864470f709d1a32c08e40e04d4"
    found = {name: (mini_world / "pools" / name / "000.png").read_bytes() for name in DRAWN if name != "001"}
    found["001"] = next(row["image"]["bytes"] for row in read_rows(mini_world / "ft_Data") if row["ID"] == "001")
    for name, data in found.items():
        quarters = Image.open(io.BytesIO(data)).convert("RGB").resize((2, 2), Image.Resampling.BOX)
        assert tuple(quarters.tobytes()) == pytest.approx(DRAWN[name], abs=3)
