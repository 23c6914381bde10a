"""What a frozen tower makes of a picture is computed once, changes no number, and is never answered where it would."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from family_work import asked, each, each_shared, several_turns
from torch import nn
from viker.data.example import Message
from viker.models.augment import augment
from viker.models.forward import answer_logits, answer_states, head_of
from viker.models.lora import add_lora, vision_tower
from viker.models.pack import pack_for
from viker.models.vision_memo import VisionMemo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from viker.data.example import Example
    from viker.models.load import Loaded
    from viker.models.pack import Packed

CHANGED_PICTURES = "features from memory are not those of the batch at hand"


def adapted(loaded: Loaded) -> Any:
    """A copy with LoRA on its text, in training mode; nothing else learns."""
    model = add_lora(copy.deepcopy(loaded.model), rank=2, alpha=4, dropout=0.0, base=loaded.checkpoint.weights)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return model.train()


def batch_of(loaded: Loaded, examples: Sequence[Example], row_length: int = 0) -> Packed:
    rows = [loaded.encoder.encode(example) for example in examples]
    group_size = 1 if loaded.model_type in ("gemma3", "mllama") else 4
    return pack_for(
        loaded.model, rows, pad_id=loaded.encoder.pad_id, group_size=group_size, row_length=row_length
    )  # fmt: skip


def logits_of(model: Any, batch: Packed) -> Tensor:
    return answer_logits(model, batch.inputs, batch.batch_M, batch.position_M)


def remembered(model: Any, memo: VisionMemo, batch: Packed) -> Tensor:
    with memo.showing(batch.pictures):
        return logits_of(model, batch)


def gradients(model: Any, logits_MV: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (logits_MV.log_softmax(-1)[:, 7] * torch.linspace(0.5, 2.0, len(logits_MV))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


class Runs:
    """Counts runs of a model's vision tower, and the pictures (or tiles) of each."""

    def __init__(self, model: Any) -> None:
        self.sizes: list[int] = []
        vision_tower(model).register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.sizes.append(len(args[0] if args else kwargs["pixel_values"]))

    def since(self) -> list[int]:
        found, self.sizes = self.sizes, []
        return found


@pytest.fixture
def people(training_examples) -> list[list[Example]]:
    """Five people, four questions each about one picture."""
    by_person: dict[str, list] = {}
    for example in training_examples:
        by_person.setdefault(example.people[0], []).append(example)
    return [questions[:4] for questions in list(by_person.values())[:5]]


@pytest.fixture
def model(tiny) -> Iterator[Any]:
    return adapted(tiny)


BATCHES = (
    (asked(1), asked(1, "A baker."), asked(0)),
    (asked(3, "No."), asked(2), several_turns(), asked(0)),
    (several_turns(), asked(0), asked(1), asked(3)),
)


@each_shared
@pytest.mark.parametrize("row_length", [0, 1 << 20])
def test_logits_and_gradients_of_every_family_stay_the_same(family, row_length):
    model = adapted(family)
    memo, runs = VisionMemo(model), Runs(model.get_base_model())
    for examples in BATCHES:
        batch = batch_of(family, examples, row_length)
        expected = logits_of(model, batch)
        runs.since()
        found = remembered(model, memo, batch)
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-5)
        expected_gradients = gradients(model, expected)
        for name, gradient in gradients(model, found).items():
            torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4, msg=name)
    assert memo.reason is None
    assert runs.since() == []  # the last batch showed nothing new


@each
def test_every_family_remembers_or_says_why_not(family):
    model = adapted(family)
    memo, batch = VisionMemo(model), batch_of(family, (asked(0), asked(1)))
    expected = logits_of(model, batch)
    for _ in range(2):
        torch.testing.assert_close(remembered(model, memo, batch), expected, atol=3e-5, rtol=1e-5)
    apart = "this family has no image features apart from its text"
    assert memo.reason == (apart if family.model_type == "mllama" else None)


def test_a_picture_runs_once(tiny, model, people):
    memo, runs = VisionMemo(model), Runs(model.get_base_model())
    sizes = []
    for questions in (people[0], people[0], people[0] + people[1], people[1] + people[0], people[1] + people[2]):
        remembered(model, memo, batch_of(tiny, questions))
        sizes.append(runs.since())
    assert sizes == [[1, 1], [], [1, 2], [], [1]]  # the first batches of one and of several are compared with the tower


def test_only_a_first_batch_is_compared(tiny, model, people):
    memo, runs = VisionMemo(model), Runs(model.get_base_model())
    remembered(model, memo, batch_of(tiny, people[0] + people[1]))
    assert runs.since() == [2, 2]
    remembered(model, memo, batch_of(tiny, people[2]))
    assert runs.since() == [1]


def test_one_picture_several_times_in_a_batch(tiny, model, people):
    batch = batch_of(tiny, [people[0][0], people[1][0], people[0][1]])
    memo, runs = VisionMemo(model), Runs(model.get_base_model())
    assert len(batch.pictures) == 3
    torch.testing.assert_close(remembered(model, memo, batch), logits_of(model, batch))
    assert runs.since() == [2, 3, 3]  # two pictures; the comparison; without the memo


def test_texts_run_as_they_are(tiny, model, people):
    asked_alone = (Message("user", people[0][0].question),)
    text = dataclasses.replace(people[0][0], images=(), messages=asked_alone)
    memo, batch = VisionMemo(model), batch_of(tiny, [text])
    assert torch.equal(remembered(model, memo, batch), logits_of(model, batch))


def test_the_longest_unused_go_first_and_a_batch_is_answered_whole(tiny, model, people):
    bytes_a_picture = 16 * 128 * 4
    memo, runs = VisionMemo(model, limit_bytes=2 * bytes_a_picture), Runs(model.get_base_model())
    first, second, third = people[:3]
    remembered(model, memo, batch_of(tiny, first + second))
    assert {feature.untyped_storage().nbytes() for _, feature in memo._kept.values()} == {bytes_a_picture}
    runs.since()
    for questions, computed in ((first, []), (third, [1]), (first, []), (second, [1]), (third, [1])):
        batch = batch_of(tiny, questions)
        expected = logits_of(model, batch)
        runs.since()
        torch.testing.assert_close(remembered(model, memo, batch), expected)
        assert runs.since() == computed
    batch = batch_of(tiny, first + second + third)
    torch.testing.assert_close(remembered(model, memo, batch), logits_of(model, batch))


def test_pictures_are_held_so_that_no_other_takes_their_place(tiny, model, people):
    """A picture that the encoder forgot and read again is another one, with the same features."""
    memo, batch = VisionMemo(model), batch_of(tiny, people[0] + people[1])
    expected = remembered(model, memo, batch)
    held = [id(picture) for picture in batch.pictures]
    del batch
    tiny.encoder._pictures._read.clear()
    assert [id(picture) for picture, _ in memo._kept.values()] == held
    again = batch_of(tiny, people[0] + people[1])
    assert not set(held) & set(map(id, again.pictures))
    torch.testing.assert_close(remembered(model, memo, again), expected)


def test_states_and_gradient_checkpointing(tiny, model, people):
    batch = batch_of(tiny, people[0] + people[1])
    expected = gradients(model, logits_of(model, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # renamed in transformers 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    memo = VisionMemo(model)
    for _ in range(2):
        with memo.showing(batch.pictures):
            states_MD = answer_states(model, batch.inputs, batch.batch_M, batch.position_M)
        for name, gradient in gradients(model, head_of(model)(states_MD)).items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)
    assert memo.reason is None


def test_no_trace_is_left_on_the_model(tiny, model, people):
    memo, batch = VisionMemo(model), batch_of(tiny, people[0])
    core = model.get_base_model().model
    before = dict(vars(core))
    remembered(model, memo, batch)
    with memo.showing(batch.pictures):
        once = dict(vars(core))
        with pytest.raises(ValueError, match="input_ids"), memo.showing(batch.pictures):
            model(pixel_values=batch.inputs["pixel_values"])
        assert dict(vars(core)) == once != before
    assert dict(vars(core)) == before


def test_it_steps_aside_where_the_tower_or_the_projector_learns(tiny, people):
    batch = batch_of(tiny, people[0])
    for part in ("multi_modal_projector", "vision_tower"):
        model = adapted(tiny)
        learning = next(weight for name, weight in model.named_parameters() if part in name)
        learning.requires_grad_(True)
        memo = VisionMemo(model)
        assert memo.reason == "the vision tower or its projector learns"
        remembered(model, memo, batch).sum().backward()
        assert learning.grad.abs().max() > 0


def test_it_steps_aside_once_they_start_to_learn(tiny, model, people):
    memo, batch = VisionMemo(model), batch_of(tiny, people[0])
    remembered(model, memo, batch)
    assert memo.reason is None
    weight = next(weight for name, weight in model.named_parameters() if "multi_modal_projector" in name)
    weight.requires_grad_(True)
    remembered(model, memo, batch).sum().backward()
    assert weight.grad.abs().max() > 0
    assert memo.reason == "the vision tower or its projector learns"


def test_it_steps_aside_where_pictures_are_changed_on_the_way(tiny, model, people):
    memo, batch = VisionMemo(model), batch_of(tiny, people[0] + people[1])
    batch.inputs["pixel_values"] = augment(batch.inputs["pixel_values"], 0, 0)
    assert torch.equal(remembered(model, memo, batch), logits_of(model, batch))
    assert memo.reason == CHANGED_PICTURES


def test_it_steps_aside_where_pictures_are_named_in_another_order(tiny, model, people):
    memo, batch = VisionMemo(model), batch_of(tiny, people[0] + people[1])
    with memo.showing(batch.pictures[::-1]):
        found = logits_of(model, batch)
    assert torch.equal(found, logits_of(model, batch))
    assert memo.reason == CHANGED_PICTURES


def test_it_steps_aside_where_features_depend_on_their_neighbors(tiny, model, people):
    """One picture alone tells nothing of it: the first batch of several does."""
    memo = VisionMemo(model)
    projector = model.get_base_model().model.multi_modal_projector
    projector.register_forward_hook(lambda module, inputs, output: output - 0.1 * output.mean(0, keepdim=True))
    remembered(model, memo, batch_of(tiny, people[0]))
    assert memo.reason is None
    batch = batch_of(tiny, people[0] + people[1])
    assert torch.equal(remembered(model, memo, batch), logits_of(model, batch))
    assert memo.reason == CHANGED_PICTURES


@pytest.mark.parametrize("change", ["joined", "more"])
def test_it_steps_aside_where_features_cannot_be_told_apart(tiny, model, people, monkeypatch, change):
    core = type(model.get_base_model().model)
    plain = core.get_image_features

    def other(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(self, *args, **kwargs)
        if change == "joined":
            output.pooler_output = [torch.cat(output.pooler_output)]
        else:
            output["deepstack_features"] = output.pooler_output
        return output

    monkeypatch.setattr(core, "get_image_features", other)
    memo, batch = VisionMemo(model), batch_of(tiny, people[0] + people[1])
    assert torch.equal(remembered(model, memo, batch), logits_of(model, batch))
    assert memo.reason == "BaseModelOutputWithPooling of this family cannot be told apart by picture"
    assert torch.equal(remembered(model, memo, batch), logits_of(model, batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_reason_to_step_aside(tiny, people, dtype):
    model = adapted(tiny).to(dtype)
    memo = VisionMemo(model)
    for questions in (people[0], people[1] + people[2] + people[0], people[3] + people[0]):
        batch = batch_of(tiny, questions)
        for name in ("pixel_values", "attention_mask"):
            batch.inputs[name] = batch.inputs[name].to(dtype)
        remembered(model, memo, batch)
    assert memo.reason is None
