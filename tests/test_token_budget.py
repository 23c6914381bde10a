"""The token budget is settled once for a cache, halves where memory runs out, and is recorded with each block."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cache_samples import tree_bytes
from command_line import call, succeed
from viker.data.references import make_pool, read_pool
from viker.models.identity import teacher_identity
from viker.models.interventions import Intervention
from viker.precompute.cache import CacheError, TeacherCache
from viker.precompute.engines.shared_prefix import SharedPrefixEngine
from viker.precompute.run import compute_blocks, make_request, pending_of, start_builder
from viker.precompute.token_budget import (
    PROBED,
    TOKEN_BUDGET,
    MemoryShortage,
    TokenBudget,
    Trial,
    choose_budget,
    first_work,
    is_out_of_memory,
    keep_budget,
    probe_budget,
    settle_budget,
)
from viker.tests.cache_maker import LENGTHS
from viker.tests.cache_samples import make_builder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from viker.models.load import Loaded
    from viker.precompute.engines.rows import Pending, Probabilities
    from viker.precompute.run import Request


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 1 MiB free.")


class SmallMemory(SharedPrefixEngine):
    """The default engine on a device where batches of more than `most` tokens do not fit, from a block on."""

    def __init__(self, model: Any, *, token_budget: int, most: int, from_block: int = 0) -> None:
        super().__init__(model, token_budget=token_budget)
        self.most, self.from_block = most, from_block
        self.asked: list[int] = []
        self.forgotten = 0

    def rows(self, pending: Sequence[Pending]) -> Iterator[Probabilities]:
        self.asked.append(self.token_budget)
        found = super().rows(pending)
        yield next(found)
        if len(self.asked) > self.from_block and self.token_budget > self.most:
            raise out_of_memory()
        yield from found

    def forget(self) -> None:
        self.forgotten += 1
        super().forget()


@pytest.fixture(scope="module")
def reference(mini_world):
    images = read_pool(min((mini_world / "pools").iterdir())).images
    return Intervention(kind="reference", pool=make_pool("small", images[:5]), num_references=2, seed=0)


@pytest.fixture(scope="module")
def request_(tiny, training_examples, reference):
    identity = teacher_identity(tiny.checkpoint, tiny.encoder)
    return make_request(
        tiny.encoder, training_examples[:45], reference, identity, top_k=8, teacher_dtype="float32",
        logprob_dtype="float16",
    )  # fmt: skip


@pytest.fixture(scope="module")
def pending(request_, reference, tiny):
    return [pending_of(work, reference, tiny.encoder) for work in request_.works[:20]]


def run(
    home: Path, request: Request, intervention: Intervention, tiny: Loaded, engine: SharedPrefixEngine, told: list[str]
) -> TeacherCache:
    builder = start_builder(home, request, intervention, {"source": "tests"})
    budget = TokenBudget(told.append, lambda tokens: keep_budget(builder, tokens))
    budget.engine = engine
    compute_blocks(builder, request, intervention, tiny.encoder, engine.rows, "cpu", budget=budget)
    return TeacherCache.open(builder.assemble())


def test_a_block_that_does_not_fit_halves_the_budget_for_itself_and_those_to_come(request_, reference, tiny, tmp_path):
    engine, told = SmallMemory(tiny.model, token_budget=256, most=64, from_block=3), []
    cache = run(tmp_path, request_, reference, tiny, engine, told)
    budgets = cache.build["block_token_budgets"]
    assert budgets == [256] * 3 + [64] * (len(budgets) - 3)
    assert engine.asked == [256] * 4 + [128] + [64] * (len(budgets) - 3), "each is tried whole, and never again larger"
    assert engine.forgotten == 2
    assert len(told) == 2
    assert "WARNING: out of memory with 256 tokens a batch (CUDA out of memory. Tried to allocate 20.00 GiB)" in told[0]
    assert "Going on with 128" in told[0]


def test_rows_of_a_smaller_budget_are_the_rows(request_, reference, tiny, tmp_path):
    whole = run(
        tmp_path / "whole", request_, reference, tiny, SharedPrefixEngine(tiny.model, token_budget=256), []
    ).load()
    small = run(
        tmp_path / "small",
        request_,
        reference,
        tiny,
        SmallMemory(tiny.model, token_budget=256, most=64, from_block=2),
        [],
    ).load()
    np.testing.assert_allclose(small.entropy_N, whole.entropy_N, atol=1e-5)
    np.testing.assert_allclose(small.answer_logprob_N, whole.answer_logprob_N, atol=1e-4)


def test_when_single_answers_do_not_fit_the_error_says_so_and_blocks_are_kept(request_, reference, tiny, tmp_path):
    engine = SmallMemory(tiny.model, token_budget=256, most=0, from_block=5)
    with pytest.raises(MemoryShortage, match=r"found too little \(CUDA out of memory.*run the same command to resume"):
        run(tmp_path, request_, reference, tiny, engine, [])
    assert engine.asked[5:] == [256, 128, 64, 32], "the shortest answers have more tokens: each is a batch already"
    staging = next(tmp_path.glob("*.building"))
    assert len(list(staging.glob("block-?????"))) == 5
    assert not list(staging.glob("block-*.claim"))
    larger = SmallMemory(tiny.model, token_budget=256, most=256)
    budgets = run(tmp_path, request_, reference, tiny, larger, []).build["block_token_budgets"]
    assert budgets == [256] * len(budgets)
    assert len(larger.asked) == len(budgets) - 5


def test_an_engine_without_a_budget_ends_with_the_same_error(request_, reference, tiny, tmp_path):
    def rows_of(pending: Sequence[Pending]) -> Iterator[Probabilities]:
        raise MemoryError

    builder = start_builder(tmp_path, request_, reference, {})
    with pytest.raises(MemoryShortage, match=r"found too little \(MemoryError\)"):
        compute_blocks(builder, request_, reference, tiny.encoder, rows_of, "cpu")


def test_other_errors_pass_as_they_are(pending):
    budget = TokenBudget()

    def fail() -> None:
        raise RuntimeError("expected scalar type Half but found Float")

    with pytest.raises(RuntimeError, match="expected scalar type Half but found Float"):
        budget.fit(fail, pending)


def test_real_errors_of_allocation_are_known(pending):
    for allocate in (lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the platform's choice
            allocate()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(out_of_memory())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_memory_of_a_failed_attempt_is_free_before_the_next(tiny, pending):
    held: list[weakref.ref[torch.Tensor]] = []
    engine = SmallMemory(tiny.model, token_budget=256, most=64)
    budget = TokenBudget()
    budget.engine = engine

    def attempt() -> int:
        assert not [reference for reference in held if reference() is not None], "what the last attempt had"
        large = torch.empty(1000)
        held.append(weakref.ref(large))
        if engine.token_budget > engine.most:
            raise out_of_memory()
        return int(large.numel())

    assert budget.fit(attempt, pending) == 1000
    assert len(held) == 3


def test_the_first_maker_s_budget_is_every_maker_s(tmp_path):
    told: list[str] = []
    assert settle_budget(make_builder(tmp_path, LENGTHS), None, lambda: 8192, told.append) == 8192
    assert settle_budget(make_builder(tmp_path, LENGTHS), None, lambda: 1, told.append) == 8192, "resumed"
    assert settle_budget(make_builder(tmp_path, LENGTHS), 8192, lambda: 1, told.append) == 8192
    assert told == []


def test_a_budget_that_is_named_counts_from_there_on_and_is_told(tmp_path):
    told: list[str] = []
    settle_budget(make_builder(tmp_path, LENGTHS), None, lambda: 8192, told.append)
    assert settle_budget(make_builder(tmp_path, LENGTHS), 2048, lambda: 1, told.append) == 2048
    assert "blocks so far were computed with 8192 tokens a batch; those to come with the 2048" in told[0]
    assert settle_budget(make_builder(tmp_path, LENGTHS), None, lambda: 1, told.append) == 2048
    assert len(told) == 1


def test_a_halved_budget_is_what_a_resume_begins_with(request_, reference, tiny, tmp_path):
    builder = start_builder(tmp_path, request_, reference, {})
    settle_budget(builder, None, lambda: 256, print)
    engine = SmallMemory(tiny.model, token_budget=256, most=64)
    budget = TokenBudget(lambda _: None, lambda tokens: keep_budget(builder, tokens))
    budget.engine = engine
    pending = [pending_of(work, reference, tiny.encoder) for work in request_.works[:3]]
    budget.fit(lambda: list(engine.rows(pending)), pending)
    assert settle_budget(start_builder(tmp_path, request_, reference, {}), None, lambda: 1, print) == 64


def test_what_is_stored_goes_with_the_blocks_when_the_cache_is_sealed(request_, reference, tiny, tmp_path):
    builder = start_builder(tmp_path, request_, reference, {})
    settle_budget(builder, None, lambda: 256, print)
    assert (builder.staging / "token-budget.json").exists()
    cache = run(tmp_path, request_, reference, tiny, SharedPrefixEngine(tiny.model, token_budget=256), [])
    assert [path.name for path in tmp_path.iterdir()] == [cache.root.name]
    assert settle_budget(builder, None, lambda: 7, print) == 7, "sealed by another process: nothing is left to agree on"


CHOOSER = """
import sys, time
from pathlib import Path
from viker.tests.cache_maker import LENGTHS
from viker.tests.cache_samples import make_builder
from viker.precompute.writing.agreed import agree
builder = make_builder(Path(sys.argv[1]), LENGTHS)
def choose():
    print("choosing", flush=True)
    time.sleep(float(sys.argv[3]))
    return {"tokens": int(sys.argv[2])}
print(agree(builder, "token-budget", choose)["tokens"], flush=True)
"""


def start_chooser(home: Path, tokens: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHOOSER, str(home), str(tokens), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_while_one_maker_tries_budgets_out_the_others_wait_for_it(tmp_path):
    with start_chooser(tmp_path, 111, 1.5) as first:
        assert first.stdout.readline() == "choosing\n"
        with start_chooser(tmp_path, 222, 0.0) as second:
            assert second.communicate(timeout=60)[0] == "111\n"
        assert first.communicate(timeout=60)[0] == "111\n"
    assert not list(tmp_path.glob("*.building/*.claim"))


def test_a_maker_killed_while_it_tries_leaves_the_choice_to_the_next(tmp_path):
    with start_chooser(tmp_path, 111, 60) as first:
        assert first.stdout.readline() == "choosing\n"
        first.kill()
        first.wait(60)
    assert settle_budget(make_builder(tmp_path, LENGTHS), None, lambda: 222, print) == 222


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"schema":"viker/agreed/1","value":{"tokens":"many"}}'])
def test_a_stored_value_that_is_none_is_one_clear_error(tmp_path, content):
    builder = make_builder(tmp_path, LENGTHS)
    (builder.staging / "token-budget.json").write_bytes(content)
    with pytest.raises(CacheError, match=r"token-budget.json: expected"):
        settle_budget(builder, None, lambda: 1, print)


def trials(seconds: dict[int, float], extra_bytes: dict[int, int] | None = None) -> Any:
    def try_out(tokens: int) -> Trial:
        if tokens not in seconds:
            raise out_of_memory()
        return Trial(seconds[tokens], (extra_bytes or {}).get(tokens, 0))

    return try_out


SIZES = (1024, 2048, 4096, 8192)


@pytest.mark.parametrize(
    ("seconds", "extra_bytes", "chosen"),
    [
        ({1024: 4.0, 2048: 2.0, 4096: 1.0, 8192: 1.5}, {}, 4096),
        ({1024: 4.0, 2048: 2.0, 4096: 1.02, 8192: 1.0}, {}, 4096),
        ({1024: 4.0, 2048: 2.0}, {}, 2048),
        ({1024: 4.0, 2048: 2.0, 4096: 1.0, 8192: 0.5}, {4096: 950, 8192: 950}, 2048),
        ({}, {}, 512),
    ],
    ids=["the fastest", "nearly as fast and smaller", "what fits", "what leaves room", "none fits"],
)
def test_the_best_budget_is_chosen(seconds, extra_bytes, chosen):
    assert choose_budget(trials(seconds, extra_bytes), 1000, SIZES) == chosen


def test_an_error_that_is_not_about_memory_ends_the_search():
    def try_out(tokens: int) -> Trial:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        choose_budget(try_out, 1000, SIZES)


def test_the_probe_runs_the_engine_on_real_work_and_says_what_it_chose(pending, tiny):
    engine, told = SmallMemory(tiny.model, token_budget=77, most=4096), []
    chosen = probe_budget(engine, engine.rows, pending, 10_000_000, told.append)
    assert engine.asked == [tokens for tokens in PROBED if tokens <= 4096 for _ in range(2)] + [8192]
    assert chosen in (1024, 2048, 4096)
    assert f"{chosen} tokens a batch were fastest here" in told[0]


def test_a_cache_too_small_to_earn_the_trials_back_gets_the_constant(pending, tiny):
    engine = SmallMemory(tiny.model, token_budget=77, most=4096)
    assert probe_budget(engine, engine.rows, pending, 100, print) == TOKEN_BUDGET
    assert engine.asked == []


def test_trials_take_the_first_examples_that_fill_them(pending):
    def tokens(items: Sequence[Pending]) -> int:
        return sum(len(shown.input_ids) - shown.image_end for item in items for shown in item.shown)

    some = first_work(pending, 200)
    assert len(some) < len(pending)
    assert tokens(some) >= 200 > tokens(some[:-1])
    assert first_work(pending, 10**9) == pending


@pytest.fixture
def precompute(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[str]:
    pool = mini_world / "pools" / "pets"
    return [
        "precompute", "--data", str(mini_world), "--model", str(tiny_model_dir), "--pool", str(pool), "--split", "all",
        "--num-references", "1", "--limit", "40",
    ]  # fmt: skip


def build_of(summary: str) -> dict[str, Any]:
    return dict(TeacherCache.open(json.loads(summary)["path"]).build)


def test_on_a_cpu_it_is_a_constant_and_recorded(precompute):
    build = build_of(succeed(*precompute, "--json").out)
    assert set(build["block_token_budgets"]) == {TOKEN_BUDGET}


def test_a_resume_with_another_budget_says_so_and_each_block_records_its_own(precompute, tmp_path, monkeypatch):
    succeed(*precompute, "--part", "0/2")
    outcome = succeed(*precompute, "--token-budget", "64", "--json")
    assert f"computed with {TOKEN_BUDGET} tokens a batch; those to come with the 64" in outcome.err
    budgets = build_of(outcome.out)["block_token_budgets"]
    assert budgets == [TOKEN_BUDGET, 64] * (len(budgets) // 2)
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path))
    assert json.loads(succeed(*precompute, "--json").out)["key"] == json.loads(outcome.out)["key"]


def test_a_named_budget_is_a_resume_s_too(precompute, tmp_path, monkeypatch):
    succeed(*precompute, "--part", "0/2", "--token-budget", "64")
    resumed = json.loads(succeed(*precompute, "--json").out)
    monkeypatch.setenv("VIKER_CACHE_DIR", str(tmp_path))
    whole = json.loads(succeed(*precompute, "--json", "--token-budget", "64").out)
    assert tree_bytes(TeacherCache.open(resumed["path"]).root) == tree_bytes(TeacherCache.open(whole["path"]).root)


def test_memory_that_runs_out_in_the_self_check_is_no_reason_for_the_slow_engine(precompute, monkeypatch):
    def check(*arguments: Any) -> float:
        raise out_of_memory()

    monkeypatch.setattr("viker.precompute.open_teacher.disagreement_with_naive", check)
    outcome = call(*precompute)
    assert outcome.code == 1
    assert "expected memory for the model and one example under its images" in outcome.message
    assert "Using naive" not in outcome.err


def test_a_budget_of_nothing_is_a_usage_error(precompute):
    assert call(*precompute, "--token-budget", "0").code == 2
