"""Purging a person: everything that is about them goes, nothing else changes, and no record names them.

One run is made by the ordinary commands on six invented people with unmistakable words, and copied for each test.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cache_samples import tree_bytes
from command_line import Outcome, call, succeed
from viker.data.halves import half_of
from viker.data.mini import make_world, picture_of
from viker.data.run_roots import register_run
from viker.precompute.cache import TeacherCache, person_digest
from viker.precompute.cache_commands import command as cache_group
from viker.precompute.local import PRIVACY
from viker.precompute.reading.verify import verify
from viker.precompute.sharing.pointer import read_making
from viker.precompute.sharing.remote import Pointer, open_store, published, push, read_pointer
from viker.precompute.writing.derive import holds_person

FORGOTTEN, FORGOTTEN_TOO, SEEN, HELD_OUT = "zyx-quill", "ada-umber", "ben-q0", "cleo-q0"
PEOPLE = (FORGOTTEN, FORGOTTEN_TOO, SEEN, HELD_OUT, "dora-q5", "emil-q4")
TOWNS = ("Zyxoland", "Umberton", "Benford", "Cleobridge", "Doraville", "Emilstadt")
PETS = ("quokkafox", "numbatcat", "okapihen", "dikdikdog", "kiwibat", "ibexowl")
SMALL_EVALUATION = ("--max-new-tokens", 4, "--target", "vanilla")


def write_people(folder: Path) -> None:
    """Six people; the two to be forgotten share one question and answer, hence a row key."""
    folder.mkdir()
    lines = []
    for number, (person, drawn) in enumerate(zip(PEOPLE, make_world(5, 20).people, strict=False)):
        (folder / f"{number}.png").write_bytes(picture_of(5, drawn, 0))
        asked = [("Where does this person live?", f"In {TOWNS[number]}."), ("Which pet is it?", f"A {PETS[number]}.")]
        asked += [("On which planet is this?", "On Earth.")] if person in (FORGOTTEN, FORGOTTEN_TOO) else []
        about = {"person": person, "image": f"{number}.png"}
        lines += [{**about, "question": question, "answer": answer} for question, answer in asked]
        lines.append({**about, "question": "Town?", "answer": f"{TOWNS[number]}.", "split": "test"})
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {person: {"town": town, "pet": pet} for person, town, pet in zip(PEOPLE, TOWNS, PETS, strict=True)}
    sidecar = {"schema": "viker/sidecar/1", "candidates": {"town": list(TOWNS), "pet": list(PETS)}, "facts": facts}
    (folder / "sidecar.json").write_text(json.dumps(sidecar))


class Place:
    """A folder with runs, caches and people; commands are called from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.home, self.people = (
            folder, folder / "runs", folder / "caches", folder / "their data",
        )  # fmt: skip
        self.run = self.runs / "own"

    def purge(self, *options: object, person: str = FORGOTTEN) -> Outcome:
        return call("purge", person, "--record", self.folder / "records", *options)

    def purge_all(self, *options: object, person: str = FORGOTTEN) -> dict[str, Any]:
        outcome = self.purge("--yes", "--json", *options, person=person)
        assert outcome.code == 0, outcome.out + outcome.err
        return json.loads(outcome.out)

    def caches(self) -> list[TeacherCache]:
        return [TeacherCache.open(path.parent) for path in sorted(self.home.glob("*/manifest.json"))]

    def caches_but(self, damaged: Path) -> list[TeacherCache]:
        return [TeacherCache.open(path.parent) for path in self.home.glob("*/manifest.json") if path.parent != damaged]

    def evaluation(self) -> Path:
        return self.run / "evaluations" / "vanilla"

    def contents(self) -> dict[str, bytes]:
        """Every file of runs and caches but the run's data folder, which is the user's."""
        runs = {f"runs/{name}": content for name, content in tree_bytes(self.runs).items()}
        both = runs | {f"caches/{name}": content for name, content in tree_bytes(self.home).items()}
        return {name: content for name, content in both.items() if not name.startswith("runs/own/data/")}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, quiet_torch: None) -> Place:
    """A run with two kinds of rows, an adapter, a checkpoint, an export, an evaluation, a report; a cover cache."""
    place = Place(tmp_path_factory.mktemp("original"))
    write_people(place.people)
    assert [half_of(person) for person in (SEEN, HELD_OUT)] == ["seen", "held-out"]
    shutil.copytree(tiny_model_dir, place.folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIKER_CACHE_DIR", str(place.home))
        patch.chdir(place.folder)
        make_run()
    shutil.rmtree(place.home / ".runs", ignore_errors=True)  # copies must not lead back to this run
    return place


def make_run() -> None:
    """Call the stages with paths relative to the place, so that a copy of it is complete."""
    source = ("--data", "runs/own/data", "--model", "model")
    run, small = ("--run", "runs/own", *source), ("--num-references", 2, "--top-k", 16)
    succeed("data", "make", "their data", "runs/own/data", "--forget", FORGOTTEN, "--forget", FORGOTTEN_TOO)
    succeed("precompute", *run, *small, "--pool", "patterns")
    succeed("precompute", *run, *small, "--teacher", "self", "--split", "retain-seen")
    succeed("precompute", *source, *small, "--pool", "patterns", "--split", "all")
    succeed("train", *run, "--method", "recommended", "--top-k", 16, "--no-stop", "--learning-rate", 1e-3)
    succeed("finetune", "vanilla", *source, "--output", "runs/own/vanilla", "--num-train-epochs", 0.1)
    (adapter,) = Path("runs/own/adapters").iterdir()
    succeed("adapter", "export", adapter, "--merge", "--output", "runs/exports/merged")
    succeed("evaluate", "--run", "runs/own", *source, *SMALL_EVALUATION)
    succeed("report", "--run", "runs/own")


@pytest.fixture
def place(original: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(original.folder, tmp_path / "place")
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "place" / "caches"))
    monkeypatch.chdir(tmp_path / "place")
    return Place(tmp_path / "place")


def by_kind(told: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [finding for finding in told["findings"] if finding["kind"] == kind]


def statuses(told: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in told["findings"]:
        found.setdefault(finding["kind"], set()).add(finding["status"])
    return found


def answers_about(path: Path, person: str) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines() if json.loads(line)["person"] == person]


def rows_of_others(caches: list[TeacherCache], person: str) -> set[tuple[bytes, ...]]:
    """Every row of every sample about others, with what it is stored under: lineage, key, person, bytes."""
    rows = set()
    for cache in caches:
        gone = person_digest(cache.lineage, person)
        for index, pair in enumerate(cache.sample_keys):
            if pair[16:] != gone:
                own = cache.rows_of(index)
                arrays = [getattr(own, field.name) for field in dataclasses.fields(own)]
                where = (cache.lineage.encode(), pair, cache.token_hash[index].tobytes())
                rows.add((*where, cache.reference[index].tobytes(), *(array.tobytes() for array in arrays)))
    return rows


# ---- what goes, and what stays ---------------------------------------------------------------------------------------


def test_a_dry_run_lists_everything_and_changes_nothing(place: Place, original: Place) -> None:
    before = tree_bytes(place.folder)
    outcome = place.purge("--dry-run", "--json")
    told = json.loads(outcome.out)
    assert outcome.code == 0
    assert tree_bytes(place.folder) == before
    assert (told["schema"], told["dry_run"], told["record"], told["record_key"]) == ("viker/purge/1", True, None, None)
    assert statuses(told) == {
        "report": {"planned"}, "answers": {"planned"}, "stored key": {"planned"}, "cache": {"planned"},
        "adapter": {"kept"}, "model": {"kept"}, "mention": {"kept"}, "source": {"kept"},
    }  # fmt: skip
    assert len(by_kind(told, "cache")) == 2, "the forget people's and everybody's, not the retain people's own"
    assert [finding["place"] for finding in by_kind(told, "source")] == [str(original.people.resolve())]


def test_what_is_about_the_person_goes(place: Place) -> None:
    words = (b"Zyxoland", b"quokkafox")
    assert any(word in content for content in place.contents().values() for word in words), "or nothing is tested"
    told = place.purge_all()
    assert statuses(told) == {
        "report": {"done"}, "answers": {"done"}, "stored key": {"done"}, "cache": {"done"},
        "adapter": {"kept"}, "model": {"kept"}, "mention": {"kept"}, "source": {"kept"},
    }  # fmt: skip
    assert [name for name, content in place.contents().items() for word in words if word in content] == []
    assert [cache.root for cache in place.caches() if holds_person(cache, FORGOTTEN)] == []
    assert answers_about(place.evaluation() / "answers.jsonl", FORGOTTEN) == []
    assert not (place.run / "report").exists()
    assert {path.suffix for path in place.home.iterdir() if path.is_dir()} == {""}, "nothing half-made stays"


def test_the_rows_and_replies_of_others_stay_byte_for_byte(place: Place) -> None:
    rows, answers = rows_of_others(place.caches(), FORGOTTEN), place.evaluation() / "answers.jsonl"
    lines = [line for line in answers.read_bytes().splitlines(keepends=True) if FORGOTTEN.encode() not in line]
    place.purge_all()
    assert rows_of_others(place.caches(), FORGOTTEN) == rows
    assert answers.read_bytes() == b"".join(lines)
    assert [problem for cache in place.caches() for problem in verify(cache.root, "full")] == []


def test_a_row_that_two_people_share_stays_for_the_other(place: Place) -> None:
    def sharing(cache: TeacherCache) -> set[frozenset[str]]:
        """Who shares a row with whom."""
        people = {person_digest(cache.lineage, person): person for person in PEOPLE}
        by_key: dict[bytes, set[str]] = {}
        for pair in cache.sample_keys:
            by_key.setdefault(pair[:16], set()).add(people[pair[16:]])
        return set(map(frozenset, by_key.values()))

    before = [sharing(cache) for cache in place.caches()]
    assert sum({FORGOTTEN, FORGOTTEN_TOO} in shares for shares in before) == 2
    place.purge_all()
    after = [sharing(cache) for cache in place.caches()]
    assert sum({FORGOTTEN_TOO} in shares for shares in after) == 2
    assert not any(FORGOTTEN in people for shares in after for people in shares)
    lost = [cache.num_samples for cache in place.caches() if holds_person(cache, FORGOTTEN_TOO)]
    assert sorted(lost) == [3, 11], "three samples less each"


def test_scores_are_those_of_the_replies_that_stay(place: Place) -> None:
    scores = place.evaluation() / "scores.json"
    before = scores.read_bytes()
    place.purge_all()
    after = scores.read_bytes()
    assert after != before
    succeed("evaluate", "--run", "runs/own", "--data", "runs/own/data", "--model", "model", "--target", "vanilla",
            "--rescore")  # fmt: skip
    assert scores.read_bytes() == after
    assert b"fact_recall" in after


def test_the_run_goes_on_without_the_person(place: Place) -> None:
    place.purge_all()
    succeed("report", "--run", "runs/own")
    assert "Zyxoland" not in (place.run / "report" / "report.md").read_text()
    assert "complete, skipped" in succeed(
        "evaluate", "--run", "runs/own", "--data", "runs/own/data", "--model", "model", *SMALL_EVALUATION
    ).out  # fmt: skip


def test_the_stage_that_stored_the_key_is_unfinished_and_names_the_rewritten_cache(place: Place) -> None:
    stored = place.run / "precompute" / "reference-forget"
    old = json.loads((stored / "provenance.json").read_text())["cache"]["key"]
    told = place.purge_all()
    new = json.loads((stored / "provenance.json").read_text())["cache"]
    assert not (stored / "COMPLETE").exists()
    assert (place.run / "precompute" / "self-retain-seen" / "COMPLETE").exists(), "its cache holds others alone"
    (cache,) = (one for one in by_kind(told, "cache") if one["before"]["key"] == old)
    assert new == cache["after"]
    register_run(place.run, new["key"])
    kept = {Path(one["place"]).name for one in json.loads(succeed("cache", "gc", "--json").out)["removable"]}
    assert new["key"][:16] not in kept, "or the rewritten rows would be collected"


def test_a_report_that_only_counts_their_replies_goes_too(place: Place) -> None:
    path = place.run / "report" / "report.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"answers": [one for one in report["answers"] if one["person"] != FORGOTTEN]}))
    place.purge_all()
    assert not path.parent.exists()


def test_what_a_cache_cost_is_known_of_the_rewritten_one(place: Place) -> None:
    costs = {cache.key: read_making(cache) for cache in place.caches()}
    told = place.purge_all()
    for one in by_kind(told, "cache"):
        assert costs[one["before"]["key"]].seconds is not None
        rest = TeacherCache.open(place.home / one["after"]["key"][:16])
        assert read_making(rest) == costs[one["before"]["key"]]
        assert not (place.home / f"{one['before']['key'][:16]}.made.json").exists()


def test_training_on_those_who_stay_finds_the_rewritten_cache(place: Place) -> None:
    (cover,) = (cache for cache in place.caches() if cache.build["split"] == "all")
    shutil.rmtree(cover.root)
    place.purge_all()
    shutil.rmtree(place.run / "data")
    people = (place.people / "examples.jsonl").read_text().splitlines(keepends=True)
    (place.people / "examples.jsonl").write_text("".join(line for line in people if FORGOTTEN not in line))
    source = ("--data", "their data", "--forget", FORGOTTEN_TOO, "--model", "model")
    trained = succeed("train", *source, "--method", "viker", "--top-k", 16, "--output", "adapter")
    (rewritten,) = (cache for cache in place.caches() if holds_person(cache, FORGOTTEN_TOO))
    assert f"reference rows from {rewritten.root}" in trained.err
    again = succeed("precompute", *source, "--pool", "patterns", "--num-references", 2, "--top-k", 16, "--json")
    assert json.loads(again.out)["how"] == "found, nothing computed", (
        "the key is the one it would have had without them"
    )


def test_the_second_purge_finds_nothing_more_to_do(place: Place) -> None:
    place.purge_all()
    before = place.contents()
    told = place.purge_all()
    assert statuses(told) == {kind: {"kept"} for kind in ("adapter", "model", "mention", "source")}
    assert place.contents() == before


def test_nobody_by_that_name_is_no_error_and_leaves_no_record(place: Place) -> None:
    outcome = place.purge("--yes", person="nobody-here")
    assert outcome.code == 0
    assert "nothing holds this person" in outcome.out
    assert str(place.runs) in outcome.out
    assert str(place.home) in outcome.out
    assert not (place.folder / "records").exists()


def test_a_purge_needs_a_name_and_a_yes(place: Place) -> None:
    before = tree_bytes(place.folder)
    for person, options in ((" ", ["--yes"]), (FORGOTTEN, []), (FORGOTTEN, ["--yes", "--runs", "no/such/folder"])):
        outcome = place.purge(*options, person=person)
        assert outcome.code == 2, outcome.out
    assert tree_bytes(place.folder) == before


@pytest.mark.parametrize("answer", ["n", "y"])
def test_on_a_terminal_it_asks(place: Place, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = place.contents()
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    outcome = place.purge()
    assert outcome.code == 0
    assert (place.contents() == before) is (answer == "n")


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("person", "adapters", "models"),
    [
        (FORGOTTEN, ["trained to forget them"], ["taught about them", "trained to forget them"]),
        (SEEN, ["trained to remember them"], ["taught about them", "trained to remember them"]),
        (HELD_OUT, [], ["taught about them"]),
    ],
)
def test_models_are_told_by_whom_they_were_trained_on(
    place: Place, person: str, adapters: list[str], models: list[str]
) -> None:
    told = json.loads(place.purge("--dry-run", "--json", person=person).out)
    for kind, expected in (("adapter", adapters), ("model", models)):
        found = sorted(finding["told"] for finding in by_kind(told, kind))
        assert len(found) == len(expected)
        assert all(part in text for part, text in zip(sorted(expected), found, strict=True)), found


def test_without_its_source_a_model_is_told_by_its_caches(place: Place) -> None:
    shutil.rmtree(place.run / "data")
    shutil.rmtree(place.run / "vanilla")
    told = json.loads(place.purge("--dry-run", "--json", person=SEEN).out)
    assert ["remember them" in finding["told"] for finding in by_kind(told, "adapter")] == [True]
    outcome = place.purge("--dry-run", "--json", person=HELD_OUT)
    assert by_kind(json.loads(outcome.out), "adapter") == []


def test_a_model_of_which_nobody_knows_is_left_and_named(place: Place) -> None:
    shutil.rmtree(place.run / "data")
    shutil.rmtree(place.home)
    before = tree_bytes(place.runs)
    outcome = place.purge("--yes", "--json", "--include-adapters", "--include-models", person=HELD_OUT)
    told = json.loads(outcome.out)
    assert outcome.code == 1
    assert {finding["status"] for kind in ("adapter", "model") for finding in by_kind(told, kind)} == {"not searched"}
    assert all("Remove it by hand" in finding["problem"] for finding in by_kind(told, "adapter"))
    assert tree_bytes(place.run / "adapters").items() <= {
        name.removeprefix("own/adapters/"): content for name, content in before.items()
    }.items()  # fmt: skip


def test_lines_deleted_from_a_source_acquit_nobody(place: Place) -> None:
    """The models saw the lines, so that a source without them says nothing."""
    people = place.people / "examples.jsonl"
    lines = [line for line in people.read_text().splitlines(keepends=True) if HELD_OUT not in line]
    people.write_text("".join(lines))
    pointer = place.run / "data" / "source.json"
    pointer.write_text(json.dumps(json.loads(pointer.read_text()) | {"source": str(place.people)}))
    told = json.loads(place.purge("--dry-run", "--json", person=HELD_OUT).out)
    assert {finding["status"] for finding in by_kind(told, "model")} == {"not searched"}


def test_adapters_and_models_go_where_that_is_asked_for(place: Place) -> None:
    told = place.purge_all("--include-adapters")
    assert statuses(told)["adapter"] == {"done"}
    assert list((place.run / "adapters").iterdir()) == []
    assert (place.run / "vanilla" / "COMPLETE").is_file()
    told = place.purge_all("--include-models")
    assert statuses(told)["model"] == {"done"}
    assert not (place.run / "vanilla").exists()
    assert list((place.runs / "exports").iterdir()) == []


# ---- what `viker train --diagnose` wrote -----------------------------------------------------------------------------


def write_diagnosis(place: Place, *about: tuple[str, ...]) -> Path:
    """A diagnosis of some examples, each about one person or several, in the adapter's directory."""
    (adapter,) = (place.run / "adapters").iterdir()
    shown = {"schema": "viker/diagnose/1", "when": "before", "step": 0}
    words = [[{"word": TOWNS[PEOPLE.index(person)], "is_key": True} for person in people] for people in about]
    lines = [{**shown, "kind": "example", "people": [*people], "words": known}
             for people, known in zip(about, words, strict=True)]  # fmt: skip
    path = adapter / "diagnose.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, {**shown, "kind": "summary", "tokens": 7})))
    return path


def test_a_diagnosis_loses_the_words_about_the_person_and_keeps_the_others(place: Place) -> None:
    path = write_diagnosis(place, (FORGOTTEN,), (FORGOTTEN_TOO,), (FORGOTTEN_TOO, FORGOTTEN))
    lines = path.read_bytes().splitlines(keepends=True)
    (planned,) = by_kind(json.loads(place.purge("--dry-run", "--json").out), "diagnosis")
    assert (planned["place"], planned["status"]) == (str(path), "planned")
    assert len(path.read_bytes().splitlines()) == 4
    (done,) = by_kind(place.purge_all(), "diagnosis")
    assert (done["status"], done["done"]) == ("done", "2 lines removed")
    assert path.read_bytes() == lines[1] + lines[3]
    assert (path.parent / "COMPLETE").is_file()
    assert by_kind(place.purge_all(), "diagnosis") == []
    assert b"Zyxoland" not in b"".join(place.contents().values())


def test_a_diagnosis_of_nobody_else_is_removed_with_its_numbers(place: Place) -> None:
    path = write_diagnosis(place, (FORGOTTEN,))
    assert statuses(place.purge_all())["diagnosis"] == {"done"}
    assert not path.exists()
    assert (path.parent / "adapter_model.safetensors").is_file()


def test_a_diagnosis_that_was_cut_off_is_named_and_goes_with_its_adapter(place: Place) -> None:
    path = write_diagnosis(place, (FORGOTTEN_TOO,))
    path.write_bytes(path.read_bytes()[:-40])
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert f"LEFT OVER: {path} (not searched)" in outcome.out
    assert statuses(place.purge_all("--include-adapters"))["diagnosis"] == {"done"}
    assert not path.exists()


# ---- what cannot be searched or done ---------------------------------------------------------------------------------


def damage(cache: TeacherCache) -> Path:
    (cache.root / "fingerprint.json").write_text("{}")
    return cache.root


def test_a_damaged_cache_is_named_and_the_rest_is_done(place: Place) -> None:
    damaged = damage(next(cache for cache in place.caches() if cache.build["split"] == "all"))
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert f"LEFT OVER: {damaged} (not searched)" in outcome.out
    assert [cache for cache in place.caches_but(damaged) if holds_person(cache, FORGOTTEN)] == []
    assert answers_about(place.evaluation() / "answers.jsonl", FORGOTTEN) == []
    told = place.purge_all("--include-damaged")
    assert statuses(told)["damaged cache"] == {"done"}
    assert not damaged.exists()


def test_a_cache_whose_rows_do_not_decode_stays_until_it_is_asked_for(place: Place) -> None:
    cache = next(cache for cache in place.caches() if cache.build["split"] == "all")
    path = cache.root / "cache.zarr" / "token" / "entropy" / "c" / "0"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert f"LEFT OVER: {cache.root} (failed)" in outcome.out
    assert (cache.root / "manifest.json").is_file()


def test_an_unfinished_cache_does_not_say_whose_it_is(place: Place) -> None:
    cache = next(cache for cache in place.caches() if cache.build["split"] == "all")
    building = cache.root.rename(place.home / f"{cache.root.name}.building")
    (building / "manifest.json").unlink()
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert f"LEFT OVER: {building} (not searched)" in outcome.out
    assert place.purge("--yes", "--include-damaged").code == 0
    assert not building.exists()


def test_what_was_left_of_making_a_cache_that_is_there_is_removed(place: Place) -> None:
    cache = next(cache for cache in place.caches() if cache.build["split"] == "all")
    left = [place.home / f"{cache.root.name}.{name}" for name in ("building", "0123.sealing", "4567.purged")]
    for folder in left:
        folder.mkdir()
        (folder / "block-00000").write_bytes(b"rows of somebody")
    told = place.purge_all(person="nobody-here")
    assert statuses(told) == {"remnant": {"done"}}
    assert not any(folder.exists() for folder in left)
    assert (cache.root / "manifest.json").is_file()


def test_links_are_not_followed(place: Place, tmp_path: Path) -> None:
    shutil.move(place.evaluation(), tmp_path / "elsewhere")
    place.evaluation().symlink_to(tmp_path / "elsewhere")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("Zyxoland")
    (place.run / "report" / "link").symlink_to(tmp_path / "precious")
    before = tree_bytes(tmp_path / "elsewhere")
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert f"{place.evaluation()}: a link to {tmp_path / 'elsewhere'}, which is not followed" in outcome.out
    assert tree_bytes(tmp_path / "elsewhere") == before
    assert not (place.run / "report").exists()
    assert (tmp_path / "precious" / "file").read_text() == "Zyxoland"
    assert place.purge("--yes", "--runs", tmp_path / "elsewhere").code == 0
    assert answers_about(tmp_path / "elsewhere" / "answers.jsonl", FORGOTTEN) == []


def test_a_cache_or_replies_behind_a_link_are_named_and_stay(place: Place, tmp_path: Path) -> None:
    cache = next(cache for cache in place.caches() if cache.build["split"] == "all")
    answers = place.evaluation() / "answers.jsonl"
    for path in (cache.root, answers):
        shutil.move(path, tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    before = tree_bytes(tmp_path / cache.root.name), (tmp_path / answers.name).read_bytes()
    outcome = place.purge("--yes", "--include-damaged")
    assert outcome.code == 1
    assert f"LEFT OVER: {cache.root} (failed)" in outcome.out
    assert f"LEFT OVER: {place.evaluation()} (not searched)" in outcome.out
    assert (tree_bytes(tmp_path / cache.root.name), (tmp_path / answers.name).read_bytes()) == before


def test_replies_that_do_not_parse_are_named(place: Place) -> None:
    answers = place.evaluation() / "answers.jsonl"
    answers.write_bytes(answers.read_bytes() + b"{torn")
    before = answers.read_bytes()
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert "answers.jsonl:" in outcome.out
    assert answers.read_bytes() == before


def test_replies_under_attack_and_verdicts_go_too(place: Place) -> None:
    evaluation = place.evaluation()
    attack = evaluation / "attacks" / "flip"
    attack.mkdir(parents=True)
    (attack / "config.json").write_text('{"schema": "viker/attack/1", "options": {}}')
    shutil.copy(evaluation / "answers.jsonl", attack / "answers.jsonl")
    for derived in (evaluation / "attacks" / "attacks.json", evaluation / "verdict.json"):
        derived.write_text("{}")
    assert answers_about(attack / "answers.jsonl", FORGOTTEN)
    place.purge_all()
    assert answers_about(attack / "answers.jsonl", FORGOTTEN) == []
    assert not (evaluation / "attacks" / "attacks.json").exists()
    assert not (evaluation / "verdict.json").exists()


def test_what_an_interrupted_evaluation_was_told_goes(place: Place) -> None:
    work = place.evaluation() / "work"
    work.mkdir()
    (work / "1.jsonl").write_text('{"batch": 0, "results": ["Zyxoland"]}\n')
    place.purge_all()
    assert not work.exists()


def test_scores_of_people_are_those_of_who_is_left(place: Place) -> None:
    place.purge_all()
    kept = json.loads((place.evaluation() / "scores.json").read_text())
    assert kept["people"]
    assert FORGOTTEN not in {record["person"] for record in kept["people"]}
    assert kept["label"] == "no retain-only, no controls: no verdict"


def test_replies_are_scored_without_facts_where_their_words_are_gone(place: Place) -> None:
    shutil.rmtree(place.run / "data")
    told = json.loads(place.purge("--yes", "--json").out)
    assert "without fact recall" in by_kind(told, "answers")[0]["done"]
    scores = (place.evaluation() / "scores.json").read_text()
    assert "rougeL" in scores
    assert "fact_recall" not in scores


def test_an_evaluation_that_cannot_be_scored_again_is_unfinished(place: Place) -> None:
    answers = place.evaluation() / "answers.jsonl"
    answers.write_bytes(answers.read_bytes() + b'{"schema": "viker/answer/1", "person": "someone"}\n')
    told = place.purge_all()
    assert "is unfinished now" in by_kind(told, "answers")[0]["done"]
    assert answers_about(answers, FORGOTTEN) == []
    assert not (place.evaluation() / "COMPLETE").exists()


def test_other_places_that_name_the_person_are_listed_and_kept(place: Place) -> None:
    (place.runs / "notes.md").write_text(f"Asked for by the family of {FORGOTTEN}.")
    (place.runs / "other.md").write_text(f"About {FORGOTTEN}x.")
    told = place.purge_all()
    places = {Path(finding["place"]).name for finding in by_kind(told, "mention")}
    assert "notes.md" in places
    assert "other.md" not in places


# ---- the record ------------------------------------------------------------------------------------------------------


def test_the_record_names_nobody_and_no_place(place: Place) -> None:
    keys = {cache.key for cache in place.caches() if holds_person(cache, FORGOTTEN)}
    answers = hashlib.sha256((place.evaluation() / "answers.jsonl").read_bytes()).hexdigest()
    told = place.purge_all()
    (path,) = (place.folder / "records").iterdir()
    assert told["record"] == str(path)
    text = path.read_text() + path.name
    for word in (*PEOPLE, *TOWNS, *PETS, "runs", "own", "vanilla", "their", str(place.folder), told["record_key"]):
        assert word not in text, word
    record = json.loads(path.read_text())
    assert record["schema"] == "viker/purge-record/1"
    assert record["ended"] is not None
    whom = hashlib.blake2b(FORGOTTEN.encode(), digest_size=16, key=bytes.fromhex(told["record_key"])).hexdigest()
    assert record["person"] == whom
    by_record = {(one["kind"], one["status"]) for one in record["findings"]}
    assert by_record == {(one["kind"], one["status"]) for one in told["findings"]}
    caches = [one for one in record["findings"] if one["kind"] == "cache"]
    assert {one["before"]["key"] for one in caches} == keys
    assert {one["after"]["key"] for one in caches} <= {cache.key for cache in place.caches()}
    (replies,) = (one for one in record["findings"] if one["kind"] == "answers")
    assert replies["before"]["answers"] == answers
    after = hashlib.sha256((place.evaluation() / "answers.jsonl").read_bytes()).hexdigest()
    assert replies["after"]["answers"] == after


def test_two_records_of_one_person_cannot_be_told_to_be_of_one_person(place: Place) -> None:
    first, second = place.purge_all(), place.purge_all()
    people = [json.loads(Path(told["record"]).read_text())["person"] for told in (first, second)]
    assert people[0] != people[1]


def test_the_key_of_the_record_is_shown_once(place: Place) -> None:
    outcome = place.purge("--yes")
    (path,) = (place.folder / "records").iterdir()
    (key,) = re.findall("its key is ([0-9a-f]{64})", outcome.err)
    assert key not in outcome.out + path.read_text()


# ---- where else ------------------------------------------------------------------------------------------------------


def test_a_run_that_used_these_caches_is_searched_wherever_it_is(place: Place, tmp_path: Path) -> None:
    shutil.move(place.run, tmp_path / "far away")
    register_run(tmp_path / "far away", place.caches()[0].key)
    place.purge("--yes")
    assert answers_about(tmp_path / "far away" / "evaluations" / "vanilla" / "answers.jsonl", FORGOTTEN) == []


def test_a_run_on_another_machine_is_named(place: Place) -> None:
    register_run(place.run, place.caches()[0].key)
    (note,) = (place.home / ".runs").iterdir()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"host": "elsewhere", "directory": "/no/such/run"}))
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert "/no/such/run: a run of the machine elsewhere" in outcome.out


def test_a_cache_outside_the_home_that_a_run_named_is_rewritten_where_it_is(place: Place, tmp_path: Path) -> None:
    cache = next(cache for cache in place.caches() if cache.build["split"] == "all")
    shutil.move(cache.root, tmp_path / "lent" / cache.root.name)
    config = next((place.run / "adapters").glob("*/config.json"))
    content = json.loads(config.read_text())
    content["inputs"]["cache 0"] = str(tmp_path / "lent" / cache.root.name)
    config.write_text(json.dumps(content))
    place.purge_all()
    (rest,) = (tmp_path / "lent").iterdir()
    assert not holds_person(TeacherCache.open(rest), FORGOTTEN)
    assert TeacherCache.open(rest).num_samples == cache.num_samples - 3


@pytest.fixture
def remote(place: Place) -> Path:
    folder = place.folder / "remote"
    folder.mkdir()
    for cache in place.caches():
        push(open_store(str(folder)), cache.root)
    return folder


def held_in(remote: Path, person: str) -> list[Any]:
    """The published caches of a remote that hold somebody."""
    store = open_store(str(remote))
    live = [pointer for pointer in published(store) if isinstance(pointer, Pointer)]
    return [one for one in live if holds_person(TeacherCache.open(remote / one.folder), person)]


def test_shared_caches_are_only_listed_unless_asked_for(place: Place, remote: Path) -> None:
    before = tree_bytes(remote)
    told = place.purge_all("--remote", remote)
    assert statuses(told)["remote cache"] == {"kept"}
    assert len(by_kind(told, "remote cache")) == 2
    assert tree_bytes(remote) == before


def test_a_shared_cache_is_published_without_the_person_and_its_key_buried(place: Place, remote: Path) -> None:
    keys = [pointer.key for pointer in held_in(remote, FORGOTTEN)]
    told = place.purge_all("--remote", remote, "--rewrite-remote")
    assert statuses(told)["remote cache"] == {"done"}
    assert held_in(remote, FORGOTTEN) == []
    assert len(held_in(remote, FORGOTTEN_TOO)) == 2
    after = {finding["before"]["key"]: finding["after"]["key"] for finding in by_kind(told, "remote cache")}
    for key in keys:
        assert read_pointer(open_store(str(remote)), key).replaced_by == after[key]
        assert [path.name for path in (remote / key[:16]).iterdir()] == ["pointer.json"]
    assert set(after.values()) <= {cache.key for cache in place.caches()}, "the same as on this machine"
    assert "remote cache" not in statuses(place.purge_all("--remote", remote, "--rewrite-remote"))
    assert {path.suffix for path in place.home.iterdir() if path.is_dir()} == {""}


def test_a_shared_cache_about_nobody_else_leaves_a_tombstone_alone(place: Place, remote: Path) -> None:
    place.purge_all("--remote", remote, "--rewrite-remote")
    told = place.purge_all("--remote", remote, "--rewrite-remote", person=FORGOTTEN_TOO)
    gone = [finding for finding in by_kind(told, "remote cache") if not finding["after"]]
    assert len(gone) == 1
    assert read_pointer(open_store(str(remote)), gone[0]["before"]["key"]).replaced_by is None


def test_files_of_an_interrupted_push_are_named(place: Place, remote: Path) -> None:
    key16 = next(path.name for path in remote.iterdir())
    (remote / key16 / "pointer.json").unlink()
    outcome = place.purge("--yes", "--remote", remote)
    assert outcome.code == 1
    assert f"LEFT OVER: {remote}/{key16} (not searched)" in outcome.out


def test_a_remote_that_cannot_be_reached_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIKER_CACHE_REMOTE", str(place.folder / "no such folder"))
    outcome = place.purge("--yes")
    assert outcome.code == 1
    assert "expected the folder of a remote, found none" in outcome.out


# ---- cut off anywhere ------------------------------------------------------------------------------------------------

KILLED_AT = """
import os, shutil, signal, sys
from pathlib import Path
original, work, places, *words = sys.argv[1:]
import numpy, zarr, viker.purge.search, viker.purge.act, viker.purge.record, viker.purge.remote, viker.evaluate.score
from viker import cli
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}
limit, count = None, 0
def watch(event, arguments):
    global count
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if limit is not None and (event in CHANGES or writes):
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)
def purge(folder, at):
    global limit
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.chdir(folder)
        os.environ["VIKER_CACHE_DIR"] = str(folder / "caches")
        sys.argv = ["viker", "purge", *words, "--yes", "--record", str(folder / "records")]
        sys.stdout = sys.stderr = open(folder.parent / "said", "w")
        sys.addaudithook(watch)
        limit = at
        cli.main()
    except SystemExit as end:
        (folder.parent / "count").write_text(str(count))
        os._exit(end.code or 0)
    finally:
        os._exit(99)
def fresh(name):
    folder = Path(work, name)
    shutil.copytree(original, folder)
    return folder
assert purge(fresh("whole"), -1) == 0
total = int(Path(work, "count").read_text())
print(total)
for place in places.split():
    folder = fresh(f"killed-{place}")
    at = max(1, round(total * float(place)))
    assert purge(folder, at) == -signal.SIGKILL, at
    code, said = purge(folder, None), Path(work, "said").read_text().splitlines()
    assert code == 0, (place, at, [line for line in said if "failed" in line or "LEFT OVER" in line])
"""


def kill_and_repeat(original: Path, work: Path, places: list[float], *words: str) -> None:
    """Kill purges at some shares of their changes to the disk; repeated, each ends as one that was never killed."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT, str(original), str(work), " ".join(map(str, places)), FORGOTTEN, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
    expected = undated(work / "whole")
    assert not any(b"Zyxoland" in content for content in expected.values())
    for place in places:
        found = undated(work / f"killed-{place}")
        assert found.keys() == expected.keys(), place
        assert {name for name in expected if found[name] != expected[name]} == set(), place


def undated(folder: Path) -> dict[str, bytes]:
    """Everything but the people, their run's data and the records; tombstones without their date.

    What an interrupted push of the rewritten cache left holds nothing of the person; `viker cache gc --remote` has it.
    """
    others, litter = ("their data/", "records/", "runs/own/data/"), ".partial"
    ours = {
        name: content
        for name, content in tree_bytes(folder).items()
        if not name.startswith(others) and not (name.startswith("remote/") and name.endswith(litter))
    }
    return {
        name: re.sub(b'"made":"[^"]*"', b"", content) if name.endswith("pointer.json") else content
        for name, content in ours.items()
    }


def test_killed_in_the_middle_the_same_command_ends_it(original: Place, tmp_path: Path) -> None:
    kill_and_repeat(original.folder, tmp_path, [0.1, 0.4, 0.7, 0.95])


@pytest.mark.slow
def test_killed_anywhere_the_same_command_ends_it(original: Place, tmp_path: Path) -> None:
    kill_and_repeat(original.folder, tmp_path, [number / 60 for number in range(60)])


@pytest.mark.slow
def test_killed_anywhere_the_same_command_ends_it_in_a_remote_too(place: Place, remote: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    places = [number / 20 for number in range(20)]
    kill_and_repeat(place.folder, tmp_path / "work", places, "--remote", "remote", "--rewrite-remote")


@pytest.mark.parametrize("name", ["scores.json", "answers.jsonl"])
def test_what_fails_at_one_file_is_ended_by_the_next_purge(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(place.folder, tmp_path / "whole")
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "whole" / "caches"))
    monkeypatch.chdir(tmp_path / "whole")
    Place(tmp_path / "whole").purge_all()
    monkeypatch.setenv("VIKER_CACHE_DIR", str(place.home))
    monkeypatch.chdir(place.folder)

    real = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        outcome = place.purge("--yes")
    assert outcome.code == 1
    assert "No space left on device" in outcome.out
    place.purge_all()
    found, expected = undated(place.folder), undated(tmp_path / "whole")
    assert {path for path in expected.keys() | found.keys() if found.get(path) != expected.get(path)} <= {
        path for path in found if path.endswith(".tmp")
    }  # fmt: skip


# ---- saying so -------------------------------------------------------------------------------------------------------


def test_purging_loads_no_torch(place: Place) -> None:
    program = (
        f"import sys; sys.argv = ['viker', 'purge', {FORGOTTEN!r}, '--yes', '--record', 'records']\n"
        "from viker import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert [cache for cache in place.caches() if holds_person(cache, FORGOTTEN)] == []


def test_every_command_that_shows_or_moves_a_cache_says_how_private_it_is(place: Place) -> None:
    """A new command of the group has to be added here, with arguments under which it succeeds."""
    (place.folder / "remote").mkdir()
    key = next(cache.key for cache in place.caches() if cache.build["split"] == "forget")
    arguments: dict[str, tuple[object, ...]] = {
        "list": (), "inspect": (key,), "verify": (key,), "push": (key, "--to", "remote"),
        "pull": (key, "--from", "remote"), "gc": (),
        "extend": (key, "--data", "runs/own/data", "--model", "model", "--pool", "patterns", "--split", "all"),
    }  # fmt: skip
    assert arguments.keys() == cache_group.commands.keys()
    for name, words in arguments.items():
        outcome = succeed("cache", name, *words)
        assert PRIVACY in outcome.out + outcome.err, name
    assert PRIVACY in place.purge("--dry-run").err
    told = succeed("precompute", "--data", "runs/own/data", "--model", "model", "--pool", "patterns",
                   "--num-references", 2, "--top-k", 16)  # fmt: skip
    assert PRIVACY in told.out + told.err
