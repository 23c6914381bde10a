"""`viker plan precompute`: what it counts is what runs, and what it prices follows from what it counts."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command_line import call, succeed
from torch import nn
from viker.plan.cost import (
    Shape,
    Tower,
    block_operations,
    peak_memory,
    prefix_bytes,
    prefix_operations,
    suffix_operations,
)
from viker.plan.forecast import forecast, times_computed
from viker.plan.probe import Rates, Storing
from viker.plan.sharing import count_sharing, run_behind
from viker.plan.work import Block, Planned, Prefix, Suffix, plan_work

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SMALL = Shape(
    vision=Tower(30, 2, 4), text=Tower(100, 3, 8), patch=10, tile_patches=6, key_value_width=4, hidden=8,
    intermediate=16, vocab_size=50, parameters=1000,
)  # fmt: skip
KINDS = {
    "reference": ["--teacher", "reference", "--num-references", "3"],
    "shared": ["--teacher", "reference", "--num-references", "2", "--shared-references"],
    "self": ["--teacher", "self", "--split", "retain", "--limit", "40"],
    "noise": ["--teacher", "noise", "--num-references", "2"],
    "shared noise": ["--teacher", "noise", "--num-references", "2", "--shared-references", "--instruction", "Hush."],
    "prompt": ["--teacher", "prompt", "--split", "retain", "--limit", "40"],
    "text": ["--teacher", "text"],
    "refusals": ["--teacher", "self", "--answers", "refusal"],
}


@pytest.fixture
def asked(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[object]:
    return ["--data", mini_world, "--model", tiny_model_dir, "--pool", mini_world / "pools" / "people"]


def plan(*options: object) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(succeed("plan", "precompute", *options, "--json").out)
    return told


def random_suffixes(seed: int) -> list[Suffix]:
    rng = random.Random(seed)
    questions = [tuple(rng.choices(range(3), k=rng.randint(1, 4))) for _ in range(4)]
    answers = [tuple(rng.choices(range(3), k=rng.randint(1, 5))) for _ in range(12)]
    return [Suffix(rng.choice(questions), answer) for answer in answers]


def blocks_of_one(groups: dict[Prefix, list[Suffix]]) -> Planned:
    return Planned([Block((), groups, distinct_rows=7)], num_images=len(groups))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_run_behind_a_prefix_is_a_node_each_of_the_trie(seed):
    suffixes, length = random_suffixes(seed), 11
    nodes = {suffix.run[:end] for suffix in suffixes for end in range(1, len(suffix.run) + 1)}
    predicting = {s.run[:end] for s in suffixes for end in range(len(s.question), len(s.run) + 1)}
    run = run_behind(length, suffixes)
    assert run.tokens == len(nodes)
    assert run.seen == sum(length + len(node) for node in nodes)
    assert run.states <= len(predicting)
    assert run.states >= len(predicting - {s.run[:end] for s in suffixes for end in range(1, len(s.question))})


def test_sharing_is_counted_a_block_and_a_prefix():
    same, other = Suffix((1, 2, 3), (7, 8, 9)), Suffix((1, 2, 3), (7, 5))
    first, second = Prefix(("a",), 0, 4, 10), Prefix(("b",), 0, 4, 10)
    planned = Planned(
        [Block((), {first: [same, other], second: [same]}, 5), Block((), {first: [same]}, 3)], num_images=2
    )
    sharing = count_sharing(planned)
    assert sharing.nothing == 5 + 4 + 5 + 5
    assert sharing.questions == (3 + 2 + 1) + 5 + 5
    assert sharing.beginnings == 5 + 5 + 5  # behind one question both answers begin with 7
    assert sharing.beginnings_of_all == 5 + 5
    assert sharing.trie_saves == pytest.approx(16 / 15)


def test_the_text_models_products_are_those_that_are_counted(asked, tiny):
    """Hooks count what every linear layer of the language model multiplies while the engine runs one block."""
    from viker.plan.precompute import shape_of
    from viker.precompute.ask import ask
    from viker.precompute.engines.shared_prefix import SharedPrefixEngine
    from viker.precompute.run import pending_of

    settled = options_of(asked, "--num-references", "2", "--shared-references")
    request, intervention = (found := ask(settled, print)).request, found.intervention
    block = max(plan_work(request, intervention, found.encoder).blocks, key=lambda block: len(block.pairs))
    keys = dict.fromkeys(sample.row_key for sample in block.samples)
    counted = 0

    def count(layer: nn.Linear, inputs: Any, _output: Any) -> None:
        nonlocal counted
        counted += 2 * inputs[0].numel() * layer.out_features

    hooks = [
        module.register_forward_hook(count)
        for module in tiny.model.get_decoder().modules()
        if isinstance(module, nn.Linear)
    ]
    pending = [pending_of(request.by_row_key[key], intervention, found.encoder) for key in keys]
    assert len(list(SharedPrefixEngine(tiny.model, token_budget=100_000).rows(pending))) == len(keys)
    for hook in hooks:
        hook.remove()
    shape = shape_of(found.checkpoint, trust_remote_code=False)
    alone = shape._replace(text=shape.text._replace(width=0))  # attention's products are no linear layer's
    operations = block_operations(alone, block, "shared-prefix", block.suffixes)
    assert counted == operations.prefix + operations.suffix


def options_of(asked: list[object], *more: str) -> dict[str, Any]:
    from viker.plan.commands import precompute
    from viker.precompute.commands import settle

    options = precompute.make_context("precompute", [*map(str, asked), *more]).params
    settle(options, "plan precompute")
    return options


def test_formulas_on_sizes_small_enough_to_do_by_hand():
    prefix = Prefix(("a",), 0, 4, 60)
    group = [Suffix((1, 2), (3, 4))]
    tokens, seen, states = run_behind(4, group)
    assert (tokens, seen, states) == (3, 5 + 6 + 7, 2)
    assert suffix_operations(SMALL, run_behind(4, group)) == (2 * 100 * 3 + 4 * 8 * 3 * 18, 2 * 8 * 50 * 2)
    once = block_operations(SMALL, Block((), {prefix: group}, 2), "shared-prefix", [prefix])
    assert once.vision == 2 * 30 * 6 + 4 * 4 * 2 * 36
    assert once.prefix == 2 * 100 * 4 + 4 * 8 * 3 * 10
    assert once.total == once.vision + once.prefix + once.suffix + once.head
    twice = block_operations(SMALL, Block((), {prefix: group * 2}, 2), "naive", ())
    assert twice.total == 2 * once.total  # nothing is shared, nothing is kept
    assert prefix_bytes(SMALL, [4, 5], 2) == 2 * 3 * 4 * 2 * 9


def test_memory_is_what_each_part_holds_within_its_budget():
    planned = blocks_of_one({Prefix(("a",), 0, 4, 60): [Suffix((1, 2), (3, 4))]})
    budgets = {"token_budget": 9, "prefix_budget": 10**6, "sum_budget": 10**6, "rows_at_once": 100}
    held = peak_memory(SMALL, planned, 2, **budgets, bytes_a_weight=2)
    assert held.weights == 2 * 1000
    assert held.prefixes == 2 * 3 * 4 * 2 * 4
    assert held.averages == 4 * 50 * 7
    assert held.logits == 4 * 4 * 50 * 2  # two states predict
    assert held.activations == 2 * 9 * (4 * 8 + 8 + 2 * 4 + 2 * 16)
    small = peak_memory(
        SMALL, planned, 2, token_budget=9, prefix_budget=7, sum_budget=8, rows_at_once=1, bytes_a_weight=0.5
    )
    assert (small.weights, small.prefixes, small.averages, small.logits) == (130 // 2 + 2 * 870, 7, 8, 4 * 4 * 50)


def test_a_prefix_is_computed_once_where_all_fit_and_again_where_they_do_not():
    prefixes = [Prefix((f"{index}",), 0, 4, 60) for index in range(5)]
    suffixes = {prefix: [Suffix((1,), (2,))] for prefix in prefixes}
    planned = Planned([Block((), suffixes, 1)] * 3, 5)
    size = prefix_bytes(SMALL, [4], 4)
    assert set(times_computed(planned, SMALL, 4, device_bytes=5 * size, host_bytes=0).values()) == {1}
    some = times_computed(planned, SMALL, 4, device_bytes=3 * size, host_bytes=0)
    assert 5 < sum(some.values()) < 15
    spilled = times_computed(planned, SMALL, 4, device_bytes=3 * size, host_bytes=5 * size)
    assert set(spilled.values()) == {1}  # copied back, not run again


def test_expected_seconds_are_rates_times_what_there_is():
    prefix = Prefix(("a",), 0, 4, 60)
    block = Block((), {prefix: [Suffix((1, 2), (3, 4))]}, distinct_rows=2)
    storing = Storing(stage_block=1.0, stage_row=0.0, seal=3.0, seal_row=0.0, bytes=10, bytes_row=1, num_rows=1)
    rates = Rates(prefix=1e-3, suffix=1e-2, encode=0.5, cut=0.25, storing=storing, num_pairs=1)
    seconds = forecast(
        Planned([block] * 2, 1), SMALL, "shared-prefix", rates, {prefix: 1}, start=1.0, load=2.0, pictures=0.5
    )
    operations = block_operations(SMALL, block, "shared-prefix", [prefix])
    assert seconds.prefixes == pytest.approx(1e-3 * (operations.vision + operations.prefix))
    assert seconds.suffixes == pytest.approx(2e-2 * (operations.suffix + operations.head))
    assert (seconds.rows, seconds.staging, seconds.reading, seconds.seal) == (1.0, 2.0, 1.5, 3.0)
    computing = seconds.prefixes + seconds.suffixes + seconds.rows
    assert seconds.total == pytest.approx(1 + 2 + computing + 3)  # reading and staging are done before computing is


def test_prefixes_and_what_follows_them_have_rates_of_their_own(asked, tmp_path, monkeypatch):
    """A teacher that takes seven seconds a new image and half a second a row of a pair, on a clock of its own."""
    from viker.plan import probe
    from viker.plan.shape import shape_of
    from viker.precompute.ask import ask
    from viker.precompute.engines.rows import Pending, Probabilities, entropy
    from viker.precompute.open_teacher import Teacher
    from viker.precompute.run import first_pending

    found = ask(options_of(asked, "--num-references", "2"), print)
    planned = plan_work(found.request, found.intervention, found.encoder)
    shape, clock = shape_of(found.checkpoint, trust_remote_code=False), [0.0]
    seen = set(first_pending(found.request, found.intervention, found.encoder).image_digests)
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def rows_of(pending: Sequence[Pending]) -> Iterator[Probabilities]:
        for item in pending:
            clock[0] += 7 * len(set(item.image_digests) - seen) + 0.5 * len(item.shown) * item.num_rows
            seen.update(item.image_digests)
            logprobs = torch.randn(item.num_rows, shape.vocab_size).log_softmax(-1)
            yield Probabilities(logprobs.exp(), entropy(logprobs.exp(), logprobs))

    rates = probe.measure(planned, found, Teacher("shared-prefix", rows_of, "cpu"), shape, tmp_path, seconds=1e9)
    one = next(iter(planned.prefixes))
    behind = [block_operations(shape, block, "shared-prefix", ()) for block in planned.blocks]
    pair_rows = sum(len(suffix.answer) for block in planned.blocks for _, suffix in block.pairs)
    assert rates.num_pairs == planned.num_pairs
    assert rates.prefix * sum(prefix_operations(shape, one)) == pytest.approx(7)
    assert rates.suffix * sum(it.suffix + it.head for it in behind) == pytest.approx(0.5 * pair_rows)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planned_is_what_is_computed(asked, kind):
    options = [*asked, *KINDS[kind], "--top-k", "16"]
    planned = plan(*options)
    made = json.loads(succeed("precompute", *options, "--json").out)
    assert planned["schema"] == "viker/plan/1"
    assert planned["found"] is None
    assert (planned["key"], planned["rows"], planned["pairs"]) == (made["key"], made["rows"], made["pairs"])
    taken = made["bytes_per_row"] * made["rows"]
    assert planned["bytes"]["measured"]
    assert planned["bytes"]["expected"] == pytest.approx(taken, rel=0.25)
    again = plan(*options)
    assert again["found"] is not None
    assert again["probe"] is None
    assert again["pairs"] == planned["pairs"]
    assert again["seconds"]["total"] < planned["seconds"]["total"] + 60  # asking costs, computing nothing
    assert "nothing will be computed" in succeed("plan", "precompute", *options).out


def test_a_plan_says_what_its_time_is_made_of(asked, isolated_cache_home):
    planned = plan(*asked, "--num-references", "2")
    seconds = planned["seconds"]
    assert min(seconds.values()) >= 0
    assert seconds["suffixes"] > 0
    computing = seconds["prefixes"] + seconds["suffixes"] + seconds["rows"]
    beside = max(seconds["reading"], computing, seconds["staging"])
    assert seconds["total"] == pytest.approx(seconds["start"] + seconds["load"] + beside + seconds["seal"])
    assert planned["probe"]["engine"] == "shared-prefix"
    assert planned["probe"]["share"] == 1
    assert planned["memory"]["total"] >= planned["memory"]["probe_peak"]
    assert list(isolated_cache_home.iterdir()) == []  # what was measured is not kept


def test_a_short_probe_measures_a_part(asked):
    planned = plan(*asked, "--num-references", "4", "--probe-seconds", "0")
    assert 0 < planned["probe"]["pairs"] < planned["pairs"]
    assert planned["probe"]["rows"] < planned["rows"]
    assert not planned["bytes"]["measured"]  # too few rows to tell how they are compressed
    assert planned["seconds"]["suffixes"] > 0


def test_another_engine_runs_every_pair_whole(asked):
    options = [*asked, "--num-references", "2", "--shared-references", "--count-only"]
    shared, naive = plan(*options)["operations"], plan(*options, "--engine", "naive")["operations"]
    assert naive["prefix"] > 5 * shared["prefix"]
    assert naive["head"] >= shared["head"]


def test_counting_loads_no_weights(asked, monkeypatch):
    from transformers import AutoModelForImageTextToText

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("expected to count without weights")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", refuse)
    counted = plan(*asked, "--count-only")
    assert counted["seconds"] is None
    assert counted["probe"] is None
    assert counted["memory"]["libraries"] is None
    assert counted["bytes"]["expected"] < counted["bytes"]["raw"]
    with pytest.raises(AssertionError, match="without weights"):
        plan(*asked)
    text = succeed("plan", "precompute", *asked, "--count-only").out
    assert f"{counted['pairs']} pairs" in text
    assert "not measured" in text


def test_a_presets_options_for_precompute_count(asked, tmp_path):
    preset = tmp_path / "own.toml"
    preset.write_text('[precompute]\nnum-references = 2\n\n[train]\nmethod = "viker"\n', encoding="utf-8")
    told = json.loads(succeed("--preset", preset, "plan", "precompute", *asked, "--count-only", "--json").out)
    assert told["pairs"] == 2 * told["distinct_examples"]


def test_every_option_of_precompute_is_planned_or_left_out_by_name():
    """An option that is new in precompute has to be thought of here."""
    from viker.plan.commands import precompute
    from viker.precompute.commands import command

    left_out = {"part", "workers", "stage_in_remote", "overwrite", "push", "dry_run"}
    names = {option.name for option in command.params}
    assert left_out <= names
    planned = {
        "answers", "instruction",
        "as_json", "attention", "chat_template", "config", "data", "data_revision", "deterministic", "device", "dtype",
        "engine", "forget", "key_entropy", "limit", "model", "num_references", "pool", "processor", "quantization",
        "ratio", "revision", "run", "score_end_token", "seed", "shared_references", "skip_text", "split",
        "store_logprobs", "system_prompt", "teacher", "token_budget", "top_k", "trust_remote_code", "vllm_listed",
        "torch_compile", "vllm_option",
    }  # fmt: skip
    assert names == planned | left_out
    assert {option.name for option in precompute.params} == planned | {"count_only", "probe_seconds"}


def test_a_plan_asks_for_what_precompute_asks_for(asked):
    outcome = call("plan", "precompute", "--model", asked[3])
    assert outcome.code == 2
    assert "plan precompute: expected --data" in outcome.err
    outcome = call("plan", "precompute", *asked[:4])
    assert outcome.code == 2
    assert "expected --pool" in outcome.err
    assert call("plan", "precompute", "--data", "nowhere", *asked[2:]).code == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reference", "self"])
def test_the_embedded_benchmark_is_planned_and_then_computed(tmp_path, quiet_torch, kind, record_property):
    """Timings gate nothing: both are recorded, and benchmarks/plan.md holds measured ones."""
    from viker.data.mini_files import make_mini
    from viker.data.sources import open_source
    from viker.models.tiny import build_tiny_llava

    make_mini(tmp_path / "data", seed=0, num_people=60)
    examples = list(open_source(str(tmp_path / "data" / "base")).training("all"))
    build_tiny_llava(tmp_path / "vanilla", (f"{one.question} {one.answer}" for one in examples), seed=0)
    options: list[object] = ["--data", tmp_path / "data", "--model", tmp_path / "vanilla"]
    options += (
        ["--pool", tmp_path / "data" / "pools" / "people"] if kind == "reference" else
        ["--teacher", "self", "--split", "retain-seen", "--top-k", "64"]
    )  # fmt: skip
    told = json.loads(succeed("--preset", "mini", "plan", "precompute", *options, "--json").out)
    made = succeed("--preset", "mini", "precompute", *options)
    assert f"{told['pairs']} pairs computed" in made.out
    assert told["probe"]["share"] == 1  # five seconds are more than all of it
    record_property("planned", told["seconds"]["total"])
    record_property("took", float(made.out.split(" computed in ")[1].split(" s")[0]))
