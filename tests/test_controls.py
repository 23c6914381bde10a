"""Controls: strangers who are asked what the forget people are, from any layout, and are checked to be strangers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from viker.data.controls import control_questions, refuse_acquaintances, with_controls
from viker.data.example import DataError
from viker.data.mini import make_world
from viker.data.portraits import encode_png, pattern_picture
from viker.data.sidecar import Sidecar, read_sidecar
from viker.data.sources import open_source

if TYPE_CHECKING:
    import random
    from pathlib import Path

TASKS = ("generation", "cloze")


def test_every_control_of_the_embedded_benchmark_is_asked_what_the_others_are_asked(mini_world: Path) -> None:
    controls = control_questions(open_source(str(mini_world / "controls")), TASKS)
    forget = [example for example in open_source(str(mini_world)).read("forget") if example.task in TASKS]
    drawn = {f"controls/{person.id}" for person in make_world(0, 20).controls}
    assert {example.people[0] for example in controls} == drawn
    shown = {(example.task, example.question) for example in controls if example.images}
    assert shown == {(example.task, example.question) for example in forget if example.images}


def test_ids_of_controls_are_never_those_of_the_runs_own_people(mini_world: Path) -> None:
    controls = control_questions(open_source(str(mini_world / "controls")), TASKS)
    assert all(example.id.startswith("controls/") for example in controls)


def test_the_private_words_of_controls_are_known(mini_world: Path) -> None:
    theirs = read_sidecar(mini_world / "controls" / "sidecar.json")
    facts = with_controls(read_sidecar(mini_world / "sidecar.json"), theirs)
    assert facts is not None
    for example in control_questions(open_source(str(mini_world / "controls")), ("generation",)):
        assert facts.facts_asked(example.answer, example.people[0])


def test_a_control_of_the_same_id_is_somebody_else() -> None:
    ours = Sidecar(candidates={"town": ("Lima", "Oslo")}, facts={"001": {"town": "Lima"}})
    theirs = Sidecar(candidates={"town": ("oslo", "Riga")}, facts={"001": {"town": "Riga"}})
    facts = with_controls(ours, theirs)
    assert facts is not None
    assert facts.candidates == {"town": ("Lima", "Oslo", "Riga")}
    assert facts.facts == {"001": {"town": "Lima"}, "controls/001": {"town": "Riga"}}
    assert with_controls(None, None) is None
    assert with_controls(ours, None) == ours


def test_nobody_else_changes_when_controls_are_drawn() -> None:
    """Names are drawn from one list, so who is drawn first must not depend on who is drawn later."""
    world = make_world(3, 20)
    everyone = (*world.people, *world.celebrities, *world.others, *world.controls)
    assert len({person.name for person in everyone}) == len(everyone)
    assert not {person.id for person in world.controls} & {person.id for person in (*world.people, *world.others)}


def test_a_large_world_has_names_for_everybody() -> None:
    world = make_world(0, 400)
    everyone = (*world.people, *world.celebrities, *world.others, *world.controls)
    assert len({person.name for person in everyone}) == len(everyone) == 400 + 80 + 200 + 80


def test_own_people_can_be_controls(tmp_path: Path) -> None:
    import random as chance

    write_picture(tmp_path / "x.png", chance.Random(1))
    line = {"person": "x", "image": "x.png", "question": "Who is this?", "answer": "This is Xavier."}
    (tmp_path / "examples.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    [example] = control_questions(open_source(str(tmp_path)), TASKS)
    assert (example.people, example.task) == (("controls/x",), "generation")


def test_a_source_without_such_questions_is_refused(mini_world: Path) -> None:
    with pytest.raises(DataError, match=r"expected questions about people \(captioning\), found\s+none"):
        control_questions(open_source(str(mini_world / "controls")), ("captioning",))


def test_people_whose_pictures_the_run_knows_are_no_strangers(mini_world: Path) -> None:
    source = open_source(str(mini_world))
    everyone = control_questions(source, TASKS)
    with pytest.raises(DataError, match="expected people no model here was trained on, found controls/0"):
        refuse_acquaintances(everyone, source.training("all"))
    refuse_acquaintances(control_questions(open_source(str(mini_world / "controls")), TASKS), source.training("all"))


def write_picture(path: Path, chance: random.Random) -> None:
    path.write_bytes(encode_png(pattern_picture(chance)))
