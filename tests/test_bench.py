"""`viker bench`: every variant holds the same rows, and what is printed is what was measured."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from viker.bench.cache import FORMATS
from viker.bench.commands import _seeded, command
from viker.bench.operations import counting, operations, product_rate

VARIANT = {"name", "rate", "unit", "ratio", "seconds", "peak_memory"}


@pytest.fixture(scope="module")
def seeded() -> tuple[dict[str, np.ndarray], int]:
    arrays, vocab_size, _ = _seeded(2400, 8, 500)
    return dict(arrays), vocab_size


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_back_the_rows_it_was_given(seeded, name, tmp_path):
    arrays, vocab_size = seeded
    kind = FORMATS[name]
    kind.write(tmp_path, kind.prepare(arrays, vocab_size, 40))
    loaded, example = kind.load(kind.open(tmp_path)), kind.example(kind.open(tmp_path), 1200, 40)
    np.testing.assert_array_equal(loaded.kept_ids_NK, arrays["token/kept_id"])
    np.testing.assert_array_equal(loaded.kept_logprobs_NK, arrays["token/kept_logprob"].astype(np.float32))
    np.testing.assert_array_equal(loaded.entropy_N, arrays["token/entropy"])
    np.testing.assert_array_equal(loaded.disagreement_N, arrays["token/disagreement"].astype(np.float32))
    np.testing.assert_array_equal(example.kept_ids_NK, arrays["token/kept_id"][1200:1240])
    np.testing.assert_array_equal(example.tail_logprob_N, arrays["token/tail_logprob"][1200:1240])


def test_cache_variants_are_compared_with_the_first_of_their_kind(tmp_path):
    asked = ["cache", "--rows", "2000", "--top-k", "8", "--vocab-size", "500", "--rounds", "1", "--json"]
    result = CliRunner().invoke(command, [*asked, "--folder", str(tmp_path)], catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["schema"] == "viker/bench/1"
    assert told["ceiling"]["rate"] > 0
    names = [variant["name"] for variant in told["variants"]]
    assert names[:4] == ["write-viker", "open-viker", "load-viker", "example-viker"]
    assert len(names) == len(set(names)) == 16
    for variant in told["variants"]:
        assert variant.keys() == VARIANT
        first = next(other for other in told["variants"] if other["name"].startswith(variant["name"].partition("-")[0]))
        assert variant["ratio"] == pytest.approx(first["seconds"] / variant["seconds"])
    assert told["bytes_per_row"]["npy"] > told["bytes_per_row"]["viker"] > 8 * 2
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_rows_of_a_cache_are_repeated_to_the_size_asked_for(tmp_path):
    from viker.tests.cache_samples import make_cache

    root = make_cache(tmp_path, [3, 2, 4])
    asked = ["cache", "--cache", str(root), "--rows", "80", "--rounds", "1", "--json"]
    told = json.loads(CliRunner().invoke(command, asked, catch_exceptions=False).stdout)
    assert told["rows"] == 80
    assert told["origin"] == f"9 rows of cache {root.name}, repeated"


def test_precompute_variants_make_the_same_rows(quiet_torch):
    asked = ["precompute", "--examples", "4", "--num-references", "2", "--pool-size", "3", "--rounds", "1", "--json"]
    told = json.loads(CliRunner().invoke(command, asked, catch_exceptions=False).stdout)
    assert told["pairs"] == 8
    assert told["largest_variation"] < 1e-5
    names = [variant["name"] for variant in told["variants"]]
    assert names == ["naive", "batched-naive", "shared-prefix", "vllm"]
    *measured, absent = told["variants"]
    for variant in measured:
        assert variant.keys() == VARIANT | {"tflops", "padding"}
        assert variant["ratio"] == pytest.approx(variant["rate"] / measured[0]["rate"])
        assert 0 < variant["tflops"] < 2 * told["ceiling"]["rate"]
        assert 0 <= variant["padding"] < 1
    assert absent["rate"] is absent["ratio"] is None
    assert told["kernel"]["share_of_own_products"] == pytest.approx(
        told["kernel"]["tflops"] / told["ceiling"]["own_products"]
    )


def test_sizes_that_need_a_gpu_are_refused_without_one():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    refused = CliRunner().invoke(command, ["precompute", "--shapes", "llava-7b"])
    assert refused.exit_code == 2
    assert "expected a GPU" in refused.output


def test_products_are_counted_as_they_run():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    with counting() as products:
        model(torch.zeros(4, 7, 3))
        model(torch.zeros(28, 3))
    model(torch.zeros(9, 3))
    assert products == {(28, 3, 5): 2, (28, 5, 2): 2}
    assert operations(products) == 2 * (2 * 28 * 3 * 5 + 2 * 28 * 5 * 2)


def test_the_backward_pass_of_a_frozen_layer_costs_as_much_as_its_forward_pass():
    frozen, learning = torch.nn.Linear(3, 5).requires_grad_(False), torch.nn.Linear(3, 5)
    with counting() as products:
        frozen(torch.zeros(28, 3, requires_grad=True)).sum().backward()
    assert products == {(28, 3, 5): 1, (28, 5, 3): 1}
    with counting() as products:
        learning(torch.zeros(28, 3, requires_grad=True)).sum().backward()
    assert products == {(28, 3, 5): 1, (28, 5, 3): 1, (5, 28, 3): 1}


def test_products_without_gradients_are_counted_alike():
    layer = torch.nn.Linear(3, 5)
    for asked in (torch.no_grad, torch.inference_mode):
        with asked(), counting() as products:
            layer(torch.zeros(4, 7, 3))
        assert products == {(28, 3, 5): 1}


def test_products_alone_are_measured():
    assert product_rate(Counter({(64, 64, 64): 3, (1, 2, 3): 1}), "cpu", torch.float32) > 0
