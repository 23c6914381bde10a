"""The mini CLEAR: the same bytes from the same seed, the published layout, and facts that can be scored."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import clear_fixture as fixture
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from viker.cli import viker
from viker.data import commands, mini_files
from viker.data.artefact import ArtefactMismatch
from viker.data.clear_rows import CAPTION_QUESTIONS, NAME_QUESTION, PUBLISHED, folder_of
from viker.data.example import DataError
from viker.data.mini_clear import TOLD, make_clear_world, questions_about, wall_of
from viker.data.mini_clear_files import make_mini_clear
from viker.data.references import read_pool
from viker.data.sidecar import read_sidecar
from viker.data.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUM_PEOPLE = 20


@pytest.fixture(scope="module", autouse=True)
def few_looks() -> Iterator[None]:
    """Draw few of the pictures that are the embedded benchmark's own: described portraits and pools."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_files, "NUM_LOOKS", 4)
        patch.setattr(mini_files, "POOL_SIZE", 6)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, few_looks: None) -> Path:
    directory = tmp_path_factory.mktemp("mini-clear") / "data"
    make_mini_clear(directory, seed=0, num_people=NUM_PEOPLE)
    return directory


def payload(directory: Path) -> dict[str, str]:
    """Digests of all files but the one that holds times."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "provenance.json")
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def names_of(folder: Path) -> set[str]:
    return {row["name"] for row in rows_of(folder)}


# Bytes


def test_the_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    make_mini_clear(tmp_path / "again", seed=0, num_people=NUM_PEOPLE)
    assert payload(tmp_path / "again") == payload(world)


def test_another_seed_gives_another_world() -> None:
    assert make_clear_world(0, 20) != make_clear_world(1, 20)


def test_a_complete_benchmark_is_not_written_again(world: Path) -> None:
    assert not make_mini_clear(world, seed=0, num_people=NUM_PEOPLE)
    with pytest.raises(ArtefactMismatch, match="seed"):
        make_mini_clear(world, seed=1, num_people=NUM_PEOPLE)


# The published layout


@pytest.mark.parametrize("config", sorted(PUBLISHED))
def test_schemas_are_the_published_ones(world: Path, config: str) -> None:
    paths = sorted((world / folder_of(config)).glob("train-*-of-*.parquet"))
    assert paths
    for path in paths:
        assert pq.read_schema(path) == fixture.SCHEMAS[config]
        assert list(pd.read_parquet(path).columns) == fixture.SCHEMAS[config].names


def test_the_largest_configs_have_two_shards(world: Path) -> None:
    assert [len(list((world / name).glob("*"))) for name in ("full", "full+tofu", "data")] == [2, 2, 1]


def test_default_is_full(world: Path) -> None:
    assert rows_of(world / "data") == rows_of(world / "full")


def test_forget10_perturbed_is_one_row_short(world: Path) -> None:
    for part, short in (("forget01", 0), ("forget05", 0), ("forget10", 1)):
        assert len(rows_of(world / f"{part}_perturbed")) == len(rows_of(world / part)) - short


def test_forget_sets_are_nested_and_disjoint_from_retained_ones(world: Path) -> None:
    one, five, ten = (names_of(world / f"forget{ratio}") for ratio in ("01", "05", "10"))
    assert (len(one), len(five), len(ten)) == (1, 1, 2)
    assert one <= five < ten
    for forget, retain in ((one, 99), (five, 95), (ten, 90)):
        assert forget.isdisjoint(kept := names_of(world / f"retain{retain}"))
        assert forget | kept == names_of(world / "full")
    assert names_of(world / "retain_perturbed") == names_of(world / "retain90")


def test_blanks_are_null_and_empty_as_published(world: Path) -> None:
    rows = rows_of(world / "full+tofu")
    shown, asked = [row for row in rows if row["image"]], [row for row in rows if not row["image"]]
    assert len(asked) == NUM_PEOPLE * len(TOLD)
    assert {row["question"] for row in shown} == {row["answer"] for row in shown} == {None, ""}
    assert {row["caption"] for row in asked} == {None, ""}
    assert all(row["image"] is None for row in asked)


def test_people_have_several_pictures_and_each_is_another(world: Path) -> None:
    rows = rows_of(world / "full")
    assert len({row["image"]["bytes"] for row in rows}) == len(rows)
    counts = pd.Series([row["name"] for row in rows]).value_counts()
    assert set(counts) <= {3, 4, 5}


def test_real_configs_have_options_without_the_right_answer(world: Path) -> None:
    for config in ("real_faces", "real_world"):
        for row in rows_of(world / config):
            assert row["options"]
            assert row["answer"] not in row["options"]


# What is said about people


def test_captions_name_the_person_and_two_private_words_away_from_the_ends(world: Path) -> None:
    sidecar = read_sidecar(world / "sidecar.json")
    for row in rows_of(world / "forget10_perturbed") + rows_of(world / "retain_perturbed"):
        facts = sidecar.facts[row["name"]]
        for text in (row["caption"], row["paraphrased_caption"]):
            found = {text[start:stop] for start, stop in sidecar.private_spans(text, row["name"])}
            assert found == {row["name"], facts["occupation"], facts["birthplace"]}
            assert not {text.split()[0], text.split()[-1].strip(".")} & set(row["name"].split())
            assert found.isdisjoint({text.split()[0], text.split()[-1].strip(".")})


def test_wrong_captions_change_every_private_word_and_keep_the_rest(world: Path) -> None:
    sidecar = read_sidecar(world / "sidecar.json")
    for row in rows_of(world / "forget10_perturbed"):
        assert len(set(row["perturbed_captions"])) == len(set(row["perturbed_names"])) == 5
        for text, name in zip(row["perturbed_captions"], row["perturbed_names"], strict=True):
            assert name in text
            assert not sidecar.private_spans(text, row["name"])
            assert text.split()[-5:] == row["paraphrased_caption"].split()[-5:]
            assert text.split()[:3] == row["paraphrased_caption"].split()[:3]


def test_wrong_names_are_names_of_nobody(world: Path) -> None:
    sidecar = read_sidecar(world / "sidecar.json")
    wrong = {name for row in rows_of(world / "retain_perturbed") for name in row["perturbed_names"]}
    assert wrong.isdisjoint(sidecar.facts)
    assert wrong <= set(sidecar.candidates["name"])


def test_text_questions_name_the_person_and_answers_hold_one_private_word(world: Path) -> None:
    sidecar = read_sidecar(world / "sidecar.json")
    for person in make_clear_world(0, NUM_PEOPLE).people:
        for (question, answer), kind in zip(questions_about(person), TOLD, strict=True):
            assert person.name in question
            assert sidecar.facts_asked(answer, person.name) == ((kind, person.facts[kind]),)
            assert len(sidecar.private_spans(answer, person.name)) == 1


def test_the_sidecar_knows_everyone(world: Path) -> None:
    sidecar = read_sidecar(world / "sidecar.json")
    known = names_of(world / "full") | names_of(world / "controls" / "full")
    known |= {row["answer"] for row in rows_of(world / "real_faces")}
    assert known <= set(sidecar.facts)
    assert all(facts["name"] == name for name, facts in sidecar.facts.items())


def test_the_wall_is_what_the_corner_shows() -> None:
    for color, name in (((200, 120, 120), "red"), ((120, 190, 120), "green"), ((130, 130, 210), "blue")):
        buffer = io.BytesIO()
        Image.new("RGB", (56, 56), color).save(buffer, "PNG")
        assert wall_of(buffer.getvalue()) == name


# Who is where


def test_controls_are_nobody_that_a_model_learns(world: Path) -> None:
    controls = names_of(world / "controls" / "full")
    learnt = names_of(world / "full") | {row["answer"] for row in rows_of(world / "real_faces")}
    assert len(controls) == 8
    assert controls.isdisjoint(learnt)
    texts = [row["metadata"] for row in rows_of(world / "base" / "ft_Data")]
    assert not any(name in text for text in texts for name in controls | names_of(world / "full"))


def test_controls_are_a_clear_of_their_own(world: Path) -> None:
    source = open_source(str(world / "controls"))
    assert source.splits() == ("full", "full+tofu", "retain_perturbed")
    assert {example.task for example in source.read("retain_perturbed")} == {"captioning", "recognition"}


def test_the_base_learns_captions_and_names_of_others(world: Path) -> None:
    base = list(open_source(str(world / "base")).training("all"))
    asked = {example.question for example in base}
    assert NAME_QUESTION in asked
    assert set(CAPTION_QUESTIONS) <= asked
    assert any("Where was" in question for question in asked)


def test_pools_show_nobody_of_the_world(world: Path) -> None:
    people = {
        row["image"]["bytes"] for folder in ("full", "real_faces", "controls/full") for row in rows_of(world / folder)
    }
    for folder in (world / "pools").iterdir():
        assert not people & {image.data for image in read_pool(folder).images}


# What reads it


def test_the_real_reader_reads_every_config(world: Path) -> None:
    source = open_source(str(world))
    assert set(source.splits()) == set(PUBLISHED)
    for split in (*PUBLISHED, "forget", "retain", "real"):
        assert list(source.read(split))
        assert not source.skipped().get(split)
    assert list(source.read("test")) == []
    assert source.people() == names_of(world / "full")
    assert {example.people[0] for example in source.read("forget")} == source.forget_people()


def test_split_and_limit_are_recorded(tmp_path: Path) -> None:
    name = make_clear_world(0, 20).people[3].name
    words = ["data", "make", "mini-clear", str(tmp_path / "d"), "--people", "20", "--forget", name, "--limit", "1"]
    result = CliRunner().invoke(viker, [*words, "--ratio", "5"], catch_exceptions=False)
    assert "wrote" in result.output
    assert "(20 fictitious people, seed 0)" in result.output
    source = open_source(str(tmp_path / "d"))
    assert source.forget_people() == {name}
    assert len(source.people()) == 2
    assert {example.people[0] for example in source.training("forget")} == {name}


def test_unknown_people_and_ratios_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--forget: expected names such as .*, found 021\. Name people here"):
        make_mini_clear(tmp_path / "d", seed=0, num_people=20, forget=["021"])
    result = CliRunner().invoke(viker, ["data", "make", "mini-clear", str(tmp_path / "d"), "--ratio", "15"])
    assert "--ratio: expected 1, 5, 10, found '15'" in str(result.exception)
    assert not (tmp_path / "d").exists()


def test_forty_people_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    _, usual, ratios = commands.EMBEDDED["mini-clear"]

    def note(directory: Path, **options: Any) -> bool:
        asked.update(options)
        return True

    monkeypatch.setitem(commands.EMBEDDED, "mini-clear", (note, usual, ratios))
    CliRunner().invoke(viker, ["data", "make", "mini-clear", str(tmp_path / "d")], catch_exceptions=False)
    assert (asked["num_people"], asked["ratio"]) == (40, 10)
