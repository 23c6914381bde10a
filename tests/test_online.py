"""The teacher run live is the oracle of cached rows: equal where storage loses nothing, else within a bound."""

# M answer tokens, K kept, C buckets, V vocabulary

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from viker.data.example import DataError
from viker.data.instructions import PRIVACY_INSTRUCTION
from viker.data.references import make_pool, read_pool
from viker.data.sources import open_source
from viker.models.interventions import Intervention
from viker.models.lora import add_lora
from viker.precompute.cache import CacheMismatch, TeacherCache
from viker.precompute.engines.naive import naive_rows
from viker.precompute.run import compute_blocks, make_request, start_builder
from viker.train.batches import Item, read_items
from viker.train.divergences import forward_kl
from viker.train.loop import Optimization, StepLog, Unlearning
from viker.train.method import Reads
from viker.train.methods import METHODS
from viker.train.online import naive_passes, online_intervention, online_rows, shared_prefix_passes
from viker.train.rows import regroup, teacher_buckets
from viker.train.spot_check import intervention_of, spot_check
from viker.train.steps import cached_rows
from viker.train.student import dense_buckets

if TYPE_CHECKING:
    from viker.data.example import Example
    from viker.models.load import Loaded

OPTIMIZATION = Optimization(
    num_train_epochs=2, per_device_train_batch_size=3, gradient_accumulation_steps=1, learning_rate=1e-3,
    weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=1e9, seed=0,
)  # fmt: skip
KINDS = ("reference", "self", "noise", "prompt", "text")


@pytest.fixture(scope="module")
def examples(training_examples):
    return list(training_examples[:6])


@pytest.fixture(scope="module")
def pool(mini_world):
    return make_pool("people", read_pool(mini_world / "pools" / "people").images[:5])


def intervention_for(kind: str, pool: Any) -> Intervention:
    instruction = PRIVACY_INSTRUCTION if kind == "prompt" else None
    drawn = {"num_references": 3} if kind in ("reference", "noise") else {}
    return Intervention(kind=kind, pool=pool if kind == "reference" else None, instruction=instruction, **drawn)


def make_cache(
    tiny: Loaded, examples: list[Example], intervention: Intervention, home: Path, *, top_k: int, storage: str
) -> TeacherCache:
    identity = {"weights": "w", "tokenizer": "t", "processor": "p", "rendering": tiny.rendering.identity()}
    request = make_request(
        tiny.encoder, examples, intervention, identity, top_k=top_k, teacher_dtype="float32", logprob_dtype=storage
    )
    builder = start_builder(home, request, intervention, {})
    oracle = lambda pending: naive_rows(tiny.model, pending, tiny.encoder.pad_id)  # noqa: E731
    compute_blocks(builder, request, intervention, tiny.encoder, oracle, "cpu")
    return TeacherCache.open(builder.assemble())


def adapted(tiny: Loaded) -> Any:
    torch.manual_seed(0)
    return add_lora(copy.deepcopy(tiny.model), rank=4, alpha=8, dropout=0.0, base=Path("base"))


def train(tiny: Loaded, model: Any, items: list[Item], **options: Any) -> list[StepLog]:
    run = Unlearning(
        model, tiny.encoder, items, [], METHODS["viker"], OPTIMIZATION, key_entropy=1.0, stop_at_teacher=False,
        accelerator=Accelerator(cpu=True), **options,
    )  # fmt: skip
    return list(run.steps())


@pytest.mark.parametrize("kind", KINDS)
def test_with_whole_rows_in_float32_the_losses_agree(tiny, examples, pool, tmp_path, kind):
    intervention = intervention_for(kind, pool)
    cache = make_cache(tiny, examples, intervention, tmp_path, top_k=tiny.encoder.vocab_size, storage="float32")
    items = read_items(tiny.encoder, examples, cache, kind)
    model = adapted(tiny)
    cached = train(tiny, adapted(tiny), items)
    bare = read_items(tiny.encoder, examples, None, kind)
    online = train(tiny, model, bare, rows_of=online_rows(model, tiny.encoder, intervention, naive_passes))
    assert [log.loss for log in online] == pytest.approx([log.loss for log in cached], rel=1e-6, abs=1e-6)
    assert online[-1].loss != pytest.approx(online[0].loss, rel=1e-3)  # the student moved, its teacher did not


@pytest.mark.parametrize("kind", KINDS)
def test_rows_behind_shared_prefixes_are_those_of_the_oracle(tiny, examples, pool, kind):
    model, intervention = adapted(tiny), intervention_for(kind, pool)
    items = read_items(tiny.encoder, examples, None, kind)
    naive, shared = (
        online_rows(model, tiny.encoder, intervention, passes_of)(items)
        for passes_of in (naive_passes, shared_prefix_passes)
    )
    gap_MC = teacher_buckets(regroup(shared, naive), tiny.encoder.vocab_size).exp()
    gap_MC -= teacher_buckets(naive, tiny.encoder.vocab_size).exp()
    assert float(gap_MC.abs().sum(1).max()) / 2 < 1e-5
    torch.testing.assert_close(shared.entropy_M, naive.entropy_M, atol=1e-4, rtol=1e-4)


def test_what_is_cut_and_rounded_changes_a_divergence_within_its_bound(tiny, examples, pool, tmp_path):
    """K = 64 and float16 lose the divergence inside the tail, and what rounding log-probabilities by 2^-11 does."""
    vocab_size, intervention = tiny.encoder.vocab_size, intervention_for("reference", pool)
    cache = make_cache(tiny, examples, intervention, tmp_path, top_k=64, storage="float16")
    items = read_items(tiny.encoder, examples, cache, "reference")
    model = adapted(tiny)
    whole = online_rows(model, tiny.encoder, intervention, naive_passes)(items)
    kept = cached_rows(64)(items)
    assert kept is not None
    student_MV = (2 * torch.randn((len(whole.answer_ids_M), vocab_size), dtype=torch.float64)).log_softmax(-1)
    teacher_MV = whole.kept_logprobs_MK.double().gather(1, whole.kept_ids_MK.argsort(1))
    full_M = (teacher_MV.exp() * (teacher_MV - student_MV)).sum(1)
    cached_M = forward_kl(
        teacher_buckets(kept, vocab_size).double(), dense_buckets(student_MV, kept.kept_ids_MK, kept.answer_ids_M)
    )
    outside_MV = torch.ones_like(teacher_MV, dtype=torch.bool).scatter(1, kept.kept_ids_MK, False)
    outside_MV.scatter_(1, kept.answer_ids_M[:, None], False)
    tail_teacher, tail_student = (one.masked_fill(~outside_MV, -torch.inf) for one in (teacher_MV, student_MV))
    gap_MV = torch.where(outside_MV, tail_teacher.log_softmax(1) - tail_student.log_softmax(1), 0.0)
    inside_M = tail_teacher.logsumexp(1).exp() * (tail_teacher.softmax(1) * gap_MV).sum(1)
    spread_M = (teacher_MV - student_MV).abs().max(1).values
    rounding_M = 2.0**-11 * (teacher_MV.exp() * teacher_MV.abs()).sum(1) * (2 + spread_M) + 1e-5
    assert bool(((full_M - inside_M - cached_M).abs() <= rounding_M).all())
    assert float(inside_M.min()) > -1e-9


def test_a_live_teacher_leaves_the_student_as_it_was(tiny, examples, pool):
    model, items = adapted(tiny), read_items(tiny.encoder, examples[:2], None, "reference")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    model.train()
    intervention = intervention_for("reference", pool)
    rows = online_rows(model, tiny.encoder, intervention, naive_passes)(items)
    plain = online_rows(adapted(tiny), tiny.encoder, intervention, naive_passes)(items)
    assert torch.equal(rows.answer_logprob_M, plain.answer_logprob_M), "the adapter is off"
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_live_teacher_of_references_needs_a_pool(mini_world):
    options = {"pool": None, "num_references": None, "draw_seed": 0, "shared_references": False, "instruction": None}
    source = open_source(str(mini_world))
    with pytest.raises(DataError, match="expected --pool"):
        online_intervention(options, Reads("reference"), source)
    assert online_intervention(options, Reads("noise"), source).num_references == 1
    found = online_intervention({**options, "pool": "patterns"}, Reads("reference"), source)
    assert (found.num_references, found.kind) == (8, "reference")


@pytest.mark.parametrize("kind", ["reference", "self"])
def test_a_spot_check_passes_the_rows_of_this_teacher(tiny, examples, pool, tmp_path, kind):
    intervention = intervention_for(kind, pool)
    cache = make_cache(tiny, examples, intervention, tmp_path, top_k=16, storage="float16")
    items = read_items(tiny.encoder, examples, cache, kind)
    assert spot_check(adapted(tiny), tiny.encoder, items, cache, intervention, 3) < 2e-3


def test_a_spot_check_refuses_the_rows_of_another_teacher(tiny, examples, pool, tmp_path):
    intervention = intervention_for("self", pool)
    cache = make_cache(tiny, examples, intervention, tmp_path, top_k=16, storage="float16")
    items = read_items(tiny.encoder, examples, cache, "self")
    other = adapted(tiny)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(0.8)
    with pytest.raises(CacheMismatch, match=r"expected rows of .* within a total variation of 0\.02"):
        spot_check(other, tiny.encoder, items, cache, intervention, 3)


def test_a_spot_check_asks_for_the_very_pool(tiny, examples, pool, tmp_path, mini_world):
    intervention = intervention_for("reference", pool)
    cache = make_cache(tiny, examples, intervention, tmp_path, top_k=16, storage="float16")
    source = open_source(str(mini_world))
    with pytest.raises(DataError, match="expected --pool, the images of the cache's references"):
        intervention_of(cache, {"pool": None, "instruction": None}, source)
    with pytest.raises(DataError, match="expected the images that"):
        intervention_of(cache, {"pool": "patterns", "instruction": None}, source)
    folder = tmp_path / "pool"
    folder.mkdir()
    for index, image in enumerate(pool.images):
        (folder / f"{index}.png").write_bytes(image.data)
    found = intervention_of(cache, {"pool": str(folder), "instruction": None}, source)
    assert dataclasses.replace(found, pool=None, kind="self") == dataclasses.replace(
        intervention, pool=None, kind="self"
    )
    assert found.pool is not None
    assert found.pool.digest == pool.digest
