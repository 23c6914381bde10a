"""Training from a cache that was not made for it: of a larger split, or of the student's ancestor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from command_line import call, copy_model, succeed
from viker.data.artefact import read_json
from viker.models.identity import weights_digest
from viker.models.load import resolve
from viker.precompute.cache import TeacherCache

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def precompute(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    references = ["--pool", str(mini_world / "pools" / "pets"), "--num-references", "2", "--top-k", "8"]
    return ["precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), *references, "--json"]


def train(data: Path, model: Path, output: Path, *options: object) -> list[object]:
    method = ["--method", "viker", "--top-k", 8, "--num-train-epochs", 0.2]
    return ["train", "--data", data, "--model", model, "--output", output, *method, *options]


def made(*arguments: object) -> TeacherCache:
    return TeacherCache.open(json.loads(succeed(*arguments).out)["path"])


def read_by(adapter: Path) -> str:
    return str(read_json(adapter / "provenance.json")["caches"]["forget"]["key"])


@pytest.fixture
def child(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A student whose weights are no longer the teacher's, as after an earlier deletion that was merged."""
    from safetensors.torch import load_file, save_file

    child = copy_model(tiny_model_dir, tmp_path / "child")
    weights = load_file(child / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight") and "language_model" in name)
    weights[name] = weights[name] * 1.01
    save_file(weights, child / "model.safetensors", metadata={"format": "pt"})
    return child


def test_a_small_split_trains_from_a_cache_that_covers_a_larger_one(precompute, mini_world, tiny_model_dir, tmp_path):
    cover = made(*precompute, "--split", "all")
    for ratio in (5, 10, 15):
        adapter = tmp_path / f"adapter-{ratio}"
        outcome = succeed(*train(mini_world, tiny_model_dir, adapter, "--ratio", ratio))
        assert read_by(adapter) == cover.key
        assert f"rows from {cover.root}" in outcome.err
        assert "override" not in read_json(adapter / "config.json")["options"], "named adapters keep their names"


def test_splits_that_are_not_nested_train_from_a_cache_extended_by_both(
    precompute, mini_world, tiny_model_dir, tmp_path
):
    from viker.data.sources import open_source

    small, large = (open_source(str(mini_world), ratio=ratio).forget_people() for ratio in (5, 15))
    one = made(*precompute, "--ratio", 15)
    if small <= large:
        pytest.fail("this world's splits are nested: the test needs others")
    missed = call(*train(mini_world, tiny_model_dir, tmp_path / "missed", "--ratio", 5))
    assert missed.code == 3
    assert f"viker cache extend {one.root.name}" in missed.message
    both = made("cache", "extend", one.root.name, "--ratio", 5, "--json")
    for ratio in (5, 15):
        succeed(*train(mini_world, tiny_model_dir, tmp_path / f"{ratio}", "--ratio", ratio, "--cache", both.root))
        assert read_by(tmp_path / f"{ratio}") == both.key


def test_another_students_weights_are_refused_with_both_digests(precompute, mini_world, child, tmp_path):
    cache = made(*precompute)
    refused = call(*train(mini_world, child, tmp_path / "adapter"))
    assert refused.code == 3
    student = weights_digest(resolve(str(child)))
    assert f"weights  cache {cache.fingerprint['weights']}  wanted {student}" in refused.message
    assert not (tmp_path / "adapter").exists()


def test_an_ancestor_teaches_where_weights_are_overridden_and_it_is_recorded(
    precompute, mini_world, tiny_model_dir, child, tmp_path
):
    cache = made(*precompute)
    adapter = tmp_path / "adapter"
    outcome = succeed(*train(mini_world, child, adapter, "--override", "weights"))
    teacher, student = (weights_digest(resolve(str(model))) for model in (tiny_model_dir, child))
    assert f"train: WARNING: --override weights: cache {teacher}, student {student}" in outcome.err
    assert read_by(adapter) == cache.key
    assert read_json(adapter / "config.json")["options"]["override"] == ["weights"]
    provenance = read_json(adapter / "provenance.json")
    assert provenance["overridden"] == {"forget": {"weights": {"cached": teacher, "wanted": student}}}
    assert provenance["student_weights"] == student


def test_overriding_changes_nothing_where_nothing_differs(precompute, mini_world, tiny_model_dir, tmp_path):
    made(*precompute)
    outcome = succeed(*train(mini_world, tiny_model_dir, tmp_path / "adapter", "--override", "weights"))
    assert "--override" not in outcome.err
    assert read_json(tmp_path / "adapter" / "provenance.json")["overridden"] == {}


def test_nothing_but_weights_is_overridden(precompute, mini_world, child, tmp_path):
    path = child / "viker_rendering.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "system_prompt": "Be kind."}))
    made(*precompute)
    refused = call(*train(mini_world, child, tmp_path / "adapter", "--override", "weights"))
    assert refused.code == 3
    assert "rendering.system_prompt  cache None  wanted Be kind." in refused.message
    assert "weights" not in refused.message.split("Make the rows")[0]
    unknown = call(*train(mini_world, child, tmp_path / "adapter", "--override", "tokenizer"))
    assert unknown.code == 2


def test_rows_an_ancestors_cache_lacks_are_added_by_the_ancestor(
    precompute, mini_world, tiny_model_dir, child, tmp_path
):
    made(*precompute, "--limit", 3)
    refused = call(*train(mini_world, child, tmp_path / "adapter", "--override", "weights"))
    assert refused.code == 3
    assert f"--model {tiny_model_dir} --split forget" in refused.message


def test_self_rows_of_forget_people_keep_no_candidates_unless_asked(mini_world, tiny_model_dir, quiet_torch):
    asked = ("precompute", "--data", mini_world, "--model", tiny_model_dir, "--teacher", "self", "--json")
    forget, retain = made(*asked, "--split", "forget"), made(*asked, "--split", "retain-seen", "--limit", 3)
    assert (forget.top_k, retain.top_k) == (0, 64)
    assert not any("kept" in name for name in forget.plans)
    assert (forget.load().tail_logprob_N == 0).all()
    assert made(*asked, "--split", "all", "--limit", 3).top_k == 0
    assert made(*asked, "--split", "forget", "--top-k", 4).top_k == 4
