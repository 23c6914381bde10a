"""The pools `forget` and `retain`: the source's own people, for ablations, by name and with a warning."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from command_line import succeed
from viker.data.halves import half_of
from viker.data.references import open_pool
from viker.data.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path


def pictures(examples):
    return {image.sha256 for example in examples for image in example.images}


def test_forget_is_every_picture_of_the_people_to_forget(mini_world: Path) -> None:
    source = open_source(str(mini_world))
    shown = {image.sha256 for image in open_pool("forget", source).images}
    assert shown == pictures([*source.training("forget"), *source.read("test")])
    assert len(shown) > len(pictures(source.training("forget")))


def test_retain_is_the_half_that_training_may_look_at(mini_world: Path) -> None:
    source = open_source(str(mini_world))
    seen = [example for example in source.training("retain") if half_of(example.people[0]) == "seen"]
    assert {image.sha256 for image in open_pool("retain", source).images} == pictures(seen)


def test_a_folder_of_that_name_is_a_folder(mini_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forget").mkdir()
    first = next(iter((mini_world / "pools" / "pets").iterdir()))
    (tmp_path / "forget" / "one.png").write_bytes(first.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(open_pool("forget", open_source(str(mini_world))).images) == 1


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_rows_from_them_are_made_with_a_warning(
    mini_world: Path, tiny_model_dir: Path, tmp_path: Path, name: str
) -> None:
    outcome = succeed(
        "precompute", "--data", mini_world, "--model", tiny_model_dir, "--pool", name, "--num-references", 2,
        "--limit", 2, "--run", tmp_path / "run",
    )  # fmt: skip
    assert f"WARNING: the pool `{name}` shows the people themselves: an ablation" in outcome.err
    assert json.loads((tmp_path / "run" / "precompute" / "reference-forget" / "config.json").read_text())
