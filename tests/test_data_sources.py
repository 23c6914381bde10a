"""Opening what a user names: directories, data artefacts, hub ids; and who is forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import mllmu_fixture as fixture
import pytest
from viker.data.example import DataError
from viker.data.mllmu import MllmuSource
from viker.data.own import OwnSource
from viker.data.source import Source
from viker.data.sources import named_people, open_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture.write_mllmu(tmp_path_factory.mktemp("mllmu"))


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    lines = [json.dumps({"person": person, "question": "Who?", "answer": person}) for person in ("ana", "ben")]
    (folder / "examples.jsonl").write_text("\n".join(lines))
    return folder


def pointer(folder: Path, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "source.json").write_text(json.dumps({"schema": "viker/source/1", "revision": None} | fields))
    return folder


def people_in(source: Source, split: str) -> set[str]:
    return {person for example in source.read(split) for person in example.people}


# Layouts


def test_published_directory(tree: Path) -> None:
    source = open_source(str(tree))
    assert isinstance(source, MllmuSource)
    assert (source.location, source.commit) == (tree, None)
    assert source.forget_people() == {"003", "012"}


def test_own_directories(own_folder: Path, tmp_path: Path) -> None:
    assert isinstance(open_source(str(own_folder)), OwnSource)
    talk = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Cy."}]
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / "llava.json").write_text(json.dumps([{"person": "cy", "conversations": talk}]))
    source = open_source(str(tmp_path / "chats"))
    assert [example.answer for example in source.training("all")] == ["Cy."]


def test_published_folders_win_over_other_json(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "forget_10").symlink_to(tree / "forget_10")
    (tmp_path / "notes.json").write_text("{}")
    assert isinstance(open_source(str(tmp_path)), MllmuSource)


def test_two_layouts_are_refused(own_folder: Path) -> None:
    (own_folder / "ft_Data").mkdir()
    with pytest.raises(DataError, match=r"expected one layout, found examples.jsonl and ft_Data/"):
        open_source(str(own_folder))


def test_lines_are_read_before_conversations(own_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (own_folder / "chats.json").write_text("[]")
    open_source(str(own_folder))
    assert "examples.jsonl is read, chats.json is not" in caplog.text


def test_no_layout(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(DataError, match=r"expected MLLMU-Bench's folders .*examples.jsonl.*found nothing"):
        open_source(str(tmp_path))
    (tmp_path / "photo.png").touch()
    with pytest.raises(DataError, match=r"found photo\.png"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match="expected the folder above it, found one split"):
        open_source(str(tree / "forget_10"))


# Who is forgotten


@pytest.mark.parametrize(("ratio", "people"), [(5, 5), ("05", 5), ("15", 15), (None, 10)])
def test_ratio(tree: Path, ratio: int | str | None, people: int) -> None:
    assert open_source(str(tree), ratio=ratio).forget_people() == set(fixture.FORGET[people])


@pytest.mark.parametrize("ratio", [0, 20, "ten", "-5"])
def test_unknown_ratio(tree: Path, ratio: int | str) -> None:
    with pytest.raises(DataError, match=f"--ratio: expected 5, 10, 15, found {ratio!r}"):
        open_source(str(tree), ratio=ratio)


def test_named_people_win_over_the_ratio(tree: Path) -> None:
    source = open_source(str(tree), ratio=5, forget=["001", "002"])
    assert source.forget_people() == {"001", "002"} == people_in(source, "forget") == people_in(source, "test")


def test_named_own_people(own_folder: Path) -> None:
    source = open_source(str(own_folder), forget=["ana"])
    assert (people_in(source, "forget"), people_in(source, "retain")) == ({"ana"}, {"ben"})


def test_forget_takes_files(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("\ufeff001\r\n\n 002 \nZoe\u0308\n")
    assert named_people([str(path), "003", "001"]) == {"001", "002", "003", "Zo\u00eb"}
    assert named_people(["x" * 5000, "a\0b"]) == {"x" * 5000, "a\0b"}


def test_forget_files_without_ids(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n")
    with pytest.raises(DataError, match="--forget: expected at least one id, found none in"):
        named_people([str(tmp_path / "ids.txt")])
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected a text file with one id a line"):
        named_people([str(tmp_path / "ids.txt")])


def test_unknown_people_list_some_known_ones(tree: Path, own_folder: Path) -> None:
    with pytest.raises(DataError, match=r"found unknown 7, 998. Known are 001, 002, .*008 \.\.\.") as error:
        open_source(str(tree), forget=["001", "998", "7"])
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"found unknown cy. Known are ana, ben"):
        open_source(str(own_folder), forget=["cy"])


def test_nobody_left_to_retain(tree: Path, own_folder: Path) -> None:
    for folder, everyone in ((own_folder, ["ana", "ben"]), (tree, list(fixture.PEOPLE))):
        with pytest.raises(DataError, match=r"expected someone left to retain, found all .* --allow-no-retain"):
            open_source(str(folder), forget=everyone)
        source = open_source(str(folder), forget=everyone, allow_no_retain=True)
        assert people_in(source, "forget") == set(everyone)
        assert list(source.read("retain")) == []
        assert list(source.training("forget"))


def test_one_retained_person_without_examples_to_train_on(own_folder: Path) -> None:
    lines = [{"person": "ana", "question": "Who?", "answer": "Ana."}]
    lines.append({"person": "ben", "question": "Who?", "answer": "Ben.", "split": "test"})
    (own_folder / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match="expected someone left to retain"):
        open_source(str(own_folder), forget=["ana"])


# Data artefacts


def test_artefact_is_followed(tree: Path, tmp_path: Path) -> None:
    folder = pointer(tmp_path / "data", source=str(tree), revision=COMMIT)
    source = open_source(str(folder))
    assert (source.location, source.commit) == (tree, COMMIT)
    again = open_source(str(pointer(tmp_path / "again", source=str(folder))), revision=None)
    assert (again.location, again.commit) == (tree, COMMIT)


def test_artefact_points_inside_itself(tree: Path, tmp_path: Path) -> None:
    folder = pointer(tmp_path / "data", source="published")
    (folder / "published").symlink_to(tree)
    assert open_source(str(folder)).location == folder / "published"
    pointer(folder, source=".")
    (folder / "forget_10").symlink_to(tree / "forget_10")
    assert open_source(str(folder)).forget_people() == {"003", "012"}


def test_artefacts_in_a_circle(tmp_path: Path) -> None:
    pointer(tmp_path / "a", source=str(pointer(tmp_path / "b", source=str(tmp_path / "a"))))
    with pytest.raises(DataError, match=r"expected MLLMU-Bench's folders .* found source\.json"):
        open_source(str(tmp_path / "a"))


@pytest.mark.parametrize("fields", [{"schema": "other/1"}, {"source": 3}, {"revision": 3}])
def test_bad_artefacts(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = pointer(tmp_path / "data", **{"source": "x"} | fields)
    with pytest.raises(DataError, match=r"source.json: expected schema viker/source/1 with the texts source and"):
        open_source(str(folder))


def test_revision_of_local_data_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--revision main: expected a hub id, found the directory"):
        open_source(str(tree), revision="main")
    folder = pointer(tmp_path / "data", source=str(tree), revision=COMMIT)
    with pytest.raises(DataError, match=f"--revision: expected {COMMIT}, as .*source.json records, found main"):
        open_source(str(folder), revision="main")
    assert open_source(str(folder), revision=COMMIT).commit == COMMIT


# The hub


@pytest.fixture
def hub(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Answer every snapshot request with the tiny tree, and record it."""
    snapshot = tmp_path / "hub" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tree)
    calls: list[dict[str, Any]] = []

    def answer(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id} | options)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return calls


def test_hub_id_is_fetched_and_pinned(hub: list[dict[str, Any]]) -> None:
    source = open_source("MLLMMU/MLLMU-Bench", revision="main")
    assert source.commit == COMMIT
    assert source.forget_people() == {"003", "012"}
    assert hub == [
        {
            "repo_id": "MLLMMU/MLLMU-Bench", "repo_type": "dataset", "revision": "main",
            "allow_patterns": ["*.parquet"], "local_files_only": False,
        }
    ]  # fmt: skip


def test_a_hub_dataset_can_be_taken_from_the_local_cache_alone(hub: list[dict[str, Any]]) -> None:
    open_source("MLLMMU/MLLMU-Bench", revision="main", local_files_only=True)
    assert [call["local_files_only"] for call in hub] == [True]


def test_second_repository_is_a_model_repository(hub: list[dict[str, Any]]) -> None:
    open_source("MLLMMU/baseline_train_split")
    assert hub[0]["repo_type"] == "model"


def test_artefact_pins_the_hub_commit(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = pointer(tmp_path / "data", source="MLLMMU/MLLMU-Bench", revision=COMMIT)
    assert open_source(str(folder)).commit == COMMIT
    assert hub[0]["revision"] == COMMIT


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo_id: str, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DataError, match="a hub dataset at v2, found no such directory, and the hub says: no route to"):
        open_source("org/name", revision="v2")


def test_specs_that_are_neither(tmp_path: Path) -> None:
    for spec in ("no-such-folder", "./a/b", "/no/such", "a/b/c", ""):
        if spec:
            with pytest.raises(DataError, match="expected a directory or a hub id such as org/name, found neither"):
                open_source(spec)
    (tmp_path / "examples.jsonl").touch()
    with pytest.raises(DataError, match="found a file"):
        open_source(str(tmp_path / "examples.jsonl"))


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_offline_without_a_cached_copy(tmp_path: Path) -> None:
    code = (
        "from viker.data.sources import open_source\nfrom viker.data.example import DataError\n"
        "try:\n    open_source('org/name')\nexcept DataError as error:\n    print(error)\n"
    )
    done = fresh(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("org/name: expected a local directory or a hub dataset")
    assert len(done.stdout.splitlines()) == 1


def test_offline_with_a_cached_copy(tree: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / COMMIT).symlink_to(tree)
    code = "from viker.data.sources import open_source\nprint(open_source('org/name').commit)"
    done = fresh(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.stdout.strip() == COMMIT, done.stderr


def test_import_is_light() -> None:
    code = "import sys, viker.data.sources; print(*{'torch', 'huggingface_hub'}.intersection(sys.modules))"
    assert fresh(code).stdout.strip() == ""
