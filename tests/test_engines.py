"""The shared-prefix engine gives the oracle's rows, in probability space, however the work is cut."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from viker.data.example import Message
from viker.data.references import make_pool, read_pool
from viker.models.compiled import compile_text_layers
from viker.models.interventions import Intervention, teacher_prompt
from viker.models.prefix import Prefix, split_at_image
from viker.precompute import run
from viker.precompute.engines import shared_prefix
from viker.precompute.engines.naive import naive_rows
from viker.precompute.engines.rows import Pending, average, entropy, number_rows
from viker.precompute.engines.shared_prefix import SharedPrefixEngine, disagreement_with_naive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from viker.data.example import Example
    from viker.models.load import Loaded

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def pending_of(tiny: Loaded, examples: Sequence[Example], intervention: Intervention) -> list[Pending]:
    work = []
    for index, example in enumerate(examples):
        ids = tiny.encoder.ids(example)
        shown_ids = teacher_prompt(intervention, tiny.encoder, example, *ids)
        work.append(run.pending_of(run.Work(example, *ids, bytes([index]) * 16, shown_ids), intervention, tiny.encoder))
    return work


def shared_rows(tiny: Loaded, work: Sequence[Pending], **options: Any) -> list:
    return list(SharedPrefixEngine(tiny.model, **{"token_budget": 256, **options}).rows(work))


def assert_same_rows(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.mean_MV, theirs.mean_MV, **TOLERANCE)
        torch.testing.assert_close(ours.mean_entropy_M, theirs.mean_entropy_M, **TOLERANCE)


def two_pictures(example: Example, other: Example) -> Example:
    turn = Message("user", f"<image> and <image>\n{example.question}")
    return dataclasses.replace(example, images=(*example.images, *other.images), messages=(turn,))


@pytest.fixture(scope="module")
def references(mini_world):
    pool = read_pool(min((mini_world / "pools").iterdir()))
    small = make_pool("small", pool.images[:6])
    return Intervention(kind="reference", pool=small, num_references=3, seed=0)


@pytest.fixture(scope="module")
def ragged(training_examples):
    """Nine examples of four people, with answers of one to many tokens."""
    chosen = [training_examples[index] for index in (0, 1, 2, 13, 14, 30, 31, 40, 41)]
    answers = ["No.", "Yes", "The person in the picture was born in Lisbon and works there as a baker every day."]
    return [dataclasses.replace(example, answer=answers[index % 3]) for index, example in enumerate(chosen)]


def test_images_matter_to_this_model(tiny, ragged, references):
    rows = [next(naive_rows(tiny.model, [item], 0)).mean_MV for item in pending_of(tiny, ragged[:1] * 2, references)]
    assert (rows[0] - rows[1]).abs().sum(-1).max() > 0.1  # other references, other rows: the comparisons say something


def test_references_agree_with_the_oracle(tiny, ragged, references):
    work = pending_of(tiny, ragged, references)
    assert_same_rows(shared_rows(tiny, work), list(naive_rows(tiny.model, work, tiny.encoder.pad_id)))


def test_own_images_agree_with_the_oracle(tiny, ragged):
    work = pending_of(tiny, ragged, Intervention(kind="self"))
    assert_same_rows(shared_rows(tiny, work), list(naive_rows(tiny.model, work, tiny.encoder.pad_id)))


@pytest.mark.parametrize("kind", ["reference", "self"])
def test_several_images_an_example_agree_with_the_oracle(tiny, ragged, references, kind):
    intervention = references if kind == "reference" else Intervention(kind="self")
    examples = [two_pictures(ragged[0], ragged[3]), ragged[1], two_pictures(ragged[5], ragged[0])]
    work = pending_of(tiny, examples, intervention)
    assert_same_rows(shared_rows(tiny, work), list(naive_rows(tiny.model, work, tiny.encoder.pad_id)))


def test_examples_without_image_agree_with_the_oracle(tiny, ragged):
    texts = [dataclasses.replace(item, images=(), messages=(Message("user", item.question),)) for item in ragged[:4]]
    work = pending_of(tiny, [*texts, ragged[0]], Intervention(kind="self"))
    assert_same_rows(shared_rows(tiny, work), list(naive_rows(tiny.model, work, tiny.encoder.pad_id)))


def test_earlier_turns_agree_with_the_oracle(tiny, ragged, references):
    turns = (*ragged[0].messages, Message("assistant", "In a town."), Message("user", "Which one?"))
    work = pending_of(tiny, [dataclasses.replace(ragged[0], messages=turns)], references)
    assert_same_rows(shared_rows(tiny, work), list(naive_rows(tiny.model, work, tiny.encoder.pad_id)))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "options", [{"token_budget": 1}, {"token_budget": 60}, {"token_budget": 100_000}, {"prefix_bytes": 0}]
)
def test_rows_do_not_depend_on_budgets(tiny, ragged, references, options, shared):
    asked = [dataclasses.replace(example, messages=ragged[0].messages) for example in ragged]  # batches overlap
    work = pending_of(tiny, [*ragged, *asked], dataclasses.replace(references, shared=shared))
    assert_same_rows(shared_rows(tiny, work, **options), list(naive_rows(tiny.model, work, tiny.encoder.pad_id)))


def test_rows_come_in_the_order_asked(tiny, ragged, references):
    work = pending_of(tiny, ragged, references)
    assert_same_rows(shared_rows(tiny, work[::-1])[::-1], shared_rows(tiny, work))


def test_the_same_block_has_the_same_bytes(tiny, ragged, references):
    work = pending_of(tiny, ragged, references)
    for first, second in zip(shared_rows(tiny, work), shared_rows(tiny, work), strict=True):
        assert torch.equal(first.mean_MV, second.mean_MV)


def test_prefixes_that_outlive_a_block_change_nothing(tiny, ragged, references):
    work = pending_of(tiny, ragged, references)
    engine = SharedPrefixEngine(tiny.model, token_budget=256)
    first, second = list(engine.rows(work)), list(engine.rows(work))
    assert all(torch.equal(one.mean_MV, two.mean_MV) for one, two in zip(first, second, strict=True))


def test_each_image_runs_once(tiny, ragged, references, monkeypatch):
    work = pending_of(tiny, ragged, references)
    computed = []

    def count(*arguments: Any) -> Prefix:
        computed.append(1)
        return compute_prefix(*arguments)

    compute_prefix = shared_prefix.compute_prefix
    monkeypatch.setattr(shared_prefix, "compute_prefix", count)
    shared_rows(tiny, work)
    assert len(computed) == len({digest for item in work for digest in item.image_digests})


def test_probabilities_are_averaged_not_logits(tiny, ragged, references):
    work = pending_of(tiny, ragged[:2], references)
    for item, row in zip(work, shared_rows(tiny, work), strict=True):
        singles = [Pending([item.shown[index]], [item.image_digests[index]]) for index in range(3)]
        parts = [next(naive_rows(tiny.model, [single], 0)).mean_MV.double() for single in singles]
        mean_MV = sum(parts) / 3
        geometric_MV = sum(part.log() for part in parts).div(3).softmax(-1)
        torch.testing.assert_close(row.mean_MV.double(), mean_MV, **TOLERANCE)
        assert (mean_MV - geometric_MV).abs().max() > 1e-3
        torch.testing.assert_close(row.mean_MV.sum(-1), torch.ones(item.num_rows))


def test_mean_entropy_is_that_of_each_image_averaged(tiny, ragged, references):
    item = pending_of(tiny, ragged[:1], references)[0]
    singles = [Pending([shown], [digest]) for shown, digest in zip(item.shown, item.image_digests, strict=True)]
    entropies = [next(naive_rows(tiny.model, [single], 0)).mean_entropy_M for single in singles]
    torch.testing.assert_close(shared_rows(tiny, [item])[0].mean_entropy_M, sum(entropies) / 3, **TOLERANCE)


def test_entropy_of_a_certain_token_is_zero_and_of_a_uniform_row_log_v():
    logits = torch.tensor([[0.0, float("-inf"), float("-inf")], [0.0, 0.0, 0.0]])
    logprobs = logits.log_softmax(-1)
    assert entropy(logprobs.exp(), logprobs).tolist() == pytest.approx([0.0, 1.0986123], abs=1e-6)


def test_average_of_one_image_is_itself():
    logprobs_1MV = torch.randn(1, 2, 5).log_softmax(-1)
    assert torch.equal(average(logprobs_1MV).mean_MV, logprobs_1MV[0].exp())


def test_the_self_check_finds_no_disagreement_here(tiny, ragged, references):
    engine = SharedPrefixEngine(tiny.model, token_budget=256)
    work = pending_of(tiny, ragged[:3], references)
    assert disagreement_with_naive(engine, tiny.model, work[2], tiny.encoder.pad_id) < 1e-5


def test_the_self_check_finds_a_model_whose_prefix_is_not_what_it_saw(tiny, ragged, references, monkeypatch):
    def perturbed(*arguments: Any) -> Prefix:
        prefix = compute_prefix(*arguments)
        return Prefix([(keys, values.flip(2)) for keys, values in prefix.layers], prefix.length)

    compute_prefix = shared_prefix.compute_prefix
    monkeypatch.setattr(shared_prefix, "compute_prefix", perturbed)
    engine = SharedPrefixEngine(tiny.model, token_budget=256)
    work = pending_of(tiny, ragged[:3], references)
    assert disagreement_with_naive(engine, tiny.model, work[2], tiny.encoder.pad_id) > 0.02


def test_what_is_asked_and_answered_alike_behind_an_image_runs_once(tiny, training_examples, references, monkeypatch):
    answers = ("No.", "Yes, in Lisbon.", "Yes, in Rome.", "Y")
    asked = [dataclasses.replace(training_examples[0], answer=answer) for answer in answers]
    image = references.pool.images[0]
    work = [Pending([tiny.encoder.encode(example, [image])], [(image.sha256,)]) for example in asked]
    num_tokens, num_states = [], []

    def count(model: Any, prefixes: Any, forest: Any) -> Any:
        num_tokens.append(len(forest.tokens))
        return run_forest(model, prefixes, forest)

    run_forest, head = shared_prefix.run_forest, tiny.model.get_output_embeddings()
    expected = list(naive_rows(tiny.model, work, tiny.encoder.pad_id))
    monkeypatch.setattr(shared_prefix, "run_forest", count)
    counting = head.register_forward_hook(lambda _module, inputs, _output: num_states.append(len(inputs[0])))
    found = list(SharedPrefixEngine(tiny.model, token_budget=4096).rows(work))
    counting.remove()
    assert_same_rows(found, expected)
    length, _ = split_at_image(work[0].shown[0])
    suffixes = [item.shown[0].input_ids[len(length) : -1] for item in work]
    answers_so_far = {item.answer_ids[:end] for item in work for end in range(item.num_rows)}
    assert num_tokens == [len({suffix[:end] for suffix in suffixes for end in range(1, len(suffix) + 1)})]
    assert num_states[-1] == len(answers_so_far) < sum(item.num_rows for item in work)


def test_rows_are_numbered_alike_only_under_the_same_images(tiny, training_examples, references):
    item, other = pending_of(tiny, [training_examples[0]] * 2, references)
    assert item.image_digests != other.image_digests
    longer = dataclasses.replace(item, shown=[dataclasses.replace(item.shown[0], answer_ids=(*item.answer_ids, 9))])
    first, second, third = number_rows([item, other, longer])
    assert len({*first, *second}) == 2 * item.num_rows
    assert third == [*first, 2 * item.num_rows]


def test_a_block_with_more_averages_than_memory_is_cut(tiny, ragged, references, monkeypatch):
    work = pending_of(tiny, ragged, references)
    expected = shared_rows(tiny, work)
    monkeypatch.setattr(shared_prefix, "SUM_BYTES", 4 * tiny.encoder.vocab_size * 8)
    assert_same_rows(shared_rows(tiny, work), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch 2.13's own, when its compiler is loaded
def test_compiled_layers_give_the_same_rows(tiny, ragged, references):
    model = copy.deepcopy(tiny.model)
    compile_text_layers(model)
    work = pending_of(tiny, ragged, references)
    compiled = list(SharedPrefixEngine(model, token_budget=256).rows(work))
    assert_same_rows(compiled, shared_rows(tiny, work))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
