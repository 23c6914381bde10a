"""A deletion record is evidence without a name: it holds what was done, and a check shows where that holds no more."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, call
from recorded_run import (
    ADAPTER,
    BASE,
    FACTS,
    FORGOTTEN,
    FORGOTTEN_TOO,
    NAMES,
    PEOPLE,
    RETAINED,
    UNLEARNED,
    VANILLA,
    add_adapter,
    add_evaluation,
    add_merged,
    make_run,
)
from viker.data.artefact import read_json, write_json
from viker.data.run_roots import keys_below
from viker.evaluate.attacks.attacks import ATTACKS
from viker.evaluate.record.content import record_digest
from viker.evaluate.record.keys import find_key
from viker.evaluate.record.weights import REVERSIBLE, combined_digest, read_weights
from viker.evaluate.record.withheld import WITHHELD, Withhold


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("original"))


@pytest.fixture
def run(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(original.parent, tmp_path / "place")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "place" / original.name


def make(run: Path, *options: object, person: str = FORGOTTEN, adapter: str = ADAPTER) -> Outcome:
    return call("record", run, "--adapter", adapter, "--person", person, *options)


def record_of(run: Path, *options: object, person: str = FORGOTTEN, adapter: str = ADAPTER) -> dict[str, Any]:
    outcome = make(run, "--json", *options, person=person, adapter=adapter)
    assert outcome.code == 0, outcome.err
    (told,) = json.loads(outcome.out)["records"]
    return told["record"]


def folder_of(run: Path, record: dict[str, Any]) -> Path:
    return run / "record" / f"{record['request']['adapter']}-{record['subject']['pseudonym'][:16]}"


def checked(run: Path, *options: object) -> tuple[int, dict[str, tuple[str, str]]]:
    (folder,) = (path.parent for path in run.glob("record/*/record.json"))
    outcome = call("record", run, "--check", folder, "--json", *options)
    told = json.loads(outcome.out)
    return outcome.code, {item["what"]: (item["status"], item["told"]) for item in told["items"]}


def differing(found: dict[str, tuple[str, str]]) -> set[str]:
    return {what for what, (status, _) in found.items() if status == "differs"}


# ---- whom it is about ------------------------------------------------------------------------------------------------


def test_nothing_in_a_record_names_anybody_or_says_a_private_word(run: Path) -> None:
    folder = folder_of(run, record_of(run))
    words = {word for facts in FACTS.values() for word in facts.values()}
    words |= {part for name in NAMES.values() for part in name.split()} | set(PEOPLE)
    (place,) = {path.name for path in run.parent.iterdir() if path.name.startswith("runs")}
    files = sorted(folder.iterdir())
    assert {"record.json", "record.html", "config.json", "provenance.json", "COMPLETE"} == {one.name for one in files}
    for file in files:
        text = file.read_text(encoding="utf-8").casefold()
        found = [word for word in (*words, place, str(run.parent), "/home", "their data") if word.casefold() in text]
        assert found == [], file
    assert not any(word.casefold() in folder.name.casefold() for word in words)


def test_the_key_shows_whose_record_it_is_and_stays_out_of_it(run: Path) -> None:
    record = record_of(run)
    (path,) = (run / "record" / "keys").iterdir()
    secret = path.read_text().strip()
    shown = hashlib.blake2b(FORGOTTEN.encode(), digest_size=16, key=bytes.fromhex(secret)).hexdigest()
    assert shown == record["subject"]["pseudonym"] == path.stem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert all(secret not in file.read_text() for file in folder_of(run, record).iterdir())


def test_two_people_have_two_records_under_two_keys(run: Path) -> None:
    told = json.loads(make(run, "--person", FORGOTTEN_TOO, "--json").out)["records"]
    first, second = (one["record"]["subject"]["pseudonym"] for one in told)
    assert first != second
    assert len(list((run / "record" / "keys").iterdir())) == 2
    assert find_key(run, FORGOTTEN_TOO).pseudonym == second


def test_a_record_made_again_has_the_same_pseudonym(run: Path) -> None:
    first = record_of(run)
    second = record_of(run, "--overwrite")
    assert second["subject"] == first["subject"]
    assert second["examples"] == first["examples"]
    assert second["replaces"] == [first["record_sha256"]]


def test_a_damaged_key_is_named(run: Path) -> None:
    record_of(run)
    (path,) = (run / "record" / "keys").iterdir()
    path.write_text("no key\n")
    outcome = make(run)
    assert outcome.code == 1
    assert f"{path}: expected a key of 32 bytes in hex" in outcome.message


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_the_request_names_method_settings_and_forget_set(run: Path) -> None:
    request = record_of(run)["request"]
    assert (request["method"], request["settings"]["lambda"], request["settings"]["terms"]) == (
        "viker", 0.5, [["ascent", "climb", 1.0]],
    )  # fmt: skip
    assert request["forget_set"] == {"people": 2, "examples": 5}
    assert request["unlearned_from"] == {"weights": BASE, "commit": None, "in_run": None}
    assert {request["settings"][name] for name in ("data", "model", "forget", "system_prompt")} == {WITHHELD}


def test_examples_are_counted_and_digested_under_the_key(run: Path) -> None:
    examples = record_of(run)["examples"]
    assert (examples["unlearned"]["count"], examples["unlearned"]["with_picture"]) == (3, 2)
    assert len(set(examples["unlearned"]["digests"])) == 3
    assert {split: found["count"] for split, found in examples["asked"].items()} == {"forget": 4, "test": 4}
    shutil.rmtree(run / "record")
    assert not set(record_of(run)["examples"]["unlearned"]["digests"]) & set(examples["unlearned"]["digests"])


def test_every_score_about_the_person_stands_beside_vanillas_and_retain_onlys(run: Path) -> None:
    numbers = record_of(run)["numbers"]
    scores = {
        name: read_json(run / "evaluations" / name / "scores.json") for name in ("vanilla", "retain-only", ADAPTER)
    }
    parts = {"vanilla": "vanilla", "retain-only": "retain-only", "unlearned": ADAPTER}
    cell = ("split", "task", "modality", "metric")
    for part, name in parts.items():
        expected = {tuple(row[field] for field in cell): row["value"]
                    for row in scores[name]["people"] if row["person"] == FORGOTTEN}  # fmt: skip
        assert {tuple(row[field] for field in cell): row[part]["value"] for row in numbers["subject"]} == expected
    assert numbers["label"] == "against retain-only"
    assert {row["split"] for row in numbers["splits"]} == {"forget", "test", "retain-heldout"}


def test_the_summary_is_before_after_and_never_knew(run: Path) -> None:
    (summary,) = record_of(run)["summary"]
    assert [summary[part]["value"] for part in ("vanilla", "unlearned", "retain-only")] == [1, 0, 0]


def test_attacks_are_listed_with_what_they_brought_back_and_those_not_made(run: Path) -> None:
    attacks = record_of(run)["attacks"]
    assert [one["attack"] for one in attacks["run"]] == ["paraphrase"]
    assert {one["attack"] for one in attacks["not_run"]} == set(ATTACKS) - {"paraphrase"}
    (own,) = (row for row in attacks["run"][0]["subject"] if row["metric"] == "fact_recall")
    assert (own["before"], own["after"], own["recovery"], own["excess"]) == (0, 0.5, 0.5, 0.5)


def test_a_person_whom_an_attack_did_not_ask_about_is_said_so(run: Path) -> None:
    path = run / "evaluations" / ADAPTER / "attacks" / "paraphrase" / "answers.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if FORGOTTEN not in line))
    record = record_of(run)
    assert record["attacks"]["run"][0]["subject"] is None
    assert any("nothing was asked under paraphrase" in sentence for sentence in record["limits"])


def test_the_verdict_is_there_without_the_people_it_names(run: Path) -> None:
    verdict_file = read_json(run / "evaluations" / ADAPTER / "verdict.json")
    named = [one["person"] for one in verdict_file["checks"]]
    assert named[0] in PEOPLE, "or nothing is tested"
    policy = record_of(run, person=named[0])["policy"]
    worst, attack, missing = policy["verdict"]["checks"]
    assert (attack["value"], attack["passed"], attack["against"]) == (0.5, False, "retain-only")
    assert (worst["worst"], worst["at_most"], worst["passed"], attack["worst"]) == ("this person", 0.6, True, None)
    assert missing["words"] == "not measured, which is never a pass"
    assert policy["policy"]["sha256"] == verdict_file["policy"]["sha256"]
    assert policy["policy"]["name"] == f"as the family of {WITHHELD} was promised"
    (other,) = {FORGOTTEN, FORGOTTEN_TOO} - {named[0]}
    assert record_of(run, person=other)["policy"]["verdict"]["checks"][0]["worst"] == "another person"


def test_without_a_policy_the_record_says_so(run: Path) -> None:
    for name in ("policy.json", "verdict.json"):
        (run / "evaluations" / ADAPTER / name).unlink()
    policy = record_of(run)["policy"]
    assert (policy["policy"], policy["verdict"]) == (None, None)
    assert policy["words"].startswith("no policy")
    assert "No policy was applied." in make(run).out


def test_without_retain_only_and_controls_there_is_no_verdict(run: Path) -> None:
    shutil.rmtree(run / "evaluations" / "retain-only")
    record = record_of(run)
    assert record["numbers"]["label"] == "no retain-only, no controls: no verdict"
    assert any("No model that never knew the person was measured" in sentence for sentence in record["limits"])


def test_an_evaluation_that_was_asked_otherwise_is_a_caveat(run: Path) -> None:
    add_evaluation(run, "vanilla", VANILLA, limit=3)
    caveats = record_of(run)["numbers"]["caveats"]
    assert "vanilla was evaluated with other options (limit)." in caveats


def test_commands_stand_without_people_and_places(run: Path) -> None:
    stages = {one["stage"]: one for one in record_of(run)["provenance"]["stages"]}
    assert stages[f"adapters/{ADAPTER}"]["command"] == (
        f"viker train --run {WITHHELD} --forget {WITHHELD} --forget={WITHHELD} --method viker --lambda 0.5"
    )


def test_what_is_left_without_a_picture_is_said(run: Path) -> None:
    limits = record_of(run)["limits"]
    assert any("by name alone, the unlearned model gives 0.0 % of the facts (vanilla 100.0 %" in one for one in limits)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_an_adapter_alone_is_said_to_be_reversible(run: Path) -> None:
    record = record_of(run)
    assert (record["weights"]["kind"], record["weights"]["merged"]) == (REVERSIBLE, None)
    file = run / "adapters" / ADAPTER / "adapter_model.safetensors"
    (known,) = record["weights"]["adapter"]["files"]
    assert known["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert any("can be taken off" in sentence for sentence in record["limits"])


@pytest.mark.parametrize("where", ["in the run", "elsewhere"])
def test_a_merged_model_is_recorded_by_digest(run: Path, where: str) -> None:
    place = add_merged(run, run / "exports" / "merged" if where == "in the run" else run.parent / "merged")
    options = () if where == "in the run" else ("--merged", place)
    merged = record_of(run, *options)["weights"]["merged"]
    assert merged["weights"] == read_json(place / "provenance.json")["weights"]
    assert merged["files"][0]["sha256"] == hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
    code, found = checked(run, *options)
    assert (code, found["merged model"][0]) == (0, "same")


def test_a_model_merged_from_another_adapter_is_refused(run: Path) -> None:
    add_adapter(run, "ga-bbbbbbbb", seed=1, method="ga")
    place = add_merged(run, run.parent / "merged", adapter="ga-bbbbbbbb")
    outcome = make(run, "--merged", place)
    assert outcome.code == 3
    assert f"expected the adapter {ADAPTER}" in outcome.message
    assert "found one merged from ga-bbbbbbbb" in outcome.message
    assert not (run / "record").exists(), "nor is a key left behind"


def test_a_model_merged_onto_another_base_is_refused(run: Path) -> None:
    outcome = make(run, "--merged", add_merged(run, run.parent / "merged", base="0ff" * 16))
    assert outcome.code == 3
    assert "expected adapter and base of digest" in outcome.message


def test_a_merged_model_that_changed_since_is_refused(run: Path) -> None:
    place = add_merged(run, run.parent / "merged")
    path = place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    outcome = make(run, "--merged", place)
    assert outcome.code == 3
    assert "expected the weights that were exported" in outcome.message


def test_two_merged_models_in_a_run_have_to_be_named(run: Path) -> None:
    places = [add_merged(run, run / "exports" / name) for name in ("a", "b")]
    outcome = make(run)
    assert outcome.code == 1
    assert "Name one with --merged" in outcome.message
    assert record_of(run, "--merged", places[0])["weights"]["merged"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}rest", b"\x02\0\0\0\0\0\0\0[]"])
def test_damaged_weights_are_named(run: Path, content: bytes) -> None:
    path = run / "adapters" / ADAPTER / "adapter_model.safetensors"
    path.write_bytes(content)
    outcome = make(run)
    assert outcome.code == 1
    assert f"{path}: expected a safetensors file, found" in outcome.message


def test_digests_of_weights_are_those_that_training_and_exports_record(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from viker.models.identity import weights_digest
    from viker.models.load import Checkpoint

    below = tmp_path / "base"
    below.mkdir()
    for number in range(2):  # a checkpoint cut into files
        save_file({f"layer{number}": torch.rand(3, number + 1).half()}, below / f"model-{number}.safetensors")
    save_file(
        {"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b": torch.tensor(2.5), "c": torch.zeros(0, 4),
         "d": torch.tensor([True, False]), "e": torch.arange(3)}, tmp_path / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )  # fmt: skip
    settings = {"r": 8, "lora_alpha": 16.5, "rank_pattern": {"q": 4, "k": 0.5}, "use_dora": False}
    write_json(tmp_path / "adapter_config.json", settings)
    base = weights_digest(Checkpoint("m", below, below))
    assert read_weights(below).tensors == base
    on_base = weights_digest(Checkpoint("m", below, below, adapter=tmp_path))
    assert combined_digest(base, tmp_path, read_weights(tmp_path).tensors) == on_base


# ---- whom and what it cannot be made of ------------------------------------------------------------------------------


def test_somebody_who_was_not_unlearned_has_no_record(run: Path) -> None:
    for person, found in ((RETAINED, "who is not to be forgotten"), ("nobody-here", "nobody of that id")):
        outcome = make(run, person=person)
        assert outcome.code == 3
        assert f"--person {person}: expected somebody whom {ADAPTER} unlearned" in outcome.message
        assert found in outcome.message
    assert not (run / "record").exists()


def test_an_unknown_adapter_is_a_mistake_of_usage(run: Path) -> None:
    outcome = make(run, adapter="ga-bbbbbbbb")
    assert outcome.code == 2
    assert ADAPTER in outcome.err
    assert call("record", run, "--adapter", ADAPTER).code == 2
    assert call("record", run, "--person", FORGOTTEN).code == 2
    assert make(run, "--key", "file").code == 2


def test_an_adapter_has_to_be_evaluated_first(run: Path) -> None:
    shutil.rmtree(run / "evaluations" / ADAPTER)
    outcome = make(run)
    assert outcome.code == 1
    assert f"viker evaluate --run {run} --target {ADAPTER}" in outcome.message


def test_an_evaluation_of_an_older_adapter_is_refused(run: Path) -> None:
    config = read_json(run / "evaluations" / ADAPTER / "config.json")
    config["inputs"] = dict.fromkeys(config["inputs"], "2020-01-01T00:00:00Z")
    write_json(run / "evaluations" / ADAPTER / "config.json", config)
    outcome = make(run)
    assert outcome.code == 3
    assert "found one of 2020-01-01" in outcome.message


def test_scores_without_people_have_to_be_made_again(run: Path) -> None:
    path = run / "evaluations" / ADAPTER / "scores.json"
    write_json(path, read_json(path) | {"people": []})
    outcome = make(run)
    assert outcome.code == 1
    assert "--rescore" in outcome.message


def test_a_source_that_changed_since_is_refused(run: Path) -> None:
    people = run.parent / "their data" / "examples.jsonl"
    lines = [line for line in people.read_text().splitlines(keepends=True) if "Who is" not in line]
    people.write_text("".join(lines))
    path = run / "data" / "source.json"
    write_json(path, read_json(path) | {"source": str(people.parent)})
    outcome = make(run)
    assert outcome.code == 3
    assert f"expected the 5 examples that {ADAPTER} unlearned, found 4" in outcome.message


def test_data_that_was_made_again_is_refused(run: Path) -> None:
    config = read_json(run / "adapters" / ADAPTER / "config.json")
    config["inputs"] = dict.fromkeys(config["inputs"], "2020-01-01T00:00:00Z")
    write_json(run / "adapters" / ADAPTER / "config.json", config)
    outcome = make(run)
    assert outcome.code == 3
    assert "expected the data it was trained from" in outcome.message


def test_an_adapter_that_is_called_by_the_person_is_refused(run: Path) -> None:
    name = f"for {FORGOTTEN}"
    add_adapter(run, name)
    add_evaluation(run, name, UNLEARNED)
    outcome = make(run, adapter=name)
    assert outcome.code == 1
    assert "expected a name that says nothing of the person" in outcome.message


# ---- made once, and checked later ------------------------------------------------------------------------------------


def test_the_same_record_is_not_made_twice(run: Path) -> None:
    first = record_of(run)
    outcome = make(run)
    assert "complete, skipped" in outcome.out
    assert record_of(run) == first


def test_a_record_of_other_inputs_stands_until_it_is_overwritten(run: Path) -> None:
    first = record_of(run)
    add_evaluation(run, "vanilla", UNLEARNED)
    outcome = make(run)
    assert outcome.code == 3
    assert "evaluations/vanilla/scores.json" in outcome.message
    assert read_json(folder_of(run, first) / "record.json") == first
    assert record_of(run, "--output", run.parent / "case")["subject"] == first["subject"]
    assert record_of(run, "--overwrite")["replaces"] == [first["record_sha256"]]
    assert sorted(path.name for path in (run / "record").iterdir()) == sorted(["keys", folder_of(run, first).name])


def test_a_kill_between_old_and_new_loses_no_evidence(run: Path) -> None:
    first = record_of(run)
    folder = folder_of(run, first)
    folder.rename(folder.with_name(f"{folder.name}.old"))
    assert record_of(run)["replaces"] == [first["record_sha256"]]


def test_files_of_others_are_not_replaced(run: Path) -> None:
    folder = folder_of(run, record_of(run))
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "letter.txt").write_text("from the lawyer")
    assert make(run, "--overwrite").code == 1
    assert (folder / "letter.txt").is_file()


def test_a_check_finds_nothing_where_nothing_changed(run: Path) -> None:
    record_of(run)
    code, found = checked(run, "--person", FORGOTTEN)
    assert code == 0
    assert {status for status, _ in found.values()} == {"same"}
    assert {"record.html", "record.json, its seal", "whom it is about", "numbers, made anew"} <= set(found)


def test_a_check_needs_neither_people_nor_their_data(run: Path) -> None:
    record = record_of(run)
    shutil.rmtree(run.parent / "their data")
    shutil.rmtree(run / "data")
    (run / "record" / "keys" / f"{record['subject']['pseudonym']}.key").unlink()
    code, found = checked(run)
    assert code == 0
    unchecked = {what for what, (status, _) in found.items() if status == "not checked"}
    assert {"whom it is about", "record.json, its seal", f"evaluations/{ADAPTER}/verdict.json"} <= unchecked
    assert found[f"evaluations/{ADAPTER}/answers.jsonl"] == ("same", "")


@pytest.mark.parametrize("name", ["answers.jsonl", "scores.json", "verdict.json", "attacks/paraphrase/answers.jsonl"])
def test_a_check_finds_a_file_that_changed(run: Path, name: str) -> None:
    record_of(run)
    path = run / "evaluations" / ADAPTER / name
    path.write_bytes(path.read_bytes() + b"\n")
    code, found = checked(run)
    assert code == 3
    assert differing(found) == {f"evaluations/{ADAPTER}/{name}"}


def test_a_check_finds_numbers_that_are_not_those_of_the_run(run: Path) -> None:
    record_of(run)
    add_evaluation(run, "vanilla", UNLEARNED)
    code, found = checked(run, "--person", FORGOTTEN)
    assert code == 3
    assert {"numbers, made anew", "summary, made anew"} <= differing(found)


def test_what_is_gone_is_no_proof_and_no_contradiction(run: Path) -> None:
    record_of(run)
    shutil.rmtree(run / "evaluations" / "vanilla")
    code, found = checked(run)
    assert code == 1
    assert found["evaluations/vanilla/scores.json"][0] == "gone"


def test_a_record_that_was_tampered_with_is_found(run: Path) -> None:
    record = record_of(run)
    path = folder_of(run, record) / "record.json"
    record["policy"]["verdict"]["passed"] = True
    write_json(path, record)
    code, found = checked(run)
    assert code == 3
    assert {"record.json, its own digest", "record.json, its seal", "record.html"} <= differing(found)
    write_json(path, record | {"record_sha256": record_digest(record)})
    code, found = checked(run)
    assert code == 3
    assert "record.json, its own digest" not in differing(found)
    assert "record.json, its seal" in differing(found), "which nobody without the key can make"


def test_a_page_that_was_tampered_with_is_found(run: Path) -> None:
    path = folder_of(run, record_of(run)) / "record.html"
    path.write_text(path.read_text().replace("FAILED", "passed"))
    code, found = checked(run)
    assert (code, differing(found)) == (3, {"record.html"})


def test_a_check_tells_whether_it_is_about_somebody(run: Path) -> None:
    record_of(run)
    code, found = checked(run, "--person", FORGOTTEN_TOO)
    assert (code, differing(found)) == (3, {"whom it is about"})


def test_a_key_kept_elsewhere_opens_the_rest(run: Path) -> None:
    record_of(run)
    (path,) = (run / "record" / "keys").iterdir()
    kept = path.rename(run.parent / "vault.txt")
    _, found = checked(run, "--key", kept, "--person", FORGOTTEN)
    assert {status for status, _ in found.values()} == {"same"}


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": "viker/record/1", "subject": {}}', "no JSON"])
def test_something_else_is_no_record(run: Path, content: str) -> None:
    record_of(run)
    path = run.parent / "other.json"
    path.write_text(content)
    outcome = call("record", run, "--check", path)
    assert outcome.code == 1
    assert "expected" in outcome.message


def test_a_record_of_places_outside_the_run_opens_none(run: Path) -> None:
    record = record_of(run)
    record["provenance"]["files"].append({"path": "../policy.toml", "sha256": "00"})
    write_json(folder_of(run, record) / "record.json", record)
    _, found = checked(run)
    assert found["../policy.toml"] == ("differs", "a place outside the run")


# ---- beside other commands -------------------------------------------------------------------------------------------


def test_making_and_checking_a_record_loads_no_torch(run: Path) -> None:
    arguments = ["record", str(run), "--adapter", ADAPTER, "--person", FORGOTTEN]
    code = (
        "import sys\nfrom viker.cli import viker\n"
        f"viker.main({arguments!r}, standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=run.parent)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_record_keeps_no_cache_from_being_collected(run: Path) -> None:
    record_of(run)
    assert keys_below(run / "record") == set()


def purge(run: Path, *options: object) -> dict[str, Any]:
    outcome = call("purge", FORGOTTEN, "--runs", run, "--record", run.parent / "purges", "--yes", "--json", *options)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_purge_keeps_the_record_and_its_key_and_says_so(run: Path) -> None:
    record = record_of(run)
    record_of(run, person=FORGOTTEN_TOO)
    files = {path: path.read_bytes() for path in (run / "record").rglob("*") if path.is_file()}
    told = purge(run)
    assert {path: path.read_bytes() for path in (run / "record").rglob("*") if path.is_file()} == files
    (finding,) = (one for one in told["findings"] if one["kind"] == "record key")
    assert (finding["status"], finding["before"]) == ("kept", {"pseudonym": record["subject"]["pseudonym"]})
    assert not any("/record/" in one["place"] for one in told["findings"] if one is not finding)


def test_a_purge_says_in_its_own_record_what_this_one_speaks_of(run: Path) -> None:
    record = record_of(run)
    known = {one["path"]: one.get("sha256") for one in record["provenance"]["files"]}
    told = purge(run)
    purged = read_json(Path(told["record"]))
    before = {one["before"]["answers"] for one in purged["findings"] if one["kind"] == "answers"}
    assert known[f"evaluations/{ADAPTER}/answers.jsonl"] in before
    (folder,) = (path.parent for path in run.glob("record/*/record.json"))
    assert call("record", run, "--check", folder).code == 3, "and the check finds that they are not what they were"


def test_a_purge_hands_the_key_over_where_that_is_asked_for(run: Path) -> None:
    record = record_of(run)
    other = record_of(run, person=FORGOTTEN_TOO)
    told = purge(run, "--include-record-keys")
    (finding,) = (one for one in told["findings"] if one["kind"] == "record key")
    (secret,) = re.findall("[0-9a-f]{64}", finding["done"])
    shown = hashlib.blake2b(FORGOTTEN.encode(), digest_size=16, key=bytes.fromhex(secret)).hexdigest()
    assert shown == record["subject"]["pseudonym"]
    assert [path.stem for path in (run / "record" / "keys").iterdir()] == [other["subject"]["pseudonym"]]
    assert secret not in Path(told["record"]).read_text()
    assert read_json(folder_of(run, record) / "record.json") == record


# ---- what is withheld ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("for 001, as promised", f"for {WITHHELD}, as promised"),
        ("at most 0.001 and 1001", "at most 0.001 and 1001"),
        ("New  York or newyork", f"{WITHHELD} or newyork"),
        ("about 001.", f"about {WITHHELD}."),
    ],
)
def test_words_are_withheld_as_whole_words(text: str, expected: str) -> None:
    assert Withhold(["001", "New York", " "]).text(text) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("viker train --seed 1 --lambda 0.5 --method viker", "viker train --seed 1 --lambda 0.5 --method viker"),
        ("viker data make ada out", f"viker data make {WITHHELD} {WITHHELD}"),
        ("viker train --data=ada --method ada", f"viker train --data={WITHHELD} --method {WITHHELD}"),
        ("viker evaluate --new '/home/ada/x'", f"viker evaluate --new {WITHHELD}"),
        ("viker 'torn", WITHHELD),
    ],
)  # fmt: skip
def test_of_commands_only_numbers_and_plain_names_stay(command: str, expected: str) -> None:
    assert Withhold(["ada"]).command(command) == expected
