"""The unlearning loop: no teacher, LoRA where it belongs, sums that splitting does not change, stops and errors."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from viker.data.example import DataError
from viker.models.forward import answer_logits
from viker.models.interventions import Intervention
from viker.models.lora import add_lora, language_linears
from viker.precompute.cache import CacheMismatch, TeacherCache
from viker.precompute.engines.naive import naive_rows
from viker.precompute.reading.rows import Rows
from viker.precompute.run import compute_blocks, make_request, start_builder
from viker.train.batches import Item, count_steps, draw_batches, item_keys, micro_batches, read_items, stack_rows
from viker.train.choose_method import choose_method
from viker.train.finetune import epoch_order, finetune
from viker.train.loop import NonFiniteLoss, Optimization, StepLog, as_line, check_items, unlearn
from viker.train.methods import METHODS
from viker.train.steps import batch_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded
    from viker.train.method import Method

KEY_ENTROPY = 0.5
OPTIMIZATION = Optimization(
    num_train_epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=1, learning_rate=1e-3,
    weight_decay=0.0, warmup_ratio=0.0, max_grad_norm=1e9, seed=0,
)  # fmt: skip
REGULARIZER = choose_method("viker", lambda_=1.0, retain=None, ascent="none")
ONE_STEP = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 6}
UNLEARN = {"learning_rate": 4e-3, "num_train_epochs": 12}


def made_up_rows(answer_ids: Sequence[int], vocab_size: int, logprob_of_key: float = math.log(0.02)) -> Rows:
    """Rows whose even tokens are normal (the teacher is certain) and whose odd tokens are key (it hardly knows)."""
    N = len(answer_ids)
    is_key_N = np.arange(N) % 2 == 1
    answer_logprob_N = np.where(is_key_N, logprob_of_key, math.log(0.999)).astype(np.float32)
    others_N2 = np.array([[(token + 1) % vocab_size, (token + 2) % vocab_size] for token in answer_ids])
    share_N = np.log((1 - np.exp(answer_logprob_N)) / 4)
    return Rows(
        kept_ids_NK=np.concatenate([np.array(answer_ids)[:, None], others_N2], axis=1).astype(np.uint16),
        kept_logprobs_NK=np.stack([answer_logprob_N, share_N, share_N], axis=1).astype(np.float32),
        tail_logprob_N=np.log((1 - np.exp(answer_logprob_N)) / 2).astype(np.float32),
        entropy_N=np.where(is_key_N, 3.0, 0.01).astype(np.float32),
        answer_logprob_N=answer_logprob_N,
        sum_squares_N=np.full(N, 0.5, np.float32),
        disagreement_N=np.zeros(N, np.float32),
    )


def make_items(tiny: Loaded, examples: Sequence[Example], **options: float) -> list[Item]:
    """Items with made-up rows, as a method that reads irrelevant images has them; every other answer is a refusal."""
    items = [with_rows(tiny, item, **options) for item in read_items(tiny.encoder, examples, None, "reference")]
    return [dataclasses.replace(item, refusal=items[index - 1]) for index, item in enumerate(items)]


def with_rows(tiny: Loaded, item: Item, **options: float) -> Item:
    rows = made_up_rows(item.answer_ids, tiny.encoder.vocab_size, **options)
    return dataclasses.replace(item, rows=rows, log_rows=rows)


def train(
    model: Any, tiny: Loaded, forget: Sequence[Item], method: Method, retain: Sequence[Item] = (), **options: Any
) -> list[StepLog]:
    loop = {"key_entropy": KEY_ENTROPY, "stop_at_teacher": False}
    between = options.pop("between", lambda log: None)
    loop |= {name: options.pop(name) for name in list(options) if name in loop}
    optimization = dataclasses.replace(OPTIMIZATION, **options)
    accelerator = Accelerator(cpu=True)
    logs = []
    for log in unlearn(
        model, tiny.encoder, forget, list(retain), method, optimization, accelerator=accelerator, **loop
    ):
        between(log)
        logs.append(log)
    return logs


def logits_of(model: Any, tiny: Loaded, items: Sequence[Item]) -> torch.Tensor:
    batch = batch_of(model, tiny.encoder, items, 1)
    with torch.no_grad():
        return answer_logits(model, batch.inputs, batch.batch_M, batch.position_M)


def answer_logprobs(model: Any, tiny: Loaded, items: Sequence[Item]) -> torch.Tensor:
    answer_ids_M = torch.tensor([token for item in items for token in item.answer_ids])
    return logits_of(model, tiny, items).log_softmax(-1).gather(1, answer_ids_M[:, None])[:, 0]


def rows_of(items: Sequence[Item]) -> Any:
    return stack_rows([item.rows for item in items], [token for item in items for token in item.answer_ids])


def mean_logprob(model: Any, tiny: Loaded, items: Sequence[Item], key_tokens: bool) -> float:
    is_key_M = rows_of(items).entropy_M > KEY_ENTROPY
    return float(answer_logprobs(model, tiny, items)[is_key_M == key_tokens].mean())


@pytest.fixture(scope="module")
def forget(tiny, training_examples):
    return make_items(tiny, training_examples[:6])


@pytest.fixture(scope="module")
def retain(tiny, training_examples):
    return make_items(tiny, training_examples[40:46])


@pytest.fixture
def adapted(trainable, tiny_model_dir):
    torch.manual_seed(0)
    return add_lora(trainable, rank=4, alpha=8, dropout=0.0, base=tiny_model_dir)


@pytest.fixture(scope="module")
def taught(tiny, forget):
    """A copy of the tiny model that knows the forget answers by heart."""
    model = copy.deepcopy(tiny.model)
    epochs = finetune(
        model, tiny.encoder, [item.example for item in forget], num_epochs=60, batch_size=6, group_size=6,
        learning_rate=3e-3, weight_decay=0.0, warmup_ratio=0.1, seed=0, augment_pictures=False, stop_memorized=1.0,
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    assert list(epochs)[-1].memorized == 1.0
    return model


@pytest.fixture
def memorized(taught, tiny_model_dir):
    torch.manual_seed(0)
    return add_lora(copy.deepcopy(taught), rank=4, alpha=8, dropout=0.0, base=tiny_model_dir)


@pytest.fixture
def forwards(trainable) -> list[int]:
    """Batch sizes of the base model's forward passes, whoever asks for them."""
    counted: list[int] = []
    trainable.register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.fixture
def seen_gradients() -> Iterator[list[dict[int, torch.Tensor]]]:
    """The gradients that each optimizer step used, parameter by parameter."""
    seen: list[dict[int, torch.Tensor]] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        seen.append({index: weight.grad.clone() for index, weight in enumerate(weights) if weight.grad is not None})

    handle = register_optimizer_step_pre_hook(record)
    yield seen
    handle.remove()


def test_lora_is_on_the_linears_of_the_language_model_alone(adapted):
    found = {name.removeprefix("base_model.model.") for name, part in adapted.named_modules() if is_lora(part)}
    linears = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    linears += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert found == {f"model.language_model.layers.{layer}.{linear}" for layer in range(4) for linear in linears}


def test_lora_weights_alone_are_trained(adapted):
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 28
    assert all(re.search(r"language_model\.layers\.\d+\..*\.lora_[AB]\.default\.weight$", name) for name in trained)


def test_a_fresh_adapter_changes_nothing(adapted, tiny, forget):
    ours_MV, theirs_MV = (logits_of(model, tiny, forget) for model in (adapted, tiny.model))
    assert torch.equal(ours_MV, theirs_MV)


def test_targets_are_full_paths(tiny):
    modules = dict(tiny.model.named_modules())
    assert all(isinstance(modules[path], torch.nn.Linear) for path in language_linears(tiny.model))


def test_a_model_without_a_text_decoder_of_linears_is_refused():
    class Empty(torch.nn.Module):
        def get_decoder(self) -> torch.nn.Module:
            return torch.nn.Identity()

    with pytest.raises(DataError, match="Empty: expected linear layers in its text decoder"):
        language_linears(Empty())


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"rmu"}))
def test_the_teacher_is_never_run(adapted, tiny, forget, retain, forwards, monkeypatch, name):
    def refuse(*_: Any) -> None:
        raise AssertionError("the adapter was switched off: that would be the teacher")

    monkeypatch.setattr(PeftModel, "disable_adapter", refuse)
    monkeypatch.setattr(LoraLayer, "enable_adapters", refuse)
    method = METHODS[name]
    logs = train(adapted, tiny, forget, method, retain if method.needs_retain else ())
    assert len(logs) == 3
    assert len(forwards) == 3 * (1 + method.refusals + method.needs_retain)


def test_of_rmu_the_teacher_is_run_on_retain_examples_alone(adapted, tiny, forget, retain, forwards):
    logs = train(adapted, tiny, forget, METHODS["rmu"], retain)
    assert len(logs) == 3
    assert len(forwards) == 3 * (1 + 2)


def test_accumulation_runs_one_forward_a_micro_batch(adapted, tiny, forget, forwards):
    logs = train(adapted, tiny, forget, METHODS["viker"], gradient_accumulation_steps=3)
    assert (len(logs), len(forwards)) == (1, 3)


@pytest.mark.parametrize("split", [(2, 3), (1, 6), (4, 2)], ids=str)
@pytest.mark.parametrize("group_by_image", [False, True])
def test_gradients_do_not_depend_on_how_a_step_is_split(
    adapted, tiny, forget, retain, seen_gradients, split, group_by_image
):
    method = choose_method("recommended", lambda_=0.5, retain=2.0)
    size, parts = split
    options = {"learning_rate": 0.0, "group_by_image": group_by_image}
    whole = train(adapted, tiny, forget, method, retain, **{**options, **ONE_STEP})
    if size * parts > len(forget):  # a last batch that is not full
        parts = 2
    shared = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    apart = train(adapted, tiny, forget, method, retain, **{**options, **shared})
    assert len(whole) == len(apart) == 1
    assert whole[0].loss == pytest.approx(apart[0].loss, abs=1e-4)
    assert seen_gradients[0].keys() == seen_gradients[1].keys()
    for index, gradient in seen_gradients[0].items():
        torch.testing.assert_close(seen_gradients[1][index], gradient, atol=1e-4, rtol=1e-3)
    assert max(float(gradient.abs().max()) for gradient in seen_gradients[0].values()) > 0.01


def test_the_retain_term_is_the_regularizer_on_other_people(adapted, tiny, forget, retain, seen_gradients):
    retain_only = choose_method("recommended", lambda_=None, retain=2.0, ascent="none", regularizer="none")
    options = {"learning_rate": 0.0, **ONE_STEP}
    regularized = train(adapted, tiny, retain, REGULARIZER, **options)[0]
    retained = train(adapted, tiny, forget, retain_only, retain, **options)[0]
    assert retained.loss == pytest.approx(2 * regularized.loss, rel=1e-4)
    for index, gradient in seen_gradients[0].items():
        torch.testing.assert_close(seen_gradients[1][index], 2 * gradient, atol=1e-4, rtol=1e-3)


def test_the_loss_is_a_sum_over_tokens_divided_by_examples(adapted, tiny, forget):
    log = train(adapted, tiny, forget, METHODS["ga"], learning_rate=0.0, **ONE_STEP)[0]
    total = answer_logprobs(tiny.model, tiny, forget).sum()
    assert log.loss == pytest.approx(float(total) / len(forget), abs=1e-4)


def test_a_step_is_logged_with_all_its_terms(adapted, tiny, forget, retain):
    method = choose_method("viker", lambda_=0.3, retain=2.0)
    log = train(adapted, tiny, forget, method, retain)[0]
    assert log.terms.keys() == {"ascent", "kl", "retain"}
    assert log.loss == pytest.approx(log.terms["ascent"] + 0.3 * log.terms["kl"] + 2.0 * log.terms["retain"], rel=1e-5)
    assert log.key_teacher_logprob == pytest.approx(math.log(0.02), abs=1e-5)
    assert log.normal_logprob is not None
    assert as_line(log)["schema"] == "viker/step/2"


def test_gradient_ascent_lowers_every_answer_token(memorized, tiny, forget):
    train(memorized, tiny, forget, METHODS["ga"], **UNLEARN)
    assert mean_logprob(memorized, tiny, forget, key_tokens=True) < -2
    assert mean_logprob(memorized, tiny, forget, key_tokens=False) < -2


def test_the_regularizer_alone_keeps_normal_tokens_and_lowers_key_tokens_towards_the_teacher(memorized, tiny, forget):
    logs = train(memorized, tiny, forget, REGULARIZER, **UNLEARN)
    assert mean_logprob(memorized, tiny, forget, key_tokens=False) > -0.3
    assert mean_logprob(memorized, tiny, forget, key_tokens=True) < -1
    assert logs[-1].terms["kl"] < logs[0].terms["kl"] / 2


def test_viker_lowers_key_tokens_more_than_normal_tokens(memorized, tiny, forget):
    train(memorized, tiny, forget, METHODS["recommended"], retain=forget, **UNLEARN)
    assert mean_logprob(memorized, tiny, forget, True) < mean_logprob(memorized, tiny, forget, False) - 1


def test_the_stop_is_where_key_tokens_reach_the_teacher(trainable, tiny, training_examples):
    certain = make_items(tiny, training_examples[:6], logprob_of_key=math.log(0.9))
    logs = train(trainable, tiny, certain, METHODS["ga"], num_train_epochs=4, stop_at_teacher=True)
    assert len(logs) == 4  # as soon as there are enough steps to pool


@pytest.mark.parametrize(
    "options",
    [
        {"stop_at_teacher": True, "learning_rate": 0.0, "unsure": -60.0},  # the student never gets there
        {"stop_at_teacher": True, "key_entropy": 99.0},  # no token counts as key
        {"stop_at_teacher": False},
    ],
    ids=["above the teacher", "no key tokens", "turned off"],
)
def test_without_a_reason_to_stop_every_step_is_taken(trainable, tiny, training_examples, options):
    unsure = options.get("unsure", math.log(0.9))
    items = make_items(tiny, training_examples[:6], logprob_of_key=unsure)
    options = {name: value for name, value in options.items() if name != "unsure"}
    assert len(train(trainable, tiny, items, METHODS["ga"], num_train_epochs=2, **options)) == 6


def test_a_loss_that_is_not_finite_names_step_and_examples_and_changes_no_weight(trainable, tiny, forget):
    seen: list[StepLog] = []

    def poison(log: StepLog) -> None:
        seen.append(log)
        with torch.no_grad():
            trainable.lm_head.weight[5] = math.nan

    weight = next(trainable.parameters())
    with pytest.raises(NonFiniteLoss, match=r"step 2: expected a finite loss .* found loss nan") as error:
        train(trainable, tiny, forget, METHODS["viker"], between=poison)
    assert sum(item.example.id in str(error.value) for item in forget) == 2
    assert "--learning-rate" in str(error.value)
    assert len(seen) == 1
    assert torch.isfinite(weight).all()


def test_the_learning_rate_falls_to_zero_after_its_warmup(adapted, tiny, forget):
    logs = train(adapted, tiny, forget, METHODS["ga"], num_train_epochs=4, warmup_ratio=0.25)
    rates = [log.learning_rate for log in logs]
    assert rates[0] < rates[2]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < rates[2] / 4


def test_the_same_seed_takes_the_same_steps(tiny, tiny_model_dir, forget):
    logs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = add_lora(copy.deepcopy(tiny.model), rank=4, alpha=8, dropout=0.0, base=tiny_model_dir)
        logs.append(train(model, tiny, forget, METHODS["viker"]))
    assert logs[0] == logs[1]


def test_batches_are_a_function_of_seed_purpose_and_epoch():
    def first(count: int, **names: Any) -> list[tuple[int, list[int]]]:
        return list(itertools.islice(draw_batches(10, 4, **{"seed": 0, "purpose": "forget", **names}), count))

    assert first(9) == first(9)
    assert first(3) != first(3, seed=1)
    assert first(3) != first(3, purpose="retain")
    epochs = [sorted(index for epoch, batch in first(9) if epoch == which for index in batch) for which in range(3)]
    assert epochs == [list(range(10))] * 3
    assert first(3) != [(0, batch) for _, batch in first(6)[3:]]
    assert count_steps(10, 4, 3) == 9
    assert count_steps(10, 4, 0.01) == 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shares_are_a_partition_of_the_batch(world_size):
    batch = [5, 3, 8, 1, 9]
    shares = [micro_batches(batch, 2, rank, world_size) for rank in range(world_size)]
    assert sorted(index for share in shares for part in share for index in part) == sorted(batch)
    assert {len(part) for share in shares for part in share} <= {1, 2}


def make_cache(home: Path, tiny: Loaded, examples: Sequence[Example]) -> TeacherCache:
    intervention = Intervention(kind="self")
    identity = {"weights": "w", "tokenizer": "t", "processor": "p", "rendering": tiny.rendering.identity()}
    options = {"top_k": 8, "teacher_dtype": "float32", "logprob_dtype": "float32"}
    request = make_request(tiny.encoder, examples, intervention, identity, **options)
    builder = start_builder(home, request, intervention, {})
    oracle = lambda pending: naive_rows(tiny.model, pending, tiny.encoder.pad_id)  # noqa: E731
    compute_blocks(builder, request, intervention, tiny.encoder, oracle, "cpu")
    return TeacherCache.open(builder.assemble())


def test_cached_rows_line_up_with_the_students_answer_tokens(tiny, training_examples, tmp_path):
    examples = training_examples[:5]
    cache = make_cache(tmp_path, tiny, examples)
    items = read_items(tiny.encoder, examples, cache, "self")
    ours_M, theirs_M = answer_logprobs(tiny.model, tiny, items), rows_of(items).answer_logprob_M
    torch.testing.assert_close(theirs_M, ours_M, atol=1e-4, rtol=1e-4)
    assert item_keys(tiny.encoder, examples, "self") == set(cache.row_keys)


def test_a_student_at_its_own_cached_rows_feels_no_regularizer(adapted, tiny, training_examples, tmp_path):
    examples = training_examples[:4]
    items = read_items(tiny.encoder, examples, make_cache(tmp_path, tiny, examples), "self")
    log = train(adapted, tiny, items, REGULARIZER)[0]
    assert abs(log.terms["kl"]) < 1e-3
    assert log.gradient_norm < 1e-2


def test_rows_of_other_tokens_are_refused(tiny, training_examples, tmp_path):
    cache = make_cache(tmp_path, tiny, training_examples[:2])
    changed = dataclasses.replace(training_examples[0], answer="Nobody knows.")
    with pytest.raises(CacheMismatch, match=re.escape(changed.id)):
        read_items(tiny.encoder, [changed], cache, "self")


def test_what_a_method_needs_is_checked_before_it_starts(tiny, forget, training_examples):
    bare = read_items(tiny.encoder, training_examples[:2], None, "reference")
    with pytest.raises(DataError, match="expected examples of forget people"):
        check_items([], [], METHODS["ga"])
    with pytest.raises(DataError, match="expected cached rows of every forget example"):
        check_items(bare, [], METHODS["viker"])
    with pytest.raises(DataError, match="expected retain examples"):
        check_items(forget, [], METHODS["recommended"])
    check_items(bare, [], METHODS["ga"])


def test_a_method_without_any_term_is_refused():
    with pytest.raises(DataError, match="expected at least one term"):
        choose_method("viker", lambda_=None, retain=None, ascent="none", regularizer="none")
    with pytest.raises(DataError, match="--method: expected one of"):
        choose_method("magic", lambda_=None, retain=None)


def test_ablations_switch_off_one_term():
    def left(**options: Any) -> list[str]:
        return [term.name for term in choose_method("viker", lambda_=0.2, retain=None, **options).forget]

    assert left(regularizer="none") == ["ascent"]
    assert left(ascent="none") == ["kl"]
    assert left() == ["ascent", "kl"]
    assert choose_method("viker", lambda_=0.2, retain=None).settings["lambda"] == 0.2


def test_finetuning_teaches_the_answers_and_stops_when_they_are_memorized(trainable, tiny, training_examples):
    logs = list(
        finetune(
            trainable, tiny.encoder, training_examples[:4], num_epochs=40, batch_size=4, group_size=4,
            learning_rate=3e-3, weight_decay=0.0, warmup_ratio=0.1, seed=0, augment_pictures=True, stop_memorized=0.99,
            accelerator=Accelerator(cpu=True),
        )
    )  # fmt: skip
    assert logs[-1].memorized >= 0.99 > logs[-2].memorized
    assert logs[-1].loss < logs[0].loss
    assert len(logs) < 40
    assert not trainable.training


def test_an_epoch_visits_every_example_once_image_by_image(training_examples):
    order = epoch_order(training_examples[:36], seed=0, epoch=0, group_size=4)
    assert sorted(example.id for example in order) == sorted(example.id for example in training_examples[:36])
    assert order == epoch_order(training_examples[:36], seed=0, epoch=0, group_size=4)
    assert order != epoch_order(training_examples[:36], seed=0, epoch=1, group_size=4)
    groups = [{example.images[0].sha256 for example in order[start : start + 4]} for start in range(0, 36, 4)]
    assert all(len(images) == 1 for images in groups)


def is_lora(part: torch.nn.Module) -> bool:
    return isinstance(part, LoraLayer)
