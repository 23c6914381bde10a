"""`viker cache extend`: only missing rows are computed, the parent's are copied, and what differs is listed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cache_samples import tree_bytes
from command_line import call, copy_model, succeed
from viker.data.artefact import read_json
from viker.precompute.cache import TeacherCache
from viker.precompute.reading.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 240


@pytest.fixture
def asked(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    return ["--data", str(mini_world), "--model", str(tiny_model_dir)]


@pytest.fixture
def pool(mini_world: Path) -> list[str]:
    return ["--pool", str(mini_world / "pools" / "pets")]


@pytest.fixture
def precompute(asked: list[str], pool: list[str]) -> list[str]:
    return ["precompute", *asked, *pool, "--num-references", "2", "--top-k", "8", "--seed", "3", "--json"]


def told(*arguments: object) -> dict[str, Any]:
    return json.loads(succeed(*arguments).out)


def parent_of(precompute: list[str], *options: str) -> TeacherCache:
    return TeacherCache.open(told(*precompute, *options)["path"])


def rows_by_key(cache: TeacherCache) -> dict[bytes, list[bytes]]:
    found = {}
    for pair in cache.sample_keys:
        rows = cache.rows_of(cache.find_row(pair[:16]))
        found[pair] = [array.tobytes() for array in vars(rows).values()]
    return found


class Forwards:
    """Count the examples an engine is asked for, and the models that are loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from viker.precompute import open_teacher, teacher

        self.examples = self.models = 0
        self._open, self._load = teacher.open_teacher, open_teacher.load_model
        monkeypatch.setattr(teacher, "open_teacher", self._counted_open)
        monkeypatch.setattr(open_teacher, "load_model", self._counted_load)

    def _counted_open(self, *arguments: Any) -> Any:
        opened = self._open(*arguments)

        def counted(pending: Any) -> Any:
            self.examples += len(pending)
            return opened.rows_of(pending)

        return opened._replace(rows_of=counted)

    def _counted_load(self, *arguments: Any, **options: Any) -> Any:
        self.models += 1
        return self._load(*arguments, **options)


def test_only_missing_rows_run_and_the_parents_are_the_same_bits(asked, precompute, monkeypatch):
    parent = parent_of(precompute, "--split", "forget")
    before = tree_bytes(parent.root)
    forwards = Forwards(monkeypatch)
    extended = told("cache", "extend", parent.key[:16], *asked, "--split", "all", "--json")
    child = TeacherCache.open(extended["path"])

    assert child.key != parent.key
    assert child.num_samples > parent.num_samples
    missing = len(child.row_keys - parent.row_keys)
    assert extended["missing"]["row_keys"] == forwards.examples == missing > 0
    assert extended["pairs"] == 2 * missing
    lengths = [len(child.rows_of(child.find_row(key))) for key in child.row_keys - parent.row_keys]
    assert extended["missing"]["rows"] == sum(lengths)
    old, new = rows_by_key(parent), rows_by_key(child)
    assert old.items() <= new.items()
    assert verify(child.root, "full") == []
    assert tree_bytes(parent.root) == before


def test_an_extended_cache_has_the_key_and_the_rows_of_one_made_at_once(asked, precompute, tmp_path, monkeypatch):
    parent = parent_of(precompute, "--split", "forget")
    child = TeacherCache.open(told("cache", "extend", parent.key[:16], *asked, "--split", "all", "--json")["path"])
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path / "elsewhere"))
    whole = parent_of(precompute, "--split", "all")
    assert whole.key == child.key
    assert whole.sample_keys == child.sample_keys
    assert (whole.reference == child.reference).all()
    np.testing.assert_allclose(whole.load().kept_logprobs_NK, child.load().kept_logprobs_NK, atol=2e-2)


def test_the_parent_is_recorded_and_what_was_asked_of_both(asked, precompute, mini_world):
    parent = parent_of(precompute, "--split", "forget")
    child = TeacherCache.open(told("cache", "extend", parent.key[:16], *asked, "--split", "retain", "--json")["path"])
    assert rows_by_key(parent).items() <= rows_by_key(child).items(), "also where the parent's are not asked for"
    assert child.build["parents"] == [{"key": parent.key, "root": parent.root_digest}]
    assert child.build["derived"] == "extend"
    assert child.build["asked"] == [{"split": "forget", "ratio": None}, {"split": "retain", "ratio": None}]
    assert child.build["split"] == "forget+retain"
    assert set(child.build["block_devices"]) == {"cpu"}
    assert "extended" not in json.dumps(parent.build)
    listed = json.loads(succeed("cache", "list", "--json").out)["caches"]
    assert {row["split"] for row in listed} == {"forget", "forget+retain"}


def test_what_is_covered_costs_no_model(asked, precompute, monkeypatch):
    parent = parent_of(precompute, "--split", "all")
    forwards = Forwards(monkeypatch)
    extended = told("cache", "extend", parent.key[:16], *asked, "--split", "forget", "--json")
    assert (extended["key"], extended["pairs"], forwards.models) == (parent.key, 0, 0)
    assert extended["how"] == "the cache covers it already, nothing computed"
    assert extended["missing"] == {"row_keys": 0, "rows": 0}


def test_run_again_it_computes_nothing(asked, precompute, monkeypatch):
    parent = parent_of(precompute, "--split", "forget")
    command = ("cache", "extend", parent.key[:16], *asked, "--split", "all", "--json")
    first = told(*command)
    forwards = Forwards(monkeypatch)
    second = told(*command)
    assert (second["key"], second["pairs"], forwards.models) == (first["key"], 0, 0)
    assert first["pairs"] > 0


def test_a_dry_run_says_how_many_rows_are_missing_and_loads_no_weights(asked, precompute, monkeypatch):
    parent = parent_of(precompute, "--split", "forget")
    forwards = Forwards(monkeypatch)
    command = ("cache", "extend", parent.key[:16], *asked, "--split", "all")
    dry = told(*command, "--dry-run", "--json")
    assert forwards.models == 0
    assert dry["path"] is None
    assert not list(parent.root.parent.glob("*.building"))
    said = succeed(*command, "--dry-run").out
    assert f"would compute {dry['missing']['rows']} rows into a new cache, key {dry['key'][:16]}" in said
    wet = told(*command, "--json")
    assert (wet["key"], wet["missing"]) == (dry["key"], dry["missing"])


def test_data_model_and_pool_default_to_what_was_recorded_and_are_said(precompute, mini_world, tiny_model_dir):
    parent = parent_of(precompute, "--split", "forget")
    outcome = succeed("cache", "extend", parent.key[:16], "--split", "retain", "--limit", "3", "--json")
    assert f"as the cache was made: --data {mini_world} --model {tiny_model_dir} --pool" in outcome.err
    assert json.loads(outcome.out)["missing"]["row_keys"] == 3
    assert "keep it as you keep the forget set" in outcome.err


def test_every_difference_is_listed_before_any_weight_is_loaded(
    asked, precompute, mini_world, tiny_model_dir, tmp_path, monkeypatch
):
    parent = parent_of(precompute, "--split", "forget")
    other = copy_model(tiny_model_dir, tmp_path / "other")
    change_weights(other)
    (other / "viker_rendering.json").write_text(
        json.dumps({**read_json(other / "viker_rendering.json"), "system_prompt": "Be kind."})
    )
    pool = next(path for path in sorted((mini_world / "pools").iterdir()) if path.name != "pets")
    forwards = Forwards(monkeypatch)
    refused = call("cache", "extend", parent.key[:16], "--data", mini_world, "--model", other, "--pool", pool,
                   "--dtype", "bfloat16", "--split", "all")  # fmt: skip
    assert (refused.code, forwards.models) == (3, 0)
    fields = dict(re.findall(r"^  (\S+) +cache (\S+)", refused.message, flags=re.MULTILINE))
    assert fields == {
        "pool": parent.fingerprint["pool"], "rendering.system_prompt": "None", "teacher_dtype": "float32",
        "weights": parent.fingerprint["weights"],
    }  # fmt: skip
    assert "wanted Be kind." in refused.message


def change_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    first = min(name for name, weight in weights.items() if weight.dim() > 1)
    weights[first] = weights[first] * 1.5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_another_pool_is_refused_with_both_digests(asked, precompute, mini_world):
    parent = parent_of(precompute, "--split", "forget")
    refused = call("cache", "extend", parent.key[:16], *asked, "--pool", "patterns", "--split", "all")
    assert refused.code == 3
    assert re.search(rf"pool +cache {parent.fingerprint['pool']}  wanted [0-9a-f]{{64}}\n", refused.message)


def test_self_rows_are_extended_without_a_pool(asked, precompute):
    made = told("precompute", *asked, "--teacher", "self", "--split", "forget", "--json")
    parent = TeacherCache.open(made["path"])
    child = told("cache", "extend", parent.key[:16], *asked, "--split", "retain", "--limit", 2, "--json")
    assert TeacherCache.open(child["path"]).top_k == parent.top_k == 0
    assert (child["pairs"], child["missing"]["row_keys"]) == (2, 2)


def test_memorized_answers_are_warned_of(asked):
    made = told("precompute", *asked, "--teacher", "self", "--split", "retain", "--limit", "2", "--json")
    command = ("cache", "extend", made["key"][:16], *asked, "--limit", 2)
    assert "keep 64 tokens here, the memorized answer among them" in succeed(*command, "--split", "forget").err
    assert "WARNING" not in succeed(*command, "--split", "retain-seen").err


def test_a_run_is_told_the_new_key(asked, precompute, tmp_path):
    run = tmp_path / "run"
    parent = parent_of(precompute, "--split", "forget", "--limit", "3", "--run", str(run))
    child = told("cache", "extend", parent.key[:16], *asked, "--run", run, "--json")
    stored = run / "precompute" / "reference-forget"
    assert read_json(stored / "provenance.json")["cache"]["key"] == child["key"] != parent.key
    assert read_json(stored / "config.json")["schema"] == "viker/precompute/1"
    again = succeed(*precompute, "--split", "forget", "--limit", "3", "--run", run)
    assert "complete, skipped" in again.out


def start(command: list[str], home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "VIKER_CACHE_DIR": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "viker", *command], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def staged(home: Path) -> set[str]:
    return {path.name for path in home.glob("*.building/block-*") if path.suffix == ""}


def test_killed_in_the_middle_it_resumes_to_the_same_rows(asked, precompute, isolated_cache_home, tmp_path):
    parent = parent_of(precompute, "--split", "forget")
    command = ["cache", "extend", str(parent.root), *asked, "--split", "all", "--engine", "naive", "--json"]
    killed = tmp_path / "killed"
    process = start(command, killed)
    end = time.monotonic() + DEADLINE_S
    while len(staged(killed)) < 4:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.communicate()
    assert 4 <= len(staged(killed)) < 20, "the test has to stop it in the middle"
    assert [path.suffix for path in killed.iterdir()] == [".building"]

    resumed = start(command, killed)
    out, err = resumed.communicate(timeout=DEADLINE_S)
    assert resumed.returncode == 0, err
    whole = told(*command)
    assert json.loads(out)["pairs"] < whole["pairs"] == 2 * whole["missing"]["row_keys"]
    (root,) = killed.glob("*/")
    assert tree_bytes(root) == tree_bytes(TeacherCache.open(whole["path"]).root)


def test_a_miss_in_training_prints_the_command_that_mends_it(asked, pool, precompute, tmp_path):
    parent = parent_of(precompute, "--split", "forget", "--limit", "3")
    train = ["train", *asked, "--method", "viker", "--top-k", "8", "--output", str(tmp_path / "adapter")]
    missed = call(*train, "--limit", 5)
    assert missed.code == 3
    assert "found 2 of them missing" in missed.message
    (line,) = re.findall(r"^ *(viker .*)$", missed.message, flags=re.MULTILINE)
    assert line == shlex.join(["viker", "cache", "extend", parent.key[:16], *asked, "--split", "forget", *pool])
    succeed(*shlex.split(line)[1:])
    assert call(*train, "--limit", 5, "--num-train-epochs", 0.2).code == 0
