"""`viker cache inspect --example`: an answer's rows beside its tokens, without weights; devices that made a cache."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cache_samples import make_builder, make_cache, make_rows
from command_line import call, copy_model, succeed
from viker.precompute.cache import TeacherCache, person_digest
from viker.precompute.writing.derive import KnownRows, copy_known_blocks, samples_of
from viker.precompute.writing.store import CacheBuilder

if TYPE_CHECKING:
    from pathlib import Path

    from viker.data.example import Example


@pytest.fixture
def asked(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    return ["--data", str(mini_world), "--model", str(tiny_model_dir)]


@pytest.fixture
def cache(asked: list[str], mini_world: Path) -> TeacherCache:
    """Rows of the forget people under two references each."""
    pool = mini_world / "pools" / "pets"
    made = succeed("precompute", *asked, "--pool", pool, "--num-references", 2, "--top-k", 8, "--json")
    return TeacherCache.open(json.loads(made.out)["path"])


@pytest.fixture
def example(mini_world: Path) -> Example:
    from viker.data.sources import open_source

    return next(iter(open_source(str(mini_world)).training("forget")))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)


def shown(cache: TeacherCache, name: object, *options: object) -> dict[str, Any]:
    return json.loads(succeed("cache", "inspect", cache.root, "--example", name, *options, "--json").out)


def test_an_example_is_found_by_its_id_and_shown_token_by_token(cache, example, tiny, no_weights):
    told = shown(cache, example.id)
    _, answer_ids = tiny.encoder.ids(example)
    assert told["schema"] == "viker/cache-example/1"
    assert (told["key"], told["example"]) == (cache.key, example.id)
    assert [token["answer"] for token in told["tokens"]] == [
        repr(tiny.encoder.tokenizer.decode([id_])) for id_ in answer_ids
    ]

    pair = cache.sample_keys[told["sample"]]
    assert pair[16:] == person_digest(cache.lineage, example.people[0])
    rows = cache.rows_of(told["sample"])
    for position, token in enumerate(told["tokens"]):
        assert token["position"] == position
        assert token["probability"] == pytest.approx(np.exp(rows.answer_logprob_N[position]), rel=1e-5)
        assert token["entropy"] == pytest.approx(rows.entropy_N[position], abs=1e-4)
        assert token["disagreement"] == pytest.approx(rows.disagreement_N[position], abs=1e-4)
        assert token["tail"] == pytest.approx(np.exp(rows.tail_logprob_N[position]), abs=1e-6)
        assert [one["id"] for one in token["candidates"]] == rows.kept_ids_NK[position, :5].tolist()
        assert [one["token"] for one in token["candidates"]] == [
            repr(tiny.encoder.tokenizer.decode([one["id"]])) for one in token["candidates"]
        ]
        probabilities = [one["probability"] for one in token["candidates"]]
        assert probabilities == sorted(probabilities, reverse=True)
        kept = dict(zip(rows.kept_ids_NK[position].tolist(), rows.kept_logprobs_NK[position], strict=True))
        if answer_ids[position] in kept:
            assert token["probability"] == pytest.approx(np.exp(kept[answer_ids[position]]), rel=5e-3)


def test_the_lines_say_what_they_show(cache, example, tiny):
    outcome = succeed("cache", "inspect", cache.root, "--example", example.id)
    told = shown(cache, example.id)
    header, columns, *lines = outcome.out.splitlines()
    assert header == f"sample {told['sample']} of {cache.key[:16]}: {len(told['tokens'])} rows of {example.id}"
    assert "R(y)" in columns
    assert len(lines) == len(told["tokens"])
    first = told["tokens"][0]
    for part in (first["answer"], f" {first['probability']:.2g} ", f"{first['entropy']:.3f}", f"{first['tail']:.4f}",
                 f"{first['candidates'][0]['token']} {first['candidates'][0]['probability']:.3f}"):  # fmt: skip
        assert part in lines[0]
    assert "shows an answer" in outcome.err
    assert "keep it as you keep the forget set" in outcome.err
    assert "as the cache was made: --data" in outcome.err


def test_key_tokens_are_those_above_the_entropy_named(cache, example):
    entropies = [token["entropy"] for token in shown(cache, example.id)["tokens"]]
    middle = sorted(entropies)[len(entropies) // 2]
    kinds = [token["is_key"] for token in shown(cache, example.id, "--key-entropy", middle - 1e-3)["tokens"]]
    assert kinds == [entropy > middle - 1e-3 for entropy in entropies]
    lines = succeed("cache", "inspect", cache.root, "--example", example.id, "--key-entropy", middle - 1e-3).out
    assert (lines.count(" key "), lines.count(" normal ")) == (kinds.count(True), kinds.count(False))


def test_an_index_names_a_sample_and_the_source_names_its_example(cache, example):
    by_id = shown(cache, example.id)
    by_index = shown(cache, by_id["sample"])
    assert [token["answer"] for token in by_index["tokens"]] == [token["answer"] for token in by_id["tokens"]]
    assert by_index["tokens"] == by_id["tokens"]


def signed(cache: TeacherCache, home: Path, build: dict[str, Any], **changes: Any) -> TeacherCache:
    """The same rows with another build.json, sealed anew; `changes` replace fields of every sample."""
    pool = [digest.tobytes() for digest in cache.reference_sha256]
    samples = [dataclasses.replace(sample, **changes) for sample in samples_of(cache)]
    builder = CacheBuilder(home, cache.fingerprint, build, samples, pool)
    assert copy_known_blocks(builder, KnownRows(cache)) == []
    return TeacherCache.open(builder.assemble())


def test_without_a_source_candidates_are_text_and_the_answer_is_not_known(cache, tiny_model_dir, tmp_path):
    anonymous = signed(cache, tmp_path, {"model": str(tiny_model_dir)})
    told = shown(anonymous, 3)
    assert told["example"] is None
    assert {token["answer"] for token in told["tokens"]} == {None}
    assert told["tokens"][0]["candidates"][0]["token"].startswith(("'", '"'))


def test_without_a_tokenizer_candidates_are_ids_and_torch_is_not_loaded(cache, tmp_path):
    anonymous = signed(cache, tmp_path, {})
    told = shown(anonymous, 0)
    candidates = [one for token in told["tokens"] for one in token["candidates"]]
    assert candidates
    assert all(one["token"] == str(one["id"]) for one in candidates)
    program = (
        "import sys; from click.testing import CliRunner; from viker.cli import viker\n"
        f"done = CliRunner().invoke(viker, ['cache', 'inspect', {str(anonymous.root)!r}, '--example', '0'])\n"
        "assert done.exit_code == 0, done.output\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_recorded_model_that_is_gone_is_said_and_ids_are_shown(asked, mini_world, tiny_model_dir, tmp_path):
    moved = copy_model(tiny_model_dir, tmp_path / "moved")
    made = succeed("precompute", "--data", mini_world, "--model", moved, "--teacher", "self", "--top-k", 4, "--json")
    shutil.rmtree(moved)
    outcome = succeed("cache", "inspect", json.loads(made.out)["path"], "--example", 0)
    assert "inspect: tokens are shown as ids:" in outcome.err
    named = call("cache", "inspect", json.loads(made.out)["path"], "--example", 0, "--model", moved)
    assert named.code == 1
    assert str(moved) in named.message


def test_another_tokenizer_is_refused_where_it_is_named(cache, tiny_model_dir, tmp_path):
    other = copy_model(tiny_model_dir, tmp_path / "other")
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 10_000, "content": "<strange>"})
    path.write_text(json.dumps(content))
    refused = call("cache", "inspect", cache.root, "--example", 0, "--model", other)
    assert refused.code == 3
    assert f"tokenizer  cache {cache.fingerprint['tokenizer']}  wanted " in refused.message


def test_rows_of_other_tokens_are_not_shown_beside_an_answer(cache, example, tmp_path):
    forged = signed(cache, tmp_path, cache.build, token_hash=1)
    refused = call("cache", "inspect", forged.root, "--example", example.id)
    assert refused.code == 3
    assert f"expected rows of the tokens of {example.id}" in refused.message


def test_rows_without_candidates_say_so(asked, example):
    made = succeed("precompute", *asked, "--teacher", "self", "--json")
    outcome = succeed("cache", "inspect", json.loads(made.out)["path"], "--example", example.id)
    assert "(none kept)" in outcome.out


@pytest.mark.parametrize(
    ("name", "says"), [("10000", "expected a sample of 0 to "), ("nobody/7", "expected the id of a ")]
)
def test_no_such_sample_or_example(cache, name, says):
    refused = call("cache", "inspect", cache.root, "--example", name)
    assert refused.code == 1
    assert says in refused.message


def test_an_example_without_rows_is_said_with_the_command_that_adds_them(cache, mini_world):
    from viker.data.sources import open_source

    keys = cache.row_keys
    for example in open_source(str(mini_world)).training("retain"):
        outcome = call("cache", "inspect", cache.root, "--example", example.id)
        if outcome.code:
            assert outcome.code == 3
            assert f"viker cache extend {cache.root.name}" in outcome.message
            return
    pytest.fail(f"all of them are in {len(keys)} row keys")


def test_an_id_without_a_source_is_an_error(cache, tmp_path):
    refused = call("cache", "inspect", signed(cache, tmp_path, {}).root, "--example", "some/id")
    assert refused.code == 1
    assert "expected --data and --model to find an example by its id" in refused.message


def test_what_only_an_example_needs_is_refused_without_one(cache, asked):
    refused = call("cache", "inspect", cache.root, *asked)
    assert refused.code == 2
    assert "expected --example with --data, --model, found none" in refused.err


def test_rows_of_several_kinds_of_device_are_warned_of(tmp_path):
    builder = make_builder(tmp_path, [2] * 40)
    for block in range(len(builder.blocks)):
        builder.write_block(block, make_rows(builder.num_rows(block), block), f"GPU {block % 2}")
    root = builder.assemble()
    outcome = succeed("cache", "inspect", root, "--json")
    assert json.loads(outcome.out)["devices"] == ["GPU 0", "GPU 1"]
    assert "WARNING: rows were computed on 2 kinds of device (GPU 0, GPU 1)" in outcome.err
    assert "within total variation 0.02" in outcome.err


def test_rows_of_one_kind_of_device_are_not(tmp_path):
    outcome = succeed("cache", "inspect", make_cache(tmp_path, [2] * 40), "--json")
    assert json.loads(outcome.out)["devices"] == ["cpu"]
    assert "WARNING" not in outcome.err
