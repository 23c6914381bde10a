"""Every model family end to end on a tiny model of its own classes: tokens, the oracle, the shared-prefix engine.

The oracle is itself compared with the plainest thing there is, one sequence at a time through the processor's own
output. Golden ids (golden/family_FAMILY.json) change only with a family's template or the tokenizer's training: look at
the difference, then run `python tests/test_families.py` to write them anew.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from family_work import (
    EXAMPLES,
    NAIVE_ONLY,
    asked,
    each,
    each_but_mllama,
    each_m_rope,
    each_naive,
    each_shared,
    naive,
    own_inputs,
    own_rows,
    picture,
    several_turns,
    shared,
    variation,
    work_of,
    work_under,
    worst,
)
from tiny_families import FAMILIES, build
from viker.data.example import DataError, Example, Message
from viker.evaluate.generate import generate_replies
from viker.models import prefix
from viker.models.encode import answer_rows, collate
from viker.models.forward import answer_logits
from viker.models.interventions import Intervention
from viker.models.load import load, load_model, resolve
from viker.models.lora import add_lora, language_linears, vision_tower
from viker.models.pack import pack, pack_for
from viker.precompute.open_teacher import SELF_CHECK_VARIATION, open_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from viker.models.encode import Encoded
    from viker.models.load import Loaded
    from viker.models.pack import Packed

GOLDEN = Path(__file__).parent / "golden"
OTHER_KINDS = {
    "noise": Intervention(kind="noise", num_references=2, seed=0),
    "noise shared": Intervention(kind="noise", num_references=2, seed=0, shared=True, instruction="Be brief."),
    "prompt": Intervention(kind="prompt", instruction="Say nothing private."),
    "text": Intervention(kind="text"),
}


def golden(loaded: Loaded) -> dict[str, Any]:
    encoded = loaded.encoder.encode(several_turns())
    return {
        "schema": "viker/golden-encode/1",
        "prompt_ids": list(encoded.prompt_ids),
        "answer_ids": list(encoded.answer_ids),
        "input_ids": list(encoded.input_ids),
    }


def golden_path(family: str) -> Path:
    return GOLDEN / f"family_{family}.json"


@each
def test_golden_ids(family, request):
    path = golden_path(request.node.callspec.params["family"])
    assert golden(family) == json.loads(path.read_text())


@each
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_ids_are_those_of_the_familys_own_processor(family, example):
    encoded = family.encoder.encode(example)
    theirs = own_inputs(family, example)["input_ids"][0].tolist()
    ours = list(encoded.input_ids)
    if family.model_type == "llava_next":  # whose template writes five characters where an end token belongs
        assert ours.pop() == family.encoder.tokenizer.eos_token_id
    assert ours == theirs[: len(ours)]
    assert len(theirs) - len(ours) <= 5


@each
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_the_answer_is_where_the_text_says_it(family, example):
    encoded = family.encoder.encode(example)
    text = family.encoder.tokenizer.decode(encoded.answer_ids, skip_special_tokens=True)
    assert text.strip() == example.answer
    assert encoded.answer_ids[-1] in family.encoder.stop_ids


@each
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_tensors_are_those_of_the_familys_own_processor(family, example):
    encoded, theirs = family.encoder.encode(example), own_inputs(family, example)
    ours = collate([encoded], pad_id=family.encoder.pad_id, side="right")
    for name in ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask", "aspect_ratio_ids"):
        assert (name in ours) == (name in theirs)
        if name in ours:
            assert torch.equal(ours[name], theirs[name]), name
    for name in ("mm_token_type_ids", "token_type_ids", "cross_attention_mask"):
        if name in ours:
            assert torch.equal(ours[name], theirs[name][:, : len(encoded.input_ids)]), name


@each
def test_pixels_are_computed_in_pil_whatever_else_is_installed(family):
    assert type(family.encoder.processor.image_processor).__name__.endswith("Pil")


@each
def test_the_oracle_is_one_plain_pass_a_sequence(family):
    found = naive(family, work_of(family, EXAMPLES, None))
    assert worst(found, [own_rows(family, example) for example in EXAMPLES]) < 1e-5


@each
def test_pictures_of_several_sizes_go_into_one_batch(family):
    images = [picture(index) for index in range(4)]
    for example in (EXAMPLES[1], EXAMPLES[5]):
        (together,) = naive(family, work_of(family, [example], images))
        apart = [naive(family, work_of(family, [example], [image]))[0] for image in images]
        assert variation(together, sum(apart) / 4) < 1e-5


@each_but_mllama  # whose tokens that see no image take the mean of all that the batch holds
@torch.inference_mode()
def test_texts_and_pictures_go_into_one_batch(family):
    text = dataclasses.replace(EXAMPLES[1], images=(), messages=(Message("user", "Where is Lisbon?"),))
    rows = [family.encoder.encode(example) for example in (text, EXAMPLES[0], EXAMPLES[5])]
    assert worst(batch_of(family, rows), [row for one in rows for row in batch_of(family, [one])]) < 1e-5


def batch_of(loaded: Loaded, rows: Sequence[Encoded]) -> list[torch.Tensor]:
    batch_M, position_M, _ = answer_rows(rows)
    inputs = collate(rows, pad_id=loaded.encoder.pad_id, side="right")
    probabilities = answer_logits(loaded.model, inputs, batch_M, position_M).softmax(-1)
    return list(probabilities.split([len(row.answer_ids) for row in rows]))


@each
def test_images_move_these_models(family):
    first, second = (naive(family, work_of(family, [EXAMPLES[1]], [picture(index)])) for index in (0, 1))
    assert worst(first, second) > 0.05  # else equal rows would prove nothing about images


@each_shared
def test_own_images_agree_with_the_oracle(family):
    work = work_of(family, EXAMPLES, None)
    assert worst(shared(family, work), naive(family, work)) < 1e-5


@each_shared
def test_references_agree_with_the_oracle(family):
    work = work_of(family, EXAMPLES, [picture(index) for index in range(4)])
    assert worst(shared(family, work), naive(family, work)) < 1e-5


@each_shared
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_agree_with_the_oracle(family, kind):
    work = work_under(family, EXAMPLES, OTHER_KINDS[kind])
    rows = naive(family, work)
    assert worst(rows, naive(family, work_of(family, EXAMPLES, None))) > 0.02
    assert worst(shared(family, work), rows) < 1e-5


@each
def test_noise_is_in_place_of_pixels_alone(family):
    work = work_under(family, EXAMPLES, OTHER_KINDS["noise"])
    for item, example in zip(work, EXAMPLES, strict=True):
        own = family.encoder.encode(example)
        for shown in item.shown:
            assert (shown.input_ids, shown.token_inputs.keys()) == (own.input_ids, own.token_inputs.keys())
            ours, theirs = (collate([one], pad_id=0, side="right") for one in (shown, own))
            changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
            assert changed == {name for name in theirs if theirs[name].is_floating_point()} == {"pixel_values"}
            assert ours["pixel_values"].shape == theirs["pixel_values"].shape
    assert all(rows.isfinite().all() for rows in naive(family, work))


@each_shared
def test_texts_agree_with_the_oracle_after_images_ran(family):
    text = dataclasses.replace(EXAMPLES[1], images=(), messages=(Message("user", "Where is Lisbon?"),))
    work = work_of(family, [text, EXAMPLES[5]], None)
    naive(family, work_of(family, [EXAMPLES[0]], None))
    assert worst(shared(family, work), naive(family, work)) < 1e-5


@each_shared
def test_a_prefix_takes_the_bytes_foretold(family):
    encoded = family.encoder.encode(EXAMPLES[1])
    found = prefix.compute_prefix(family.model, prefix.split_at_image(encoded)[0], encoded)
    assert found.num_bytes == prefix.prefix_bytes(family.model, found.length)


@each
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_teachers_run_in_half_precision(family, dtype):
    half = dataclasses.replace(family, model=load_model(family.checkpoint, dtype=dtype))
    work = work_of(family, EXAMPLES[:3], [picture(0), picture(1)])
    rows = naive(half, work)
    assert 0 < worst(rows, naive(family, work)) < SELF_CHECK_VARIATION[dtype]
    if family.model_type not in NAIVE_ONLY:
        assert worst(shared(half, work), rows) < SELF_CHECK_VARIATION[dtype]


@each_m_rope
def test_positions_by_count_would_be_seen(family, monkeypatch):
    work = work_of(family, EXAMPLES, None)
    monkeypatch.setattr(prefix, "position_shift", lambda model: 0)
    assert worst(shared(family, work), naive(family, work)) > 0.02


@each_shared
def test_a_prefix_ends_with_its_image(family):
    for example in EXAMPLES:
        encoded = family.encoder.encode(example)
        before, behind = prefix.split_at_image(encoded)
        assert before[-len(encoded.pictures[-1].ids) :] == encoded.pictures[-1].ids
        assert family.encoder.image_id not in behind


QUESTIONS = (EXAMPLES[1], EXAMPLES[3], asked(1, "Lisbon", "And where?"), EXAMPLES[2], EXAMPLES[5])


@torch.inference_mode()
def packed_rows(loaded: Loaded, rows: Sequence[Encoded], batch: Packed) -> list[torch.Tensor]:
    probabilities = answer_logits(loaded.model, batch.inputs, batch.batch_M, batch.position_M).softmax(-1)
    return list(probabilities.split([len(row.answer_ids) for row in rows]))


@each_shared
@pytest.mark.parametrize("group_size", [1, 4])
def test_questions_packed_behind_one_image_are_those_asked_apart(family, group_size):
    rows = [family.encoder.encode(example) for example in QUESTIONS]
    batch = pack_for(family.model, rows, pad_id=family.encoder.pad_id, group_size=group_size)
    assert len(batch.inputs["input_ids"]) <= (5 if group_size == 1 else 3)
    assert worst(packed_rows(family, rows, batch), [own_rows(family, example) for example in QUESTIONS]) < 1e-5


@each_m_rope
def test_packing_by_count_would_be_seen(family):
    rows = [family.encoder.encode(example) for example in QUESTIONS]
    batch = pack(rows, pad_id=family.encoder.pad_id, group_size=4)
    assert worst(packed_rows(family, rows, batch), [own_rows(family, example) for example in QUESTIONS]) > 0.02


@each_naive
def test_a_family_that_cannot_share_an_image_trains_on_one_question_a_sequence(family):
    rows = [family.encoder.encode(example) for example in QUESTIONS[:4]]
    batch = pack_for(family.model, rows, pad_id=family.encoder.pad_id, group_size=1)
    assert worst(packed_rows(family, rows, batch), [own_rows(family, example) for example in QUESTIONS[:4]]) < 1e-5
    with pytest.raises(DataError, match=r"one image for 4 questions: expected .*--group-size 1"):
        pack_for(family.model, rows, pad_id=family.encoder.pad_id, group_size=4)


def assert_replies_do_not_depend_on_the_batch(loaded: Loaded, examples: Sequence[Example]) -> None:
    together = generate_replies(loaded.model, loaded.encoder, examples, max_new_tokens=8, batch_size=len(examples))
    assert together == generate_replies(loaded.model, loaded.encoder, examples, max_new_tokens=8, batch_size=1)
    assert len(set(together)) == len(examples)


@each
def test_replies_do_not_depend_on_the_batch(family):
    assert_replies_do_not_depend_on_the_batch(family, EXAMPLES[:3])


@each_but_mllama
def test_replies_do_not_depend_on_other_numbers_of_pictures(family):
    assert_replies_do_not_depend_on_the_batch(family, (EXAMPLES[1], EXAMPLES[5]))


@each
def test_lora_adapts_the_text_model_alone(family):
    found = language_linears(family.model)
    inside = {id(module) for module in family.model.get_decoder().modules()}
    seeing = {id(module) for module in vision_tower(family.model).modules()}
    assert len(found) >= 7 * 3
    assert all(id(family.model.get_submodule(name)) in inside for name in found)
    assert len(seeing) > 20
    assert not seeing & inside


@each_shared
def test_a_teacher_with_an_adapter_keeps_the_fast_engine(family):
    torch.manual_seed(0)
    model = add_lora(copy.deepcopy(family.model), rank=2, alpha=4, dropout=0.0, base=family.checkpoint.weights)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    adapted = dataclasses.replace(family, model=model.eval())
    work = work_of(family, EXAMPLES, [picture(0), picture(1)])
    assert worst(naive(adapted, work), naive(family, work)) > 0.02
    assert worst(shared(adapted, work), naive(adapted, work)) < 1e-5


def open_quietly(loaded: Loaded, example: Example, said: list[str]) -> Any:
    options = {
        "dtype": "float32", "attention": "sdpa", "trust_remote_code": False, "engine": "shared-prefix",
        "token_budget": 128, "quantization": None,
    }  # fmt: skip
    first = work_of(loaded, [example], [picture(0)])[0]
    return open_teacher(options, loaded.checkpoint, loaded.encoder, first, "cpu", said.append)


@each_shared
def test_the_self_check_keeps_the_fast_engine(family):
    said: list[str] = []
    assert open_quietly(family, EXAMPLES[1], said).engine == "shared-prefix"
    assert said == []


@each_naive
def test_a_family_that_cannot_share_an_image_falls_back_loudly(family):
    said: list[str] = []
    teacher = open_quietly(family, EXAMPLES[1], said)
    assert teacher.engine == "naive"
    assert len(said) == 1
    assert "WARNING: the shared-prefix engine cannot run this model (expected" in said[0]
    work = work_of(family, EXAMPLES, [picture(0), picture(1)])
    assert worst([rows.mean_MV for rows in teacher.rows_of(work)], naive(family, work)) == 0


if __name__ == "__main__":
    for name in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            build(name, Path(folder))
            golden_path(name).write_text(json.dumps(golden(load(resolve(folder)))) + "\n")
