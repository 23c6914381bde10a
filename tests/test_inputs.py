"""What a stage knows of its inputs without reading them."""

import time

import pytest
from viker.data.artefact import begin, finish
from viker.data.example import DataError
from viker.data.inputs import input_stamps, other_commits


def finished(directory, **facts):
    begin(directory, {"schema": "viker/test/1"})
    finish(directory, facts, started=time.time())
    return directory


def test_a_finished_artefact_is_stamped_by_when_it_was_finished(tmp_path):
    stamps = input_stamps(str(finished(tmp_path / "data")), "org/model")
    assert stamps[str(tmp_path / "data")].endswith("Z")
    assert stamps["org/model"] == "given"


def test_an_interrupted_model_is_no_input(tmp_path):
    begin(tmp_path / "vanilla", {"schema": "viker/test/1"}, config_name="viker_config.json")
    with pytest.raises(DataError, match="interrupted"):
        input_stamps(str(tmp_path / "vanilla"))


def test_a_stage_that_resolves_another_commit_is_told(tmp_path):
    finished(tmp_path / "adapters" / "viker-1", model_commit="aaa")
    finished(tmp_path / "adapters" / "local", model_commit=None)
    assert other_commits(tmp_path, "model_commit", "aaa") == []
    told = other_commits(tmp_path, "model_commit", "bbb")
    assert len(told) == 1
    assert "aaa" in told[0]
    assert "bbb" in told[0]
