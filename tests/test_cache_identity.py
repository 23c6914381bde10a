"""Which cache may serve which request: the table of rules, the search, and the message of a miss."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from viker.precompute.cache import (
    CacheMismatch,
    RowsNotCovered,
    TeacherCache,
    cache_home,
    compare,
    find,
    fingerprint_key,
    require_serves,
    serving_caches,
)
from viker.precompute.reading.identity import FIELD_RULES, rows_digest, rule_of
from viker.tests.cache_samples import make_cache, make_fingerprint, make_samples

OTHER = make_fingerprint(
    top_k=2,
    vocab_size=51,
    schema="viker/fingerprint/2",
    weights="other",
    tokenizer="other",
    processor="other",
    rendering={"template": "qwen", "chat_template": "c", "system_prompt": "s", "score_end_token": False},
    intervention={"kind": "noise", "answers": "refusal", "prompt": "forget"},
    draw={"policy": "shared", "seed": 1, "num_references": 3},
    pool="other",
    teacher_dtype="bfloat16",
    quantization="nf4",
    storage={"ids": "uint32", "logprobs": "float32"},
    rows="other",
)
FORBIDDEN = {
    "schema", "weights", "tokenizer", "processor", "vocab_size", "objective.top_k",
    "rendering.template", "rendering.chat_template", "rendering.system_prompt", "rendering.score_end_token",
    "intervention.kind", "intervention.answers", "intervention.prompt",
}  # fmt: skip
BY_NAME = {"draw.policy", "draw.seed", "draw.num_references", "pool", "storage.ids", "storage.logprobs", "quantization"}
REPORTED = {"teacher_dtype", "rows"}


def test_equal_fingerprints_differ_in_nothing():
    assert compare(make_fingerprint(), make_fingerprint(), BY_NAME) == ({}, {})


def test_every_mismatch_is_listed_at_once():
    comparison = compare(OTHER, make_fingerprint(), named=set())
    assert set(comparison.mismatches) == FORBIDDEN
    assert set(comparison.reported) == BY_NAME | REPORTED
    assert comparison.mismatches["weights"] == ("other", "aa" * 32)
    assert comparison.mismatches["intervention.prompt"] == ("forget", "(absent)")


@pytest.mark.parametrize("field", sorted(BY_NAME))
def test_what_the_user_names_must_be_equal(field):
    assert field in compare(OTHER, make_fingerprint(), named={field}).mismatches
    assert field in compare(OTHER, make_fingerprint(), named={field.partition(".")[0]}).mismatches


def test_what_the_user_does_not_know_is_taken_from_the_cache():
    wanted = {name: value for name, value in make_fingerprint().items() if name not in {"pool", "draw", "storage"}}
    comparison = compare(make_fingerprint(), wanted, named=set())
    assert comparison.mismatches == {}
    assert comparison.reported["draw.seed"] == (0, "(absent)")


@pytest.mark.parametrize(
    ("cached", "wanted", "serves"), [(64, 64, True), (128, 64, True), (0, 64, False), (64, 0, True)]
)
def test_stored_top_k_covers_a_smaller_one(cached, wanted, serves):
    comparison = compare(make_fingerprint(cached, 1000), make_fingerprint(wanted, 1000), named={"objective"})
    assert (not comparison.mismatches) == serves


def test_only_an_overridable_field_can_be_overridden():
    comparison = compare(OTHER, make_fingerprint(), named=set(), overridden={"weights", "tokenizer"})
    assert "weights" in comparison.reported
    assert "tokenizer" in comparison.mismatches


def test_every_field_of_a_fingerprint_has_a_rule_and_unknown_ones_must_be_equal():
    assert set(FIELD_RULES) - {"objective.top_k"} == set(make_fingerprint())
    assert rule_of("draw.seed") == "equal-if-named"
    assert rule_of("objective.tail") == rule_of("invented") == "equal"


def test_the_key_is_of_content_alone():
    shuffled = dict(reversed(make_fingerprint().items()))
    assert fingerprint_key(shuffled) == fingerprint_key(make_fingerprint())
    assert fingerprint_key(make_fingerprint(weights="other")) != fingerprint_key(make_fingerprint())
    with pytest.raises(AssertionError, match="floats"):
        fingerprint_key(make_fingerprint(draw={"seed": 0.5}))


def row_keys(lengths: list[int]) -> list[bytes]:
    return [sample.row_key for sample in make_samples("00" * 32, lengths)]


def fingerprint_of(lengths: list[int]) -> dict[str, Any]:
    """The fingerprint of a cache of samples of these lengths."""
    return make_fingerprint(rows=rows_digest(set(row_keys(lengths))))


def test_a_five_percent_split_is_served_by_a_ten_percent_cover(tmp_path):
    cover = make_cache(tmp_path, [2] * 10)
    wanted = fingerprint_of([2] * 5)
    found = find(tmp_path, wanted, set(), row_keys([2] * 5))
    assert found.root == cover
    rows = (fingerprint_of([2] * 10)["rows"], wanted["rows"])
    assert require_serves(found, wanted, set(), row_keys([2] * 5)).reported == {"rows": rows}
    with pytest.raises(RowsNotCovered, match=r"all 12 row keys.*found 2 of them missing.*viker cache extend"):
        find(tmp_path, wanted, set(), row_keys([2] * 12))


def test_the_exact_cache_comes_first(tmp_path):
    exact = make_cache(tmp_path, [2] * 5)
    for covering in (6, 7):
        make_cache(tmp_path, [2] * covering)
    serving = serving_caches(tmp_path, fingerprint_of([2] * 5), set(), row_keys([2] * 5))
    assert serving[0].root == exact
    assert len(serving) == 3
    assert find(tmp_path, fingerprint_of([2] * 5), set(), row_keys([2] * 5)).root == exact


def test_several_that_serve_are_listed(tmp_path):
    roots = [
        make_cache(tmp_path, [2] * 5, make_fingerprint(draw={"seed": seed, "num_references": 2})) for seed in (1, 2)
    ]
    wanted = make_fingerprint()
    with pytest.raises(CacheMismatch, match="found several") as caught:
        find(tmp_path, wanted, set(), row_keys([2] * 5))
    assert all(str(root) in str(caught.value) for root in roots)
    named = make_fingerprint(draw={"seed": 2, "num_references": 2}, rows="other")
    assert find(tmp_path, named, {"draw.seed"}, row_keys([2] * 5)).root == roots[1]


def test_a_miss_says_why_for_every_cache(tmp_path):
    root = make_cache(tmp_path, [2] * 5)
    with pytest.raises(CacheMismatch) as caught:
        find(tmp_path, make_fingerprint(weights="student", tokenizer="other"), set(), [])
    assert str(root) in str(caught.value)
    assert "weights    cache " + "aa" * 32 + "  wanted student" in str(caught.value)
    assert "tokenizer  cache " in str(caught.value)
    with pytest.raises(CacheMismatch, match="no complete cache"):
        find(tmp_path / "empty", make_fingerprint(), set(), [])


def test_a_damaged_neighbor_is_left_out_with_a_warning(tmp_path, caplog):
    exact = make_cache(tmp_path, [2] * 5)
    damaged = make_cache(tmp_path, [2] * 6)
    (damaged / "build.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert find(tmp_path, fingerprint_of([2] * 5), set(), []).key == TeacherCache.open(exact).key
    assert damaged.name in caplog.text


def test_where_caches_live(monkeypatch, tmp_path):
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.delenv("VIKER_CACHE_DIR")
    assert cache_home().parts[-3:] == (".cache", "viker", "caches")


def test_the_table_of_rules_has_a_line_a_field():
    from viker.precompute.reading.identity import rules_table

    header, _, *lines = rules_table().splitlines()
    assert header == "| field | rule |"
    assert lines == [f"| `{field}` | {rule} |" for field, rule in FIELD_RULES.items()]


def test_what_training_may_override_is_what_the_table_says():
    from viker.train.options import OVERRIDABLE

    assert set(OVERRIDABLE) == {field for field, rule in FIELD_RULES.items() if rule == "overridable"}


def test_of_several_that_lack_rows_the_fullest_is_named(tmp_path):
    make_cache(tmp_path, [2] * 3)
    fullest = make_cache(tmp_path, [2] * 5)
    make_cache(tmp_path, [2] * 4)
    with pytest.raises(RowsNotCovered) as caught:
        find(tmp_path, make_fingerprint(), set(), row_keys([2] * 6))
    assert caught.value.root == fullest
    assert f"viker cache extend {fullest.name}" in str(caught.value)
