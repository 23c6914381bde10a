"""What each kind of teacher is shown, what names its rows, and that engines and commands treat all kinds alike."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from command_line import call, succeed
from viker.data.artefact import read_json
from viker.data.example import DataError, EncodedImage, Message, canonical_json
from viker.data.instructions import PRIVACY_INSTRUCTION, instruction_digest, instruction_for, recorded_instruction
from viker.data.kinds import ANSWERS, KINDS, rows_name
from viker.data.portraits import encode_png
from viker.data.references import make_pool, read_pool
from viker.data.refusals import REFUSALS, refusal_for, refuse
from viker.models.encode import Encoder
from viker.models.expand import Picture
from viker.models.identity import teacher_identity
from viker.models.interventions import (
    Answers,
    Intervention,
    Kind,
    encode_view,
    intervention_identity,
    pixels_digest,
    require_images,
    teacher_prompt,
)
from viker.models.noise import Noise, layout_digest
from viker.models.render import Rendering
from viker.precompute.cache import TeacherCache, compare, row_key
from viker.precompute.engines import shared_prefix
from viker.precompute.engines.naive import naive_rows
from viker.precompute.engines.shared_prefix import SharedPrefixEngine
from viker.precompute.extend import as_made
from viker.precompute.run import make_request, pending_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.data.references import Pool
    from viker.models.load import Loaded
    from viker.precompute.engines.rows import Pending
    from viker.precompute.run import Request

HUSH = "Say nothing private."


@pytest.fixture(scope="module")
def pool(mini_world: Path) -> Pool:
    return make_pool("small", read_pool(min((mini_world / "pools").iterdir())).images[:6])


@pytest.fixture(scope="module")
def interventions(pool: Pool) -> dict[str, Intervention]:
    """One of each kind, and the ways in which they vary."""
    return {
        "reference": Intervention(kind="reference", pool=pool, num_references=3, seed=0),
        "self": Intervention(kind="self"),
        "noise": Intervention(kind="noise", num_references=3, seed=0),
        "noise shared": Intervention(kind="noise", num_references=2, seed=0, shared=True),
        "noise instructed": Intervention(kind="noise", seed=0, instruction=HUSH),
        "prompt": Intervention(kind="prompt", instruction=HUSH),
        "text": Intervention(kind="text"),
        "self refusing": Intervention(kind="self", answers="refusal"),
        "text refusing": Intervention(kind="text", answers="refusal"),
    }


@pytest.fixture(scope="module")
def examples(training_examples: tuple[Example, ...]) -> list[Example]:
    """Five examples of three people, one of them with two pictures and one asked in a second turn."""
    first, second, third, fourth, fifth = (training_examples[index] for index in (0, 1, 14, 30, 41))
    turn = Message("user", f"<image> and <image>\n{third.question}")
    two = dataclasses.replace(third, images=(*third.images, *first.images), messages=(turn,))
    talk = (*fourth.messages, Message("assistant", "In a town."), Message("user", "Which one?"))
    return [first, second, two, dataclasses.replace(fourth, messages=talk), fifth]


def asked(tiny: Loaded, examples: Sequence[Example], intervention: Intervention) -> Request:
    identity = teacher_identity(tiny.checkpoint, tiny.encoder)
    options: dict[str, Any] = {"top_k": 4, "teacher_dtype": "float32", "logprob_dtype": "float16"}
    return make_request(tiny.encoder, examples, intervention, identity, **options)


def pending(tiny: Loaded, examples: Sequence[Example], intervention: Intervention) -> list[Pending]:
    works = asked(tiny, examples, intervention).by_row_key.values()
    return [pending_of(work, intervention, tiny.encoder) for work in works]


def rows_of(tiny: Loaded, work: Sequence[Pending]) -> list[torch.Tensor]:
    return [found.mean_MV for found in naive_rows(tiny.model, work, tiny.encoder.pad_id)]


def pixels_of(work: Pending, index: int = 0) -> torch.Tensor:
    return work.shown[index].pictures[0].tensors["pixel_values"]


def repainted(example: Example, size: tuple[int, int] | None = None) -> Example:
    """The same example about a gray picture, of the same size or another."""
    from viker.models.pictures import decode

    picture = decode(example.images[0])
    gray = picture.resize(size or picture.size).point(lambda _: 128)
    return dataclasses.replace(example, images=(EncodedImage(encode_png(gray), "gray"),))


def user(content: str) -> tuple[Message, ...]:
    return (Message("user", content),)


# ---- What a fingerprint says -----------------------------------------------------------------------------------------


def test_kinds_that_caches_exist_of_keep_their_bytes(pool):
    reference = Intervention(kind="reference", pool=pool, num_references=3, seed=7)
    assert canonical_json(reference.identity()).decode() == (
        '{"draw":{"num_references":3,"policy":"per-example","seed":7},'
        '"intervention":{"answers":"own","kind":"reference"},"pool":"' + pool.digest + '"}'
    )
    assert canonical_json(Intervention(kind="self", num_references=8, seed=3).identity()).decode() == (
        '{"draw":{"num_references":0,"policy":"none","seed":0},'
        '"intervention":{"answers":"own","kind":"self"},"pool":null}'
    )


def test_new_kinds_say_their_parameters(interventions):
    digest = instruction_digest(HUSH)
    assert interventions["noise"].identity() == {
        "intervention": {"kind": "noise", "answers": "own", "instruction": None},
        "draw": {"policy": "per-example", "seed": 0, "num_references": 3},
        "pool": None,
    }
    assert interventions["noise shared"].identity()["draw"]["policy"] == "shared"
    nothing = {"policy": "none", "seed": 0, "num_references": 0}
    told = {"kind": "prompt", "answers": "own", "instruction": digest}
    assert interventions["prompt"].identity() == {"intervention": told, "draw": nothing, "pool": None}
    told = {"kind": "text", "answers": "own"}
    assert interventions["text"].identity() == {"intervention": told, "draw": nothing, "pool": None}
    told = {"kind": "self", "answers": "refusal"}
    assert interventions["self refusing"].identity() == {"intervention": told, "draw": nothing, "pool": None}
    assert intervention_identity("noise", "own", HUSH)["instruction"] == digest


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("noise", {"seed": 1}),
        ("noise", {"num_references": 2}),
        ("noise", {"shared": True}),
        ("noise", {"instruction": HUSH}),
        ("prompt", {"instruction": "Hush."}),
        ("self", {"answers": "refusal"}),
        ("text", {"answers": "refusal"}),
    ],
)
def test_every_parameter_is_part_of_the_key(tiny, examples, interventions, name, change):
    changed = dataclasses.replace(interventions[name], **change)
    assert asked(tiny, examples, changed).key != asked(tiny, examples, interventions[name]).key


@pytest.mark.parametrize(
    "ours",
    [
        {"kind": "prompt", "answers": "own", "instruction": instruction_digest("Hush.")},
        {"kind": "prompt", "answers": "own"},
        {"kind": "prompt", "answers": "refusal", "instruction": instruction_digest(HUSH)},
        {"kind": "self", "answers": "own"},
    ],
)
def test_rows_of_another_instruction_or_of_other_answers_never_serve(tiny, examples, interventions, ours):
    cached = asked(tiny, examples, interventions["prompt"]).fingerprint
    assert compare(cached, cached, ()).mismatches == {}
    fields = compare(cached, {**cached, "intervention": ours}, ()).mismatches.keys()
    assert fields
    assert all(field.startswith("intervention.") for field in fields)


def test_the_words_of_commands_are_those_of_the_code():
    assert get_args(Kind) == KINDS == ("reference", "self", "noise", "prompt", "text")
    assert get_args(Answers) == ANSWERS
    assert rows_name("self", "forget", "own", 64) == "self-forget"
    assert rows_name("self", "forget", "own", 0) == "self-forget-scalars"
    assert rows_name("self", "forget", "refusal", 0) == "self-forget-refusal-scalars"


def test_an_intervention_without_what_it_is_made_of_is_a_mistake_of_ours(pool):
    for wrong in ({"kind": "reference"}, {"kind": "noise", "pool": pool}, {"kind": "prompt"},
                  {"kind": "self", "instruction": HUSH}):  # fmt: skip
        with pytest.raises(AssertionError):
            Intervention(**wrong)


# ---- What names a row ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reference", "self", "noise", "noise instructed", "prompt", "text"])
def test_rows_are_named_by_the_examples_own_prompt_and_by_its_picture_where_it_is_shown(
    tiny, training_examples, interventions, name
):
    example, intervention = training_examples[0], interventions[name]
    (work,) = asked(tiny, [example], intervention).works
    prompt_ids, answer_ids = tiny.encoder.ids(example)
    assert (work.prompt_ids, work.answer_ids) == (prompt_ids, answer_ids)
    assert work.row_key == row_key(prompt_ids, answer_ids, pixels_digest(example, intervention.kind))
    (other,) = asked(tiny, [repainted(example)], intervention).works
    assert (other.row_key != work.row_key) == (intervention.kind in ("self", "prompt"))


def test_noise_takes_the_shape_of_a_picture_so_its_size_names_the_row(tiny, training_examples, interventions):
    example = training_examples[0]
    one, other = (asked(tiny, [repainted(example, size)], interventions["noise"]).key for size in ((40, 40), (40, 20)))
    assert one != other
    assert asked(tiny, [repainted(example, (40, 40))], interventions["noise"]).key == one


def test_refusals_have_rows_of_their_own(tiny, training_examples, interventions):
    example = training_examples[0]
    (work,) = asked(tiny, [example], interventions["self refusing"]).works
    refused = refuse(example)
    prompt_ids, answer_ids = tiny.encoder.ids(refused)
    assert work.example == refused
    assert work.row_key == row_key(prompt_ids, answer_ids, pixels_digest(example, "self"))
    assert prompt_ids == tiny.encoder.ids(example)[0]


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_refusals_are_many_short_and_different():
    assert len(set(REFUSALS)) == len(REFUSALS) == 40
    assert all(text.isascii() and text.endswith(".") and len(text) < 80 for text in REFUSALS)


def test_a_refusal_is_a_function_of_people_and_messages(training_examples):
    example = training_examples[0]
    refused = refuse(example)
    assert (refused.id, refused.answer) == (f"{example.id}/refusal", refusal_for(example))
    assert (refused.people, refused.images, refused.messages) == (example.people, example.images, example.messages)
    alike = dataclasses.replace(repainted(example), id="other", answer="Something else.")
    assert refusal_for(alike) == refusal_for(example)
    people = {refusal_for(dataclasses.replace(example, people=(f"{index:03}",))) for index in range(400)}
    questions = {refusal_for(dataclasses.replace(example, messages=user(f"<image>\n{n}?"))) for n in range(400)}
    assert people == questions == set(REFUSALS)


# ---- The prompt a teacher reads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<image>\nWho is it?", f"<image>\n{HUSH}\nWho is it?"),
        ("<image><image>\nWho are they?", f"<image><image>\n{HUSH}\nWho are they?"),
        ("<image> and <image>\nWho?", f"<image> {HUSH}\nand <image>\nWho?"),
        ("Who is it? <image>", f"{HUSH}\nWho is it? <image>"),
        ("Who is Ada?", f"{HUSH}\nWho is Ada?"),
    ],
)
def test_an_instruction_is_read_before_the_question_and_after_the_image_that_leads_it(
    training_examples, interventions, content, expected
):
    images = training_examples[0].images * content.count("<image>")
    example = dataclasses.replace(training_examples[0], images=images, messages=user(content))
    for name in ("prompt", "noise instructed"):
        shown = interventions[name].asked(example)
        assert shown.messages == user(expected)
        assert (shown.images, shown.answer) == (images, example.answer)
    assert interventions["noise"].asked(example) is example


def test_an_instruction_belongs_to_the_last_turn(interventions, examples):
    *earlier, last = interventions["prompt"].asked(examples[3]).messages
    assert tuple(earlier) == examples[3].messages[:-1]
    assert last == Message("user", f"{HUSH}\nWhich one?")


def test_text_has_no_image_in_any_turn(interventions, examples):
    shown = interventions["text"].asked(examples[3])
    assert shown.images == ()
    first, *rest = examples[3].messages
    assert shown.messages == (Message("user", first.content.removeprefix("<image>\n")), *rest)
    without = dataclasses.replace(examples[0], images=(), messages=user("  Who is Ada?"))
    assert interventions["text"].asked(without) is without


def test_an_answer_that_reads_otherwise_behind_the_teachers_prompt_is_refused(tiny, training_examples, interventions):
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if 'private' in messages[0].content | string %}So {% endif %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}"
        "{% else %}{% for part in m.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}:"
        "{% endif %}{% endfor %}"
    )
    rendering = Rendering(template="chat", chat_template=template, score_end_token=False)
    encoder = Encoder(
        tiny.encoder.processor, rendering, context_length=999, vocab_size=tiny.encoder.vocab_size,
        where=tiny.checkpoint.processor,
    )  # fmt: skip
    example = dataclasses.replace(training_examples[0], answer="Lisbon")
    prompt_ids, answer_ids = encoder.ids(example)
    with pytest.raises(DataError, match=rf"{example.id}: expected the same answer tokens under --teacher prompt"):
        teacher_prompt(interventions["prompt"], encoder, example, prompt_ids, answer_ids)
    harmless = dataclasses.replace(interventions["prompt"], instruction="Hush.")
    assert teacher_prompt(harmless, encoder, example, prompt_ids, answer_ids) != prompt_ids
    assert teacher_prompt(interventions["self"], encoder, example, prompt_ids, answer_ids) == prompt_ids


# ---- Noise -----------------------------------------------------------------------------------------------------------


def test_noise_is_uniform_in_the_shape_of_the_pixels_and_never_of_them(tiny, training_examples, interventions):
    example, intervention = training_examples[0], interventions["noise"]
    own = pixels_of(pending(tiny, [example], interventions["self"])[0])
    work = pending(tiny, [example], intervention)[0]
    noise = pixels_of(work)
    assert (noise.shape, noise.dtype) == (own.shape, own.dtype)
    assert 0 <= noise.min() < 0.01 < 0.99 < noise.max() < 1
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.var() == pytest.approx(1 / 12, abs=0.01)
    assert torch.equal(noise, pixels_of(work)), "drawn anew, the same"
    assert torch.equal(noise, pixels_of(pending(tiny, [repainted(example)], intervention)[0]))
    assert work.shown[0].input_ids == tiny.encoder.encode(example).input_ids
    assert work.images == [], "no engine is handed the picture"


def test_noise_is_a_function_of_seed_row_key_and_draw(tiny, training_examples, interventions):
    first, second = training_examples[:2]
    assert tiny.encoder.ids(first) != tiny.encoder.ids(second)
    one, two = pending(tiny, [first, second], interventions["noise"])
    (reseeded,) = pending(tiny, [first], dataclasses.replace(interventions["noise"], seed=1))
    noises = [pixels_of(work, index) for work in (one, two, reseeded) for index in range(3)]
    assert len({noise.numpy().tobytes() for noise in noises}) == 9
    assert len({digest for work in (one, two, reseeded) for digest in work.image_digests}) == 9
    (again,) = pending(tiny, [first], interventions["noise"])
    assert again.image_digests == one.image_digests
    assert torch.equal(pixels_of(again, 2), pixels_of(one, 2))


def test_shared_noise_is_the_same_for_everybody_draw_by_draw(tiny, examples, interventions):
    work = pending(tiny, examples, interventions["noise shared"])
    assert {item.image_digests[0][0] for item in work} == {work[0].image_digests[0][0]}
    assert all(torch.equal(pixels_of(item, 1), pixels_of(work[0], 1)) for item in work)
    assert not torch.equal(pixels_of(work[0], 0), pixels_of(work[0], 1))


def test_two_pictures_of_an_example_are_two_noises(tiny, examples, interventions):
    for name in ("noise", "noise shared"):
        (work,) = pending(tiny, [examples[2]], interventions[name])
        first, second = work.shown[0].pictures
        assert not torch.equal(first.tensors["pixel_values"], second.tensors["pixel_values"])
        assert len(set(work.image_digests[0])) == 2


def test_noise_keeps_sizes_and_masks_and_tells_them_apart():
    def picture(grid: list[int], fill: float = 0.0) -> Picture:
        return Picture({"pixel_values": torch.full((8, 3), fill), "image_grid_thw": torch.tensor([grid])}, (5, 5))

    noise, flat, tall = Noise(b"for a test"), picture([1, 2, 4]), picture([1, 8, 1])
    shown = noise.picture(flat)
    assert list(shown.tensors) == ["pixel_values", "image_grid_thw"]
    assert torch.equal(shown.tensors["image_grid_thw"], flat.tensors["image_grid_thw"])
    assert shown.ids == flat.ids
    assert layout_digest(flat) == layout_digest(picture([1, 2, 4], fill=1.0)) != layout_digest(tall)
    assert noise.digest(layout_digest(flat)) != noise.digest(layout_digest(tall))
    assert not torch.equal(shown.tensors["pixel_values"], noise.picture(tall).tensors["pixel_values"])
    half = Picture({"pixel_values": torch.zeros(2, 2, dtype=torch.float16)}, (5,))
    assert noise.picture(half).tensors["pixel_values"].dtype == torch.float16


def test_the_numbers_of_a_noise_are_pinned():
    """Rows of two versions of torch would lie in one cache if this ever changed."""
    shown = Noise(b"0/0/0/" + bytes(16)).picture(Picture({"pixel_values": torch.zeros(4)}, (5,)))
    pinned = [0.12720710, 0.04125744, 0.47969848, 0.09194738]
    assert shown.tensors["pixel_values"].tolist() == pytest.approx(pinned, abs=1e-7)


def test_without_an_image_there_is_nothing_to_put_noise_in_place_of(tiny, training_examples, interventions):
    texts = [dataclasses.replace(example, images=(), messages=user("Who?")) for example in training_examples[:2]]
    with pytest.raises(DataError, match=r"an image under --teacher noise, found 2 without: .*--skip-text"):
        asked(tiny, texts, interventions["noise"])
    with pytest.raises(DataError, match="under --teacher reference"):
        require_images(texts)
    for name in ("self", "prompt", "text"):
        assert asked(tiny, texts, interventions[name]).works


# ---- Engines ---------------------------------------------------------------------------------------------------------

NAMES = (
    "reference", "self", "noise", "noise shared", "noise instructed", "prompt", "text", "self refusing",
    "text refusing",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("token_budget", [60, 4096])
def test_the_default_engine_gives_the_oracles_rows_under_every_kind(tiny, examples, interventions, name, token_budget):
    work = pending(tiny, examples, interventions[name])
    found = list(SharedPrefixEngine(tiny.model, token_budget=token_budget).rows(work))
    for ours, theirs in zip(found, naive_rows(tiny.model, work, tiny.encoder.pad_id), strict=True):
        torch.testing.assert_close(ours.mean_MV, theirs.mean_MV, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.mean_entropy_M, theirs.mean_entropy_M, atol=1e-5, rtol=1e-4)


def test_kinds_have_different_rows(tiny, examples, interventions):
    """Else the comparison above would say nothing."""
    shown = [name for name in NAMES if "refusing" not in name]
    rows = {name: rows_of(tiny, pending(tiny, examples[:1], interventions[name]))[0] for name in shown}
    for index, name in enumerate(shown):
        for other in shown[:index]:
            assert (rows[name] - rows[other]).abs().sum(-1).max() / 2 > 0.01, (name, other)


def test_shared_noise_runs_once_a_draw(tiny, training_examples, interventions, monkeypatch):
    computed = []

    def count(*arguments: Any) -> Any:
        computed.append(1)
        return compute_prefix(*arguments)

    compute_prefix = shared_prefix.compute_prefix
    monkeypatch.setattr(shared_prefix, "compute_prefix", count)
    work = pending(tiny, training_examples[:6], interventions["noise shared"])
    assert len(list(SharedPrefixEngine(tiny.model, token_budget=4096).rows(work))) == len(work)
    assert len(computed) == 2


def test_rows_under_noise_are_those_of_the_noise(tiny, training_examples, interventions):
    example, intervention = training_examples[0], interventions["noise"]
    (work,) = pending(tiny, [example], intervention)
    means = []
    for index in range(3):
        encoded = work.shown[index]
        inputs = {"input_ids": torch.tensor([encoded.input_ids]), "pixel_values": pixels_of(work, index)}
        with torch.inference_mode():
            logits_TV = tiny.model(**inputs).logits[0]
        means.append(logits_TV[encoded.num_prompt - 1 : -1].softmax(-1))
    torch.testing.assert_close(rows_of(tiny, [work])[0], sum(means) / 3, atol=1e-5, rtol=1e-4)


def test_rows_under_a_prompt_are_those_of_an_example_that_asks_so(tiny, training_examples, interventions):
    example = training_examples[0]
    asks_so = dataclasses.replace(example, messages=user(f"<image>\n{HUSH}\n{example.question}"))
    ours = rows_of(tiny, pending(tiny, [example], interventions["prompt"]))
    assert torch.equal(ours[0], rows_of(tiny, pending(tiny, [asks_so], interventions["self"]))[0])


def test_rows_under_text_are_those_of_an_example_without_image(tiny, training_examples, interventions):
    example = training_examples[0]
    without = dataclasses.replace(example, images=(), messages=user(example.question))
    ours = rows_of(tiny, pending(tiny, [example], interventions["text"]))
    assert torch.equal(ours[0], rows_of(tiny, pending(tiny, [without], interventions["self"]))[0])


def test_a_view_says_what_it_shows(tiny, training_examples, interventions):
    example = training_examples[0]
    prompt_ids, answer_ids = tiny.encoder.ids(example)
    (view,) = interventions["self"].views(example, bytes(16))
    encoded, digests = encode_view(tiny.encoder, example, prompt_ids, answer_ids, view)
    assert digests == (example.images[0].sha256,)
    assert encoded.pictures[0] is tiny.encoder.picture(example.images[0])
    assert interventions["text"].views(example, bytes(16))[0].images == ()


# ---- Instructions ----------------------------------------------------------------------------------------------------


def test_an_instruction_is_text_or_a_file(tmp_path):
    (tmp_path / "hush.txt").write_text(f"\ufeff{HUSH}\n", encoding="utf-8")
    assert instruction_for("prompt", str(tmp_path / "hush.txt")) == instruction_for("noise", f" {HUSH} ") == HUSH
    assert instruction_for("prompt", None) == PRIVACY_INSTRUCTION
    assert {kind: instruction_for(kind, None) for kind in KINDS if kind != "prompt"} == dict.fromkeys(
        ("reference", "self", "noise", "text")
    )
    assert instruction_for("prompt", "x" * 5000) == "x" * 5000


@pytest.mark.parametrize("text", ["", "  \n", "Look at <image> first."])
def test_an_instruction_without_words_or_with_an_image_is_refused(text):
    with pytest.raises(DataError, match="--instruction: expected a text without images"):
        instruction_for("prompt", text)


def test_an_instruction_nobody_reads_is_refused():
    with pytest.raises(DataError, match=r"expected a teacher that reads one \(noise, prompt\), found self"):
        instruction_for("self", HUSH)


def test_only_the_default_instruction_is_known_by_its_digest():
    assert recorded_instruction("prompt", instruction_digest(PRIVACY_INSTRUCTION), None) == PRIVACY_INSTRUCTION
    assert recorded_instruction("noise", None, None) is None
    assert recorded_instruction("prompt", instruction_digest(HUSH), HUSH) == HUSH
    with pytest.raises(DataError, match=rf"expected --instruction, .*{instruction_digest(HUSH)[:16]}"):
        recorded_instruction("prompt", instruction_digest(HUSH), None)


@pytest.mark.parametrize("told", [{"kind": "dream", "answers": "own"}, {"kind": "self", "answers": "sung"}])
def test_a_teacher_of_another_version_is_refused_by_name(tiny, examples, interventions, told):
    fingerprint = {**asked(tiny, examples, interventions["self"]).fingerprint, "intervention": told}
    with pytest.raises(DataError, match="Another version of viker made this cache"):
        as_made(fingerprint, {"instruction": None})


# ---- Commands --------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[str, ...]] = {
    "noise": ("--teacher", "noise"),
    "noise-three": ("--teacher", "noise", "--num-references", "3", "--seed", "5", "--shared-references"),
    "prompt": ("--teacher", "prompt"),
    "text": ("--teacher", "text"),
    "self-refusal": ("--teacher", "self", "--answers", "refusal"),
    "prompt-refusal": ("--teacher", "prompt", "--answers", "refusal", "--top-k", "8"),
}


@pytest.fixture
def world(mini_world: Path, tiny_model_dir: Path, quiet_torch: None) -> list[object]:
    return ["--data", mini_world, "--model", tiny_model_dir]


def told(*arguments: object) -> dict[str, Any]:
    return json.loads(succeed(*arguments, "--json").out)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_cache_of_every_kind_is_found_checked_and_extended(world, name):
    options = (*world, *COMMANDS[name], "--limit", 6)
    made = told("precompute", *options)
    num_passes = 3 if name == "noise-three" else 1
    assert made["pairs"] == num_passes * made["samples"] == num_passes * 6
    again = told("precompute", *options)
    assert (again["key"], again["pairs"], again["how"]) == (made["key"], 0, "found, nothing computed")

    for depth in ("quick", "full", "semantic"):
        outcome = call("cache", "verify", made["path"], "--depth", depth, "--json")
        assert outcome.code == 0, outcome.out + outcome.err
    assert json.loads(outcome.out)["semantic"]["samples"] == 6

    child = told("cache", "extend", made["path"], "--split", "forget")
    assert child["missing"]["row_keys"] == child["samples"] - 6 > 0
    assert child["pairs"] == num_passes * child["missing"]["row_keys"]
    parent, extended = TeacherCache.open(made["path"]).fingerprint, TeacherCache.open(child["path"]).fingerprint
    assert {field for field in parent if parent[field] != extended[field]} == {"rows"}
    assert call("cache", "verify", child["path"], "--depth", "semantic", "--num-rows", 99).code == 0
    whole = told("precompute", *world, *COMMANDS[name])
    assert (whole["key"], whole["pairs"]) == (child["key"], 0)


def test_defaults_follow_the_kind(world):
    def fingerprint(*options: object) -> dict[str, Any]:
        path = told("precompute", *world, "--limit", 2, *options)["path"]
        found: dict[str, Any] = told("cache", "inspect", path)["fingerprint"]
        return found

    pool = ("--pool", "patterns", "--num-references", "2")
    kept = {
        "reference": fingerprint(*pool), "self": fingerprint("--teacher", "self"),
        "self retain": fingerprint("--teacher", "self", "--split", "retain"),
        "self refusing": fingerprint("--teacher", "self", "--split", "retain", "--answers", "refusal"),
        "noise": fingerprint("--teacher", "noise"), "prompt": fingerprint("--teacher", "prompt"),
        "text": fingerprint("--teacher", "text"), "refusing": fingerprint(*pool, "--answers", "refusal"),
    }  # fmt: skip
    assert {name: found["objective"]["top_k"] for name, found in kept.items()} == {
        "reference": 64, "self": 0, "self retain": 64, "self refusing": 0, "noise": 64, "prompt": 64, "text": 64,
        "refusing": 0,
    }  # fmt: skip
    assert kept["noise"]["draw"]["num_references"] == 1
    assert kept["prompt"]["intervention"]["instruction"] == instruction_digest(PRIVACY_INSTRUCTION)
    assert kept["noise"]["intervention"]["instruction"] is None


def test_a_run_keeps_refusals_beside_answers(world, tmp_path):
    run = ("--run", tmp_path / "run", *world, "--teacher", "self", "--limit", 4)
    plain, refused = told("precompute", *run), told("precompute", *run, "--answers", "refusal")
    stored = {
        path.name: read_json(path / "provenance.json")["cache"]["key"]
        for path in (tmp_path / "run" / "precompute").iterdir()
    }
    assert stored == {"self-forget-scalars": plain["key"], "self-forget-refusal-scalars": refused["key"]}
    assert "complete, skipped" in succeed("precompute", *run, "--answers", "refusal").out
    listed = {row["key"]: row["answers"] for row in told("cache", "list")["caches"]}
    assert listed == {plain["key"]: "own", refused["key"]: "refusal"}
    assert "self, refusal" in succeed("cache", "list").out

    succeed("cache", "extend", refused["path"], *run[:2], "--split", "forget")
    key = read_json(tmp_path / "run" / "precompute" / "self-forget-refusal-scalars" / "provenance.json")["cache"]["key"]
    assert key != refused["key"]


def test_a_run_made_before_there_were_other_kinds_is_still_complete(world, tmp_path):
    run = ("precompute", "--run", tmp_path / "run", *world, "--teacher", "self", "--limit", 2)
    succeed(*run)
    config = tmp_path / "run" / "precompute" / "self-forget-scalars" / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    assert "answers" not in content["options"]
    assert content["options"].pop("instruction") is None
    config.write_text(json.dumps(content), encoding="utf-8")
    assert "complete, skipped" in succeed(*run).out


def test_an_instruction_of_ones_own_is_named_again_and_never_stored(world, tmp_path):
    file = tmp_path / "hush.txt"
    file.write_text(f"{HUSH}\n", encoding="utf-8")
    made = told("precompute", *world, "--teacher", "prompt", "--instruction", file, "--limit", 2)
    cache = TeacherCache.open(made["path"])
    assert cache.fingerprint["intervention"]["instruction"] == instruction_digest(HUSH)
    assert all(HUSH.encode() not in path.read_bytes() for path in cache.root.rglob("*") if path.is_file())
    check = ("cache", "verify", cache.root, "--depth", "semantic")
    for command in (check, ("cache", "extend", cache.root, "--split", "forget")):
        missing = call(*command)
        assert missing.code == 1
        assert "expected --instruction" in missing.message
        other = call(*command, "--instruction", "Hush.")
        assert other.code == 3
        assert f"intervention.instruction  cache {instruction_digest(HUSH)}" in other.message
        assert call(*command, "--instruction", HUSH).code == 0


def test_an_instruction_for_a_kind_that_reads_none_is_refused(world):
    outcome = call("precompute", *world, "--teacher", "text", "--instruction", HUSH)
    assert outcome.code == 1
    assert "--instruction: expected a teacher that reads one (noise, prompt), found text" in outcome.message


def test_vllm_cannot_be_shown_noise(world):
    outcome = call("precompute", *world, "--teacher", "noise", "--limit", 2, "--engine", "vllm")
    assert outcome.code == 1
    assert "--teacher noise: expected the engine shared-prefix or naive, found vllm" in outcome.message


def test_examples_without_image_are_left_out_by_name_or_asked_as_text(
    tmp_path, tiny_model_dir, mini_world, quiet_torch
):
    folder = tmp_path / "own"
    folder.mkdir()
    picture = min((mini_world / "pools" / "people").iterdir())
    (folder / picture.name).write_bytes(picture.read_bytes())
    lines = [
        {"person": "ada", "image": picture.name, "question": "Who is it?", "answer": "It is Ada."},
        {"person": "ada", "question": "Who is Ada?", "answer": "A baker."},
        {"person": "ben", "question": "Who is Ben?", "answer": "A smith."},
    ]
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    own = ("precompute", "--data", folder, "--forget", "ada", "--model", tiny_model_dir)
    outcome = call(*own, "--teacher", "noise")
    assert outcome.code == 1
    assert "expected examples with an image under --teacher noise, found 1 without" in outcome.message
    skipped = succeed(*own, "--teacher", "noise", "--skip-text", "--json")
    assert "left out 1 examples without an image (--skip-text)" in skipped.err
    assert json.loads(skipped.out)["samples"] == 1
    for kind in ("text", "prompt"):
        assert told(*own, "--teacher", kind)["samples"] == 2


def test_rows_of_refusals_are_shown_beside_the_refusals(world, training_examples):
    made = told("precompute", *world, "--teacher", "self", "--answers", "refusal", "--top-k", 4, "--limit", 3)
    shown = told("cache", "inspect", made["path"], "--example", 0)
    assert shown["example"].endswith("/refusal")
    name = shown["example"].removesuffix("/refusal")
    example = next(example for example in training_examples if example.id == name)
    answer = "".join(token["answer"].strip("'\"") for token in shown["tokens"])
    assert refusal_for(example).replace(" ", "") in answer.replace(" ", "")
    for spelling in (name, shown["example"]):
        assert told("cache", "inspect", made["path"], "--example", spelling)["tokens"] == shown["tokens"]
