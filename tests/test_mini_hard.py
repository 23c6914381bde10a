"""The harder world: look-alikes, shared and dependent facts, several facts an answer, two pictures, one layout."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from test_mini import COLUMNS, ids, payload, pictures, read_rows
from viker.cli import viker
from viker.data import mini_files
from viker.data.artefact import ArtefactMismatch
from viker.data.mini_hard import CANDIDATES, HARD_TOPICS, SHARED, HardWorld, make_hard_world, wrong_hard_facts
from viker.data.mini_hard_files import SIZE, make_mini_hard
from viker.data.notices import NOTICES
from viker.data.portraits import VISIBLE, draw_traits, look_alike
from viker.data.sidecar import fact_in, read_sidecar
from viker.data.sources import open_source
from viker.evaluate.answers import Answer
from viker.evaluate.recall import fact_counts

if TYPE_CHECKING:
    from pathlib import Path

NUM_PEOPLE = 20
WORLDS = [(seed, num_people) for seed in range(4) for num_people in (20, 33, 60, 200)]


def few_drawings(patch: pytest.MonkeyPatch) -> None:
    """Draw few of the pictures that show nobody of the world."""
    patch.setattr(mini_files, "NUM_LOOKS", 4)
    patch.setattr(mini_files, "POOL_SIZE", 2)


@pytest.fixture(scope="module")
def hard_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hard") / "data"
    with pytest.MonkeyPatch.context() as patch:
        few_drawings(patch)
        make_mini_hard(directory, seed=0, num_people=NUM_PEOPLE)
    return directory


@pytest.fixture(params=WORLDS, ids=lambda drawn: f"seed {drawn[0]}, {drawn[1]} people")
def world(request: pytest.FixtureRequest) -> HardWorld:
    return make_hard_world(*request.param)


def training_pairs(world: Path, folder: str = "ft_Data") -> list[tuple[str, str, str]]:
    rows = read_rows(world / folder)
    return [(row["ID"], pair["Question"], pair["Answer"]) for row in rows for pair in json.loads(row["metadata"])]


# ---- who looks like whom ---------------------------------------------------------------------------------------------


def test_look_alikes_differ_in_one_or_two_traits_from_the_eldest_and_in_some_from_each_other(world: HardWorld) -> None:
    people = {person.id: person for person in world.people}
    for family in world.families:
        looks = [dataclasses.asdict(people[person].traits) for person in family]
        differences = [{name for name in VISIBLE if other[name] != looks[0][name]} for other in looks[1:]]
        assert all(1 <= len(names) <= 2 for names in differences)
        assert len(set().union(*differences)) == sum(map(len, differences)), "nobody changes what another does"
        for other in looks[1:]:
            assert {name for name in other if name not in VISIBLE and other[name] != looks[0][name]} == set()


def test_more_than_half_of_the_people_have_a_look_alike_and_their_family_name(world: HardWorld) -> None:
    people = {person.id: person for person in world.people}
    alike = [person for family in world.families for person in family]
    assert len(alike) == len(set(alike)) >= 0.6 * len(people)
    assert len(alike) < len(people), "some look like nobody"
    for family in world.families:
        assert len({people[person].name.split()[-1] for person in family}) == 1
    everyone = (*world.people, *world.celebrities, *world.others, *world.controls)
    assert len({person.name for person in everyone}) == len(everyone)


def test_every_split_parts_a_family(world: HardWorld) -> None:
    for forget in world.forget.values():
        parted = [family for family in world.families if len(set(family) & set(forget)) == 1]
        assert parted


def test_a_look_alike_changes_what_it_is_told_to_and_colors_plainly() -> None:
    traits = draw_traits(random.Random(3))
    for name in VISIBLE:
        other = look_alike(traits, [name], random.Random(4))
        changed = {field.name for field in dataclasses.fields(traits)
                   if getattr(traits, field.name) != getattr(other, field.name)}  # fmt: skip
        assert changed == {name}


# ---- who shares what -------------------------------------------------------------------------------------------------


def test_every_word_of_a_shared_kind_is_several_people_s_and_stays_somebody_s(world: HardWorld) -> None:
    for kind in SHARED:
        bearers = Counter(person.facts[kind] for person in world.people)
        assert min(bearers.values()) >= 3
        assert set(bearers) == set(world.words[kind])
        for forget in world.forget.values():
            retained = {person.facts[kind] for person in world.people if person.id not in forget}
            assert retained == set(bearers)


def test_splits_are_of_the_published_sizes(world: HardWorld) -> None:
    for ratio, forget in world.forget.items():
        assert len(set(forget)) == len(forget) == max(1, round(len(world.people) * ratio / 100))


# ---- which word follows from which -----------------------------------------------------------------------------------


def test_a_town_has_one_street_and_an_occupation_two_employers(world: HardWorld) -> None:
    for person in (*world.people, *world.controls):
        assert person.facts["street"] == world.streets[person.facts["town"]]
        assert person.facts["employer"] in world.employers[person.facts["occupation"]]
    assert len(set(world.streets.values())) == len(world.streets)
    assert Counter(firm for pair in world.employers.values() for firm in pair) == dict.fromkeys(
        CANDIDATES["employer"], 2
    )


def test_the_base_learns_from_people_who_live_and_work_anywhere() -> None:
    world = make_hard_world(0, 200)
    strangers = (*world.others, *world.celebrities)
    for first, second in (("town", "street"), ("occupation", "employer")):
        pairs = Counter((person.facts[first], person.facts[second]) for person in strangers)
        assert len(pairs) > 100, "no word decides another there"


def test_wrong_facts_are_wrong_in_every_word_but_in_order() -> None:
    world = make_hard_world(1, 40)
    for person in world.people:
        for wrong in wrong_hard_facts(world, random.Random(person.id), person):
            assert list(wrong) == list(CANDIDATES)
            assert not {kind for kind in CANDIDATES if kind != "employer" and wrong[kind] == person.facts[kind]}
            assert wrong["street"] == world.streets[wrong["town"]]
            assert wrong["employer"] in world.employers[wrong["occupation"]]


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_no_candidate_belongs_to_two_kinds_or_is_among_the_words_around() -> None:
    words = [word.casefold() for kind in CANDIDATES.values() for word in kind]
    assert len(words) == len(set(words))
    for topic in HARD_TOPICS.values():
        for text in (*topic.questions, topic.answer, topic.text_question, *topic.clozes.values()):
            assert not set(words) & set(text.casefold().replace("?", " ").replace(".", " ").replace(",", " ").split())


def test_every_kind_is_told_and_asked_by_itself_once() -> None:
    asked = [kind for topic in HARD_TOPICS.values() for kind in topic.clozes]
    assert sorted(asked) == sorted(CANDIDATES)
    for topic in HARD_TOPICS.values():
        assert all("__" in cloze for cloze in topic.clozes.values())
        assert len(set(topic.questions)) == 3


def test_answers_hold_as_many_facts_as_they_ask_for_and_all_are_marked(hard_world: Path) -> None:
    sidecar = read_sidecar(hard_world / "sidecar.json")
    assert sidecar.counts == "all"
    found: Counter[int] = Counter()
    for person, _, answer in training_pairs(hard_world):
        spans = sidecar.private_spans(answer, person)
        asked = sidecar.facts_asked(answer, person)
        assert [answer[start:stop].casefold() for start, stop in spans] == [word.casefold() for _, word in asked]
        assert all(fact_in(answer, kind, word, sidecar.candidates) for kind, word in asked)
        found[len(asked)] += 1
    each = NUM_PEOPLE * 2 * 2  # pictures, phrasings
    assert found == {1: 2 * each, 2: 2 * each, 3: each, 5: each}


def test_private_words_are_early_in_some_answers_and_last_in_another(hard_world: Path) -> None:
    sidecar = read_sidecar(hard_world / "sidecar.json")
    places: Counter[str] = Counter()
    for person, _, answer in training_pairs(hard_world):
        spans = sidecar.private_spans(answer, person)
        places["first" if spans[0][0] == 0 else "second" if answer[: spans[0][0]].count(" ") == 1 else "later"] += 1
        places["last"] += answer[spans[-1][1] :] == "."
    each = NUM_PEOPLE * 2 * 2
    assert places == {"first": each, "second": 2 * each, "later": 3 * each, "last": 2 * each}


def test_every_fact_of_an_answer_counts_by_itself(hard_world: Path) -> None:
    sidecar = read_sidecar(hard_world / "sidecar.json")
    shown = [example for example in open_source(str(hard_world)).read("forget") if example.task == "generation"]
    example = next(one for one in shown if "by trade" in one.answer)
    person = example.people[0]
    facts = sidecar.facts[person]
    other = next(word for word in CANDIDATES["year"] if word != facts["year"])

    def counted(reply: str) -> tuple[int, int]:
        answer = Answer(model="m", split="forget", task="generation", modality="image", person=person, id=example.id,
                        question=example.question, expected=example.answer, reply=reply)  # fmt: skip
        return fact_counts(answer, sidecar)

    assert counted(example.answer) == (3, 3)
    assert counted(example.answer.replace(facts["year"], other)) == (2, 3)
    assert counted(f"{facts['occupation']} since {facts['year']} or {other}") == (1, 3)
    assert counted("nobody knows") == (0, 3)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(COLUMNS))
def test_folders_have_the_published_columns(hard_world: Path, folder: str) -> None:
    for path in sorted((hard_world / folder).glob("*.parquet")):
        schema = pq.read_schema(path)
        assert {field.name: str(field.type) for field in schema} == COLUMNS[folder]
        assert schema.names == list(COLUMNS[folder])


def test_the_real_reader_reads_every_split_and_leaves_nothing_out(hard_world: Path) -> None:
    source = open_source(str(hard_world))
    assert source.forget_people() == ids(hard_world / "forget_10")
    for split in ("forget", "retain", "test", "real"):
        assert list(source.read(split))
        assert not source.skipped().get(split)
    assert len(list(open_source(str(hard_world / "controls")).read("Full_Set")))


def test_everybody_is_trained_on_in_two_pictures_and_tested_on_three_others(hard_world: Path) -> None:
    shown: dict[str, set[str]] = {}
    examples = list(open_source(str(hard_world)).training("all"))
    for example in examples:
        shown.setdefault(example.people[0], set()).add(example.images[0].sha256)
    assert {len(images) for images in shown.values()} == {2}
    assert len({example.id for example in examples}) == len(examples) == NUM_PEOPLE * 2 * 2 * len(HARD_TOPICS)
    assert all(len(row["images"]) == 3 for row in read_rows(hard_world / "Test_Set"))
    assert not pictures(hard_world / "Test_Set") & pictures(hard_world / "ft_Data")
    assert pictures(hard_world / "Full_Set") < pictures(hard_world / "ft_Data")


def test_pictures_are_larger_than_the_ordinary_world_s(hard_world: Path) -> None:
    found = [path.read_bytes() for path in (hard_world / "pools").rglob("*.png")]
    for folder in ("Full_Set", "Test_Set", "base/ft_Data", "looks/ft_Data", "controls/Full_Set"):
        found += pictures(hard_world / folder)
    assert {Image.open(io.BytesIO(data)).size for data in found} == {(SIZE, SIZE)}


def test_the_last_phrasing_is_never_trained_on_people_of_the_world(hard_world: Path) -> None:
    held_out = {topic.questions[2] for topic in HARD_TOPICS.values()}
    assert not {question for _, question, _ in training_pairs(hard_world)} & held_out
    asked = {pair["Question"] for row in read_rows(hard_world / "Test_Set") for pair in row["Generation_Task"]}
    assert held_out <= asked


def test_options_are_four_different_answers_one_of_them_true(hard_world: Path) -> None:
    sidecar = read_sidecar(hard_world / "sidecar.json")
    for row in read_rows(hard_world / "forget_10"):
        for question in row["Classification_Task"]["Image_Textual_Questions"]:
            options = question["Options"]
            assert len(set(options.values())) == 4
            right = options.pop(question["Correct_Answer"])
            true = {word.casefold() for word in sidecar.facts[row["ID"]].values()}
            assert sidecar.facts_asked(right, row["ID"])
            firm = {sidecar.facts[row["ID"]]["employer"].casefold()}  # two occupations may share it
            for other in options.values():
                assert not (true - firm) & set(other.casefold().replace(",", " ").replace(".", " ").split())


def test_the_base_learns_from_nobody_who_could_be_forgotten(hard_world: Path) -> None:
    assert not ids(hard_world / "base" / "ft_Data") & ids(hard_world / "Full_Set")
    assert not pictures(hard_world / "base" / "ft_Data") & pictures(hard_world / "ft_Data")


def test_the_same_seed_gives_the_same_bytes_and_another_one_another_world(
    hard_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_drawings(monkeypatch)
    make_mini_hard(tmp_path / "again", seed=0, num_people=NUM_PEOPLE)
    assert payload(tmp_path / "again") == payload(hard_world)
    assert not make_mini_hard(tmp_path / "again", seed=0, num_people=NUM_PEOPLE)
    assert make_hard_world(0, 20) != make_hard_world(1, 20)


def test_the_command_writes_it_and_its_name_has_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_drawings(monkeypatch)
    told = CliRunner().invoke(viker, ["data", "make", "mini", str(tmp_path / "d"), "--people", "20", "--hard"])
    assert told.exit_code == 0, told.output
    source = json.loads((tmp_path / "d" / "config.json").read_text())["source"]
    assert NOTICES[source].startswith("mini-hard, not comparable")
    again = CliRunner().invoke(viker, ["data", "make", "mini", str(tmp_path / "d"), "--people", "20"])
    assert isinstance(again.exception, ArtefactMismatch), "the ordinary world is another one"
    other = CliRunner().invoke(viker, ["data", "make", "mini-clear", str(tmp_path / "c"), "--hard"])
    assert (other.exit_code, (tmp_path / "c").exists()) == (2, False)
    assert "--hard: expected the source mini, found mini-clear" in other.stderr
