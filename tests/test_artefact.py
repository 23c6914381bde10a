"""Artefact directories: started again, skipped, or refused with every differing option; never someone else's."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from viker.data.artefact import (
    CHECKPOINT_CONFIG,
    ArtefactMismatch,
    begin,
    decide,
    differences,
    finish,
    is_complete,
    read_json,
    write_json,
)
from viker.data.example import DataError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"schema": "viker/tests/1", "seed": 0, "folder": "a", "people": ["x", "y"]}


def make(directory: Path, config: dict[str, object] = CONFIG) -> Path:
    begin(directory, config)
    finish(directory, {"inputs": {"data": "digest"}}, started=time.time())
    return directory


def test_what_is_not_there_has_to_be_made(tmp_path):
    assert decide(tmp_path / "new", CONFIG, overwrite=False, what="thing") == "run"


def test_what_is_complete_and_the_same_is_skipped(tmp_path):
    assert decide(make(tmp_path / "a"), CONFIG, overwrite=False, what="thing") == "skip"


def test_a_tuple_is_the_list_it_is_stored_as(tmp_path):
    assert decide(make(tmp_path / "a"), {**CONFIG, "people": ("x", "y")}, overwrite=False, what="thing") == "skip"


def test_a_mismatch_names_every_differing_option_with_both_values(tmp_path):
    asked = {**CONFIG, "seed": 7, "folder": "b", "fresh": True}
    with pytest.raises(ArtefactMismatch) as error:
        decide(make(tmp_path / "a"), asked, overwrite=False, what="thing")
    lines = [line.split() for line in str(error.value).splitlines()]
    assert ["seed", "there", "0", "asked", "7"] in lines
    assert ["folder", "there", "'a'", "asked", "'b'"] in lines
    assert ["fresh", "there", "None", "asked", "True"] in lines
    assert "people" not in str(error.value)
    assert "--run" in str(error.value)
    assert "--overwrite" in str(error.value)


def test_differences_look_at_the_options_of_both():
    assert [line.split()[0] for line in differences({"a": 1, "b": 1}, {"b": 1, "c": 1})] == ["a", "c"]


def test_overwrite_makes_it_again_whatever_is_there(tmp_path):
    assert decide(make(tmp_path / "a"), {"seed": 7}, overwrite=True, what="thing") == "run"


def test_an_interrupted_directory_is_started_again_and_emptied(tmp_path):
    directory = tmp_path / "a"
    begin(directory, CONFIG)
    (directory / "half-written").write_text("payload")
    assert not is_complete(directory)
    assert decide(directory, {"seed": 7}, overwrite=False, what="thing") == "run"
    begin(directory, {"seed": 7})
    assert sorted(path.name for path in directory.iterdir()) == ["config.json"]
    assert read_json(directory / "config.json") == {"seed": 7}


def test_a_kill_before_the_marker_leaves_it_incomplete(tmp_path):
    directory = make(tmp_path / "a")
    (directory / "COMPLETE").unlink()
    assert decide(directory, CONFIG, overwrite=False, what="thing") == "run"


def test_the_marker_is_written_last(tmp_path, monkeypatch):
    def fail(path: Path, value: object) -> None:
        raise OSError("disk full")

    begin(tmp_path / "a", CONFIG)
    monkeypatch.setattr("viker.data.artefact.write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        finish(tmp_path / "a", {}, started=time.time())
    assert not is_complete(tmp_path / "a")


@pytest.mark.parametrize("name", ["thesis.txt", "COMPLETE"])
def test_a_folder_that_no_stage_wrote_is_left_alone(tmp_path, name):
    directory = tmp_path / "home"
    directory.mkdir()
    (directory / name).write_text("mine")
    with pytest.raises(DataError, match="no viker stage wrote"):
        begin(directory, CONFIG)
    assert (directory / name).read_text() == "mine"


def test_a_model_that_no_stage_wrote_is_left_alone(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "llava"})
    (tmp_path / "model.safetensors").write_bytes(b"14 GB")
    with pytest.raises(DataError, match="no viker stage wrote"):
        begin(tmp_path, CONFIG, config_name=CHECKPOINT_CONFIG)


def test_a_checkpoint_keeps_its_options_beside_the_models_own_config(tmp_path):
    begin(tmp_path / "a", CONFIG, config_name=CHECKPOINT_CONFIG)
    write_json(tmp_path / "a" / "config.json", {"model_type": "llava"})
    finish(tmp_path / "a", {}, started=time.time())
    assert decide(tmp_path / "a", CONFIG, overwrite=False, what="model") == "skip"
    with pytest.raises(ArtefactMismatch, match=r"seed .* there 0 .* asked 1"):
        decide(tmp_path / "a", {**CONFIG, "seed": 1}, overwrite=False, what="model")


def test_options_and_inputs_are_compared_one_by_one(tmp_path):
    config = {"schema": "s", "options": {"lr": 1e-4, "epochs": 1}, "inputs": {"data": "d1"}}
    asked = {"schema": "s", "options": {"lr": 1e-3, "epochs": 1}, "inputs": {"data": "d2"}}
    with pytest.raises(ArtefactMismatch) as error:
        decide(make(tmp_path / "a", config), asked, overwrite=False, what="thing")
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["inputs: data", "lr"]
    assert "epochs" not in str(error.value)


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "a").mkdir()
    assert is_complete(make(tmp_path / "a"))


def test_provenance_says_what_made_it(tmp_path):
    provenance = json.loads((make(tmp_path / "a") / "provenance.json").read_text())
    assert provenance["schema"] == "viker/provenance/1"
    assert provenance["inputs"] == {"data": "digest"}
    assert {"command", "code_version", "libraries", "device", "wall_seconds", "peak_resident_bytes"} <= set(provenance)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "ü"})
    write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 2\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"a\.json: expected"):
        read_json(path)


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.json: expected a JSON file, found none"):
        read_json(tmp_path / "a.json")
