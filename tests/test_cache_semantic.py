"""`viker cache verify --depth semantic`: a cache that is intact and well signed, but not of this teacher, is caught."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from command_line import call, copy_model, succeed
from viker.precompute.cache import TeacherCache
from viker.precompute.reading.verify import verify
from viker.precompute.writing.derive import KnownRows, copy_known_blocks, samples_of
from viker.precompute.writing.store import CacheBuilder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.precompute.writing.store import Sample


@pytest.fixture
def asked(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    return ["--data", str(mini_world), "--model", str(tiny_model_dir)]


@pytest.fixture
def pool(mini_world: Path) -> list[str]:
    return ["--pool", str(mini_world / "pools" / "pets")]


@pytest.fixture
def precompute(asked: list[str], pool: list[str]) -> list[str]:
    return ["precompute", *asked, *pool, "--num-references", "2", "--top-k", "8"]


@pytest.fixture
def other_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model of the same tokenizer and rendering that answers differently."""
    from safetensors.torch import load_file, save_file

    other = copy_model(tiny_model_dir, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    head = next(name for name in weights if "lm_head" in name)
    weights[head] = weights[head] * 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return other


def made(*arguments: object) -> TeacherCache:
    return TeacherCache.open(json.loads(succeed(*arguments, "--json").out)["path"])


def semantic(cache: TeacherCache, *options: object) -> Any:
    return call("cache", "verify", cache.root, "--depth", "semantic", *options)


def numbers(outcome: Any) -> dict[str, Any]:
    return json.loads(outcome.out)["semantic"]


def signed(home: Path, cache: TeacherCache, samples: Sequence[Sample], rows: TeacherCache) -> TeacherCache:
    """Seal the rows of one cache under the fingerprint of another, as its maker could."""
    pool = [digest.tobytes() for digest in cache.reference_sha256]
    build = {name: value for name, value in cache.build.items() if name != "block_devices"}
    builder = CacheBuilder(home, cache.fingerprint, build, samples, pool)
    assert copy_known_blocks(builder, KnownRows(rows)) == []
    return TeacherCache.open(builder.assemble())


def test_the_teachers_own_rows_pass_with_nothing_named(precompute, mini_world, tiny_model_dir):
    cache = made(*precompute)
    outcome = semantic(cache, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["problems"] == []
    found = numbers(outcome)
    assert (found["samples"], found["tolerance"], found["known_samples"]) == (8, 1e-3, cache.num_samples)
    assert found["rows"] >= 8
    assert 0 <= found["mean"] <= found["max"] < 1e-3
    assert f"as the cache was made: --data {mini_world} --model {tiny_model_dir} --pool" in outcome.err
    assert f"verify: forget of {mini_world}" in outcome.err
    assert "keep it as you keep the forget set" in outcome.err


def test_rows_of_another_model_under_this_ones_name_pass_every_check_but_this(
    precompute, pool, other_model, mini_world, tmp_path
):
    honest = made(*precompute)
    stranger = made("precompute", "--data", mini_world, "--model", other_model, *pool, "--num-references", "2",
                    "--top-k", "8")  # fmt: skip
    forged = signed(tmp_path / "forged", honest, samples_of(honest), stranger)
    assert forged.key == honest.key
    assert verify(forged.root, "quick") == verify(forged.root, "full") == []

    outcome = semantic(forged, "--json")
    assert outcome.code == 1
    (problem,) = json.loads(outcome.out)["problems"]
    assert problem["kind"] == "semantic"
    assert "expected rows within total variation 0.001 of the teacher's" in problem["detail"]
    assert numbers(outcome)["max"] > 0.05
    assert "They are not this model's rows" in semantic(forged).out


def test_another_draw_of_references_under_this_ones_name_is_caught(precompute, tmp_path):
    honest = made(*precompute)
    swapped = [dataclasses.replace(sample, references=sample.references[::-1]) for sample in samples_of(honest)]
    outcome = semantic(signed(tmp_path / "forged", honest, swapped, honest))
    assert outcome.code == 1
    assert "expected its draw of references, found another" in outcome.out
    assert "not run" in outcome.out


def test_rows_of_other_tokens_under_a_row_key_are_caught(precompute, tmp_path):
    honest = made(*precompute)
    renamed = [dataclasses.replace(sample, token_hash=sample.token_hash ^ 1) for sample in samples_of(honest)]
    outcome = semantic(signed(tmp_path / "forged", honest, renamed, honest))
    assert outcome.code == 1
    assert "expected rows of its tokens, found others" in outcome.out


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from viker.precompute import semantic

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(semantic, "load_model", refuse)


def test_loading_is_what_the_next_tests_forbid(precompute, no_weights):
    with pytest.raises(AssertionError, match="weights were loaded"):
        semantic(made(*precompute))


def test_a_wrong_teacher_is_refused_before_it_is_loaded(precompute, other_model, no_weights):
    cache = made(*precompute)
    outcome = semantic(cache, "--model", other_model)
    assert outcome.code == 3
    assert f"weights  cache {cache.fingerprint['weights']}  wanted " in outcome.message


def test_a_wrong_pool_is_refused_before_anything_is_loaded(precompute, no_weights):
    cache = made(*precompute)
    outcome = semantic(cache, "--pool", "patterns")
    assert outcome.code == 3
    assert f"pool  cache {cache.fingerprint['pool']}  wanted " in outcome.message


def test_a_damaged_cache_is_reported_and_no_teacher_is_asked(precompute, no_weights):
    cache = made(*precompute)
    (cache.root / "stray.bin").write_bytes(b"")
    outcome = semantic(cache)
    assert outcome.code == 1
    assert "unlisted: stray.bin" in outcome.out.replace(f"{cache.root}/", "")


def test_the_draw_is_seeded_and_as_large_as_asked(precompute):
    cache = made(*precompute)
    three = numbers(semantic(cache, "--num-rows", 3, "--json"))
    assert three["samples"] == 3
    assert three == numbers(semantic(cache, "--num-rows", 3, "--json"))
    other = numbers(semantic(cache, "--num-rows", 3, "--seed", 5, "--json"))
    assert (three["rows"], three["mean"]) != (other["rows"], other["mean"])
    assert numbers(semantic(cache, "--num-rows", 10_000, "--json"))["samples"] == len(cache.row_keys)


def test_scalars_alone_are_compared_by_the_answers_probability(asked, other_model, mini_world, tmp_path):
    rows = ("--teacher", "self", "--split", "forget")
    honest = made("precompute", *asked, *rows)
    assert honest.top_k == 0
    assert semantic(honest).code == 0
    stranger = made("precompute", "--data", mini_world, "--model", other_model, *rows)
    assert semantic(signed(tmp_path / "forged", honest, samples_of(honest), stranger)).code == 1


def test_an_extended_cache_is_checked_on_all_it_was_asked_for(precompute):
    cache = made(*precompute)
    child = made("cache", "extend", cache.root, "--split", "retain", "--limit", "4")
    outcome = semantic(child, "--num-rows", 10_000, "--json")
    assert outcome.code == 0, outcome.err
    assert numbers(outcome)["samples"] == len(child.row_keys)
    assert "verify: forget of" in outcome.err
    assert "verify: retain of" in outcome.err


def test_a_source_with_none_of_the_questions_is_an_error(asked, tmp_path, tiny_model_dir):
    cache = made("precompute", *asked, "--teacher", "self", "--top-k", "4")
    own = tmp_path / "own"
    own.mkdir()
    lines = [{"person": name, "question": "Where is it?", "answer": f"Near {name}."} for name in ("ada", "ben")]
    (own / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = semantic(cache, "--data", own, "--split", "all", "--forget", "ada")
    assert outcome.code == 1
    assert (
        f"expected some of its {cache.num_samples} samples among the questions of {own}, found none" in outcome.message
    )


def test_without_a_recorded_model_one_has_to_be_named(precompute, asked, pool, tmp_path):
    cache = made(*precompute)
    bare = dataclasses.replace(cache, build={})
    anonymous = signed(tmp_path / "anonymous", bare, samples_of(cache), cache)
    missing = semantic(anonymous)
    assert missing.code == 1
    assert "expected --data, found none, and the cache's build.json records none" in missing.message
    no_pool = semantic(anonymous, *asked)
    assert no_pool.code == 2
    assert "expected --pool" in no_pool.err
    assert semantic(anonymous, *asked, *pool).code == 0


def test_what_only_a_semantic_check_reads_is_refused_elsewhere(precompute, asked):
    cache = made(*precompute)
    outcome = call("cache", "verify", cache.root, "--depth", "full", *asked)
    assert outcome.code == 2
    assert "expected --depth semantic with --data, --model, found full" in outcome.err


def test_a_moved_model_is_named_by_the_error(precompute, tiny_model_dir, mini_world, pool, tmp_path):
    moved = copy_model(tiny_model_dir, tmp_path / "moved")
    cache = made("precompute", "--data", mini_world, "--model", moved, *pool, "--num-references", "2")
    shutil.rmtree(moved)
    outcome = semantic(cache)
    assert outcome.code == 1
    assert str(moved) in outcome.message
    assert semantic(cache, "--model", tiny_model_dir).code == 0
