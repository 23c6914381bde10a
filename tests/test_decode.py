"""Decoding a batch behind shared images says, token for token, what each family's own `generate` says to each."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from family_work import EXAMPLES, asked, each_m_rope, each_naive, each_shared
from transformers import AttentionInterface, GenerationMixin
from viker.data.example import Message
from viker.data.sources import open_source
from viker.models import behind, decodable, decode, room
from viker.models.decodable import cannot_share, reason_against
from viker.models.decode import Sequences, greedy
from viker.models.encode import collate
from viker.models.load import load, load_model, resolve
from viker.models.lora import add_lora

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.models.encode import Encoded
    from viker.models.load import Loaded

NEW_TOKENS = 12


def spoken(text: str) -> Any:
    return dataclasses.replace(EXAMPLES[1], id=text, images=(), messages=(Message("user", text),))


# Four questions of one picture, others of other sizes, one of two pictures, and two without; no neighbors share any.
QUESTIONS = (
    EXAMPLES[1], spoken("Where is Lisbon?"), EXAMPLES[0], asked(1, question="And where now, in the picture?"),
    EXAMPLES[2], asked(1, question="Who?"), EXAMPLES[5], spoken("Yes?"), EXAMPLES[4],
    asked(1, question="Who is this person and where was this person born? Answer the person in the picture."),
)  # fmt: skip


def prompts(loaded: Loaded, examples: Sequence[Any] = QUESTIONS) -> list[Encoded]:
    return [loaded.encoder.encode_prompt(example) for example in examples]


@torch.inference_mode()
def alone(loaded: Loaded, row: Encoded, new_tokens: int, stop_ids: Sequence[int], model: Any = None) -> list[int]:
    """What the family's own `generate` says to a prompt that is asked by itself."""
    model = loaded.model if model is None else model
    inputs = collate([row], pad_id=loaded.encoder.pad_id, side="right")
    ids = model.generate(
        **inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=loaded.encoder.pad_id,
        eos_token_id=list(stop_ids),
    )  # fmt: skip
    return ids[0, len(row.input_ids) :].tolist()


def together(
    loaded: Loaded, rows: Sequence[Encoded], new_tokens: int, stop_ids: Sequence[int], model: Any = None
) -> list[list[int]]:
    model = loaded.model if model is None else model
    return greedy(model, rows, stop_ids=stop_ids, pad_id=loaded.encoder.pad_id, max_new_tokens=new_tokens)


def stops_of(replies: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that end some of these replies early, at different lengths, and leave others to the end."""
    return [replies[0][2], replies[3][6]]


@each_shared
def test_every_family_says_token_for_token_what_it_says_to_each_prompt_alone(family: Loaded) -> None:
    rows, never = prompts(family), [family.encoder.vocab_size - 1]
    expected = [alone(family, row, NEW_TOKENS, never) for row in rows]
    assert len(set(map(tuple, expected))) > len(rows) // 2  # else equal replies would prove nothing
    assert reason_against(family.model, rows, pad_id=family.encoder.pad_id) is None
    assert together(family, rows, NEW_TOKENS, never) == expected


@each_shared
def test_replies_that_end_early_leave_the_others_as_they_are(family: Loaded) -> None:
    rows = prompts(family)
    stops = stops_of([alone(family, row, NEW_TOKENS, [-1]) for row in rows])
    expected = [alone(family, row, NEW_TOKENS, stops) for row in rows]
    assert len(set(map(len, expected))) > 2
    assert together(family, rows, NEW_TOKENS, stops) == expected
    assert together(family, rows[::-1], NEW_TOKENS, stops) == expected[::-1]


@each_shared
def test_texts_alone_and_pictures_alone_make_batches_too(family: Loaded) -> None:
    for chosen in ([1, 7], [0, 3, 5, 9], [6, 6]):
        rows = prompts(family, [QUESTIONS[index] for index in chosen])
        alone(family, prompts(family)[2], 1, [-1])  # an image that ran before changes no position of what comes
        assert together(family, rows, 4, [-1]) == [alone(family, row, 4, [-1]) for row in rows]


@each_m_rope
def test_positions_by_count_would_be_seen(family: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = prompts(family)
    expected = together(family, rows, NEW_TOKENS, [-1])
    monkeypatch.setattr(behind, "rope_index_of", lambda model: None)
    assert together(family, rows, NEW_TOKENS, [-1]) != expected
    monkeypatch.setattr(decodable, "_checked", type(decodable._checked)())
    assert "differ from a plain pass" in str(reason_against(family.model, rows, pad_id=family.encoder.pad_id))


@each_naive
def test_families_that_cannot_share_an_image_are_refused(family: Loaded) -> None:
    assert "expected" in str(cannot_share(family.model))
    assert reason_against(family.model, prompts(family)[:1], pad_id=0) == cannot_share(family.model)


@each_shared
def test_a_lora_adapter_is_heard(family: Loaded) -> None:
    torch.manual_seed(0)
    model = add_lora(copy.deepcopy(family.model), rank=2, alpha=4, dropout=0.0, base=family.checkpoint.weights)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.eval()
    rows = prompts(family)[:4]
    assert reason_against(model, rows, pad_id=family.encoder.pad_id) is None
    found = together(family, rows, 6, [-1], model)
    assert found == [alone(family, row, 6, [-1], model) for row in rows]
    assert found != together(family, rows, 6, [-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@each_shared
def test_half_precision_is_close_enough_to_be_believed(family: Loaded, dtype: str) -> None:
    half = load_model(family.checkpoint, dtype=dtype)
    rows = prompts(family)
    assert reason_against(half, rows, pad_id=family.encoder.pad_id) is None
    assert all(len(reply) == 3 for reply in together(family, rows, 3, [-1], half))


def counted(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[tuple[int, int]]]:
    """Pictures that each pass through the vision tower is shown, and sizes of what the text model reads."""
    shown: list[int] = []
    read: list[tuple[int, int]] = []
    core = loaded.model.model
    features, forward = core.get_image_features, core.language_model.forward

    def seeing(*args: Any, **kwargs: Any) -> Any:
        shown.append(len(kwargs.get("pixel_values", args[0] if args else ())))
        return features(*args, **kwargs)

    def reading(*args: Any, **kwargs: Any) -> Any:
        read.append(tuple(kwargs["inputs_embeds"].shape[:2]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(core, "get_image_features", seeing)
    monkeypatch.setattr(core.language_model, "forward", reading)
    return shown, read


def test_a_picture_runs_once_and_ended_replies_leave(tiny: Loaded, mini_world: Path, monkeypatch: Any) -> None:
    examples = [e for e in open_source(str(mini_world)).read("forget") if e.task == "generation" and e.images]
    rows = prompts(tiny, examples)
    people = {example.people for example in examples}
    assert len(people) > 1 < len(rows) // len(people)
    stops = stops_of([alone(tiny, row, NEW_TOKENS, [-1]) for row in rows])
    shown, read = counted(tiny, monkeypatch)
    replies = together(tiny, rows, NEW_TOKENS, stops)
    assert shown == [len(people)]
    behind = sum(len(row.input_ids) - row.image_end - 1 for row in rows)
    assert read[:2] == [(len(people), rows[0].image_end), (1, read[1][1])], "what follows pictures runs as one sequence"
    assert read[1][1] < behind, "questions that begin alike share tokens, and none is padding"
    going = [sum(len(reply) > step for reply in replies) for step in range(NEW_TOKENS)]
    assert read[2:] == [(count, 1) for count in going if count]
    assert going[0] == len(rows) > going[-1]


def test_however_few_tokens_run_at_once_the_replies_are_the_same(tiny: Loaded, monkeypatch: Any) -> None:
    rows = prompts(tiny)
    expected = together(tiny, rows, NEW_TOKENS, [-1])
    for at_once in (1, 60, 120):
        monkeypatch.setattr(behind, "_TOKENS_ON_CPU", at_once)
        assert together(tiny, rows, NEW_TOKENS, [-1]) == expected


@pytest.mark.parametrize("to_spare", [1, 5])
def test_room_that_grows_on_the_way_changes_no_reply(tiny: Loaded, monkeypatch: Any, to_spare: int) -> None:
    rows = prompts(tiny)
    expected = [alone(tiny, row, NEW_TOKENS, [-1]) for row in rows]
    stops = stops_of(expected)
    ended = [alone(tiny, row, NEW_TOKENS, stops) for row in rows]
    monkeypatch.setattr(room, "COLUMNS_TO_SPARE", to_spare)
    grown: list[int] = []
    wider = room._wider
    monkeypatch.setattr(room, "_wider", lambda whole, *rest: grown.append(whole.dim()) or wider(whole, *rest))
    assert together(tiny, rows, NEW_TOKENS, [-1]) == expected
    assert together(tiny, rows, NEW_TOKENS, stops) == ended
    assert len(grown) > 2 * (2 * 4 + 1), "keys and values of four layers, and the mask, more than once"


@each_shared
def test_two_products_attend_as_the_fused_kernel_does(family: Loaded, monkeypatch: Any) -> None:
    rows = prompts(family)
    names: list[str] = []
    attend = room._attend

    def seeing(module: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(module.config._attn_implementation)
        return attend(module, *args, **kwargs)

    AttentionInterface.register(room.NAME, seeing)
    try:
        ours = Sequences(family.model, rows, pad_id=family.encoder.pad_id).logits_NV
    finally:
        AttentionInterface.register(room.NAME, attend)
    assert set(names) == {room.NAME}
    assert family.model.config.get_text_config()._attn_implementation == "sdpa", "as it was before"
    monkeypatch.setattr(decode, "attending_alone", lambda _model: contextlib.nullcontext())
    theirs = Sequences(family.model, rows, pad_id=family.encoder.pad_id).logits_NV
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


def test_parts_hold_so_many_tokens_what_is_alike_once_or_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = [behind.Placed(index, (5,) * length, 6, index) for index, length in enumerate([3, 4, 5, 9, 1])]
    alike = [behind.Placed(0, (5,) * length, 6, index) for index, length in enumerate([3, 4, 5, 9, 10])]
    for placed, cases in (
        (apart, ((1, [0, 1, 2, 3, 4]), (8, [0, 2, 3, 4]), (10, [0, 2, 3]), (22, [0]))),
        (alike, ((1, [0, 1, 2, 3, 4]), (4, [0, 2, 3, 4]), (5, [0, 3, 4]), (10, [0]))),
    ):
        for at_once, starts in cases:
            monkeypatch.setattr(behind, "_TOKENS_ON_CPU", at_once)
            found = list(behind.parts(placed, torch.device("cpu")))
            assert [part.start for part in found] == starts
            assert [one.row for part in found for one in placed[part]] == [0, 1, 2, 3, 4]


def test_a_question_that_is_asked_twice_is_answered_twice(tiny: Loaded) -> None:
    rows = prompts(tiny)[:3]
    replies = together(tiny, [*rows, rows[0], rows[2], rows[0]], 6, [-1])
    assert replies[:3] == together(tiny, rows, 6, [-1])
    assert replies[3:] == [replies[0], replies[2], replies[0]]


def test_the_last_layer_is_left_once_it_has_made_its_keys_and_values(tiny: Loaded) -> None:
    layers = tiny.model.model.language_model.layers
    ran: list[tuple[int, int]] = []
    hooks = [
        layer.mlp.register_forward_hook(
            lambda _module, inputs, _output, index=index: ran.append((index, inputs[0].shape[1]))
        )
        for index, layer in enumerate(layers)
    ]
    together(tiny, prompts(tiny)[:4], 1, [-1])
    for hook in hooks:
        hook.remove()
    last = len(layers) - 1
    assert [length for index, length in ran if index == last] == [1]
    assert len([length for index, length in ran if index == 0]) == 3


@pytest.mark.parametrize("going", [[], [True], [False], [True] * 4, [False, True, False, True, True], [False] * 3])
def test_those_from_the_end_fill_what_is_free(going: list[bool]) -> None:
    places = decode._closed_up(going)
    assert sorted(places) == [place for place, goes in enumerate(going) if goes]
    assert all(old == new or (new < len(places) <= old) for new, old in enumerate(places))


SETTINGS = {
    "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "suppress_tokens": [5], "begin_suppress_tokens": [5],
    "min_new_tokens": 3, "bad_words_ids": [[5]], "stop_strings": ["a"], "forced_eos_token_id": 0,
    "sequence_bias": [[[5], 2.0]], "penalty_alpha": 0.6, "max_time": 1.0, "some_setting_of_tomorrow": 1,
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_change_what_is_likeliest_are_never_ignored(tiny: Loaded, setting: str, trainable: Any) -> None:
    rows = prompts(tiny)
    setattr(trainable.generation_config, setting, SETTINGS[setting])
    assert setting in str(reason_against(trainable, rows, pad_id=0))


def test_settings_of_sampling_and_neutral_ones_are_let_through(tiny: Loaded, trainable: Any) -> None:
    settings = {
        "do_sample": True, "temperature": 0.1, "top_p": 0.5, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
        "min_length": 0, "output_scores": True, "remove_invalid_values": False,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(trainable.generation_config, name, value)
    assert reason_against(trainable, prompts(tiny), pad_id=tiny.encoder.pad_id) is None


def test_a_model_with_its_own_generate_is_left_to_it(
    tiny: Loaded, trainable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(trainable), "generate", lambda self, **_: None)
    assert "has its own way to generate" in str(reason_against(trainable, prompts(tiny), pad_id=0))
    monkeypatch.undo()
    assert type(trainable).generate is GenerationMixin.generate
    assert reason_against(trainable, prompts(tiny), pad_id=tiny.encoder.pad_id) is None


def test_other_attention_is_refused(tiny: Loaded, tiny_model_dir: Path) -> None:
    eager = load(resolve(str(tiny_model_dir)), attention="eager")
    assert reason_against(eager.model, prompts(tiny), pad_id=0) == "expected attention sdpa, found eager"


def test_a_family_whose_image_sees_the_question_is_found_out(tiny: Loaded, trainable: Any) -> None:
    """A text model without causality, as PaliGemma's prompts have it, passes every look at its configuration."""
    forward = trainable.model.language_model.forward

    def both_ways(*args: Any, **kwargs: Any) -> Any:
        mask, states = kwargs.get("attention_mask"), kwargs["inputs_embeds"]
        if mask is None or mask.dim() == 2:
            kwargs["attention_mask"] = states.new_zeros(states.shape[0], 1, states.shape[1], states.shape[1])
        return forward(*args, **kwargs)

    trainable.model.language_model.forward = both_ways
    rows = prompts(tiny)
    assert "differ from a plain pass" in str(reason_against(trainable, rows, pad_id=tiny.encoder.pad_id))


def test_a_model_that_cannot_be_run_so_is_found_out_and_asked_once(tiny: Loaded, trainable: Any) -> None:
    calls = []
    forward = trainable.model.language_model.forward

    def without_masks_of_pairs(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            calls.append(1)
            raise ValueError("no such mask here")
        return forward(*args, **kwargs)

    trainable.model.language_model.forward = without_masks_of_pairs
    for _ in range(2):
        assert "cannot be run so: no such mask" in str(reason_against(trainable, prompts(tiny), pad_id=0))
    assert len(calls) == 1


def test_memory_that_runs_out_in_the_check_is_not_a_reason(tiny: Loaded, trainable: Any) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    trainable.model.language_model.forward = full
    with pytest.raises(torch.OutOfMemoryError):
        reason_against(trainable, prompts(tiny), pad_id=0)


def test_a_diverged_model_is_no_reason_against_decoding(tiny: Loaded, trainable: Any) -> None:
    next(trainable.lm_head.parameters()).data.fill_(torch.nan)
    assert reason_against(trainable, prompts(tiny), pad_id=tiny.encoder.pad_id) is None


def test_a_prompt_that_ends_with_its_image_is_left_to_the_model(tiny: Loaded) -> None:
    row = prompts(tiny)[0]
    bare = dataclasses.replace(row, input_ids=row.input_ids[: row.image_end])
    assert "expected some tokens behind the last image of every prompt" in str(
        reason_against(tiny.model, [bare], pad_id=0)
    )


def test_a_step_is_the_distribution_of_the_whole_so_far(tiny: Loaded) -> None:
    """Logits, and not only what is likeliest, are those of the sequence run plainly, at every step."""
    rows = prompts(tiny)
    with torch.inference_mode():
        batch = Sequences(tiny.model, rows, pad_id=tiny.encoder.pad_id)
        said: list[list[int]] = [[] for _ in rows]
        for step in range(4):
            for place, index in enumerate(batch.rows):
                row = rows[index]
                inputs = collate([row], pad_id=0, side="right")
                ids = torch.tensor([[*row.input_ids, *said[index]]])
                whole = tiny.model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
                torch.testing.assert_close(batch.logits_NV[place], whole.logits[0, -1], atol=2e-3, rtol=1e-4)
            tokens_N = torch.arange(len(rows)) + 20 + step
            for index, token in zip(batch.rows, tokens_N.tolist(), strict=True):
                said[index].append(token)
            batch.advance(tokens_N)
