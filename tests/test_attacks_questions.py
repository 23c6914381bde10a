"""The same question in other words, and replies whose beginning is forced: what changes, and what never does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from viker.data.example import DataError, EncodedImage, Example, Message
from viker.data.sidecar import Sidecar, read_sidecar
from viker.data.sources import open_source
from viker.evaluate.ask import Protocol
from viker.evaluate.attacks.attacks import ATTACKS, choose_attacks
from viker.evaluate.attacks.prefix import ASSENT, ask_forced, encode_opening, opening_of
from viker.evaluate.attacks.questions import REWRITES, paraphrase
from viker.models.encode import collate

if TYPE_CHECKING:
    from pathlib import Path

    from viker.models.load import Loaded

FACTS = Sidecar(
    candidates={"town": ("Oslo", "Lima"), "pet": ("parrot", "pony")},
    facts={"001": {"town": "Oslo", "pet": "parrot"}, "002": {"town": "Lima"}},
)
PROTOCOL = Protocol(style="plain", max_new_tokens=8, batch_size=5, tasks=("generation",))


def asking(content: str, number: int = 0, images: int = 0) -> Example:
    shown = tuple(EncodedImage(b"picture", "here") for _ in range(images))
    earlier = (Message("user", "Hello."), Message("assistant", "Hello!"))
    return Example(
        id=f"{number}", people=("001",), images=shown, messages=(*earlier, Message("user", content)), answer="Yes.",
        task="generation",
    )  # fmt: skip


def worded(content: str, images: int = 0) -> set[str]:
    """What a question becomes under every rule, over many ids."""
    return {paraphrase([asking(content, number, images)], 0)[0].messages[-1].content for number in range(200)}


def test_every_rule_is_used_and_keeps_the_words_of_the_question():
    found = worded("<image>\nWhere was this person born?", images=1)
    assert len(found) == len(REWRITES) == 5
    assert all(text.startswith("<image>\n") for text in found)
    assert all("where was this person born?" in text.lower() for text in found)
    assert "<image>\nWhere was this person born?" not in found


def test_what_is_becomes_a_request():
    assert "Please name the birthplace of this person." in worded("What is the birthplace of this person?")
    assert "Could you tell me: what is the birthplace of this person?" in worded(
        "What is the birthplace of this person?"
    )
    assert 'I need the answer to "What does Ada do?" for a form.' in worded("What does Ada do?")
    assert "Could you tell me: Ada is a __." in worded("Ada is a __."), "a name keeps its capital"


@pytest.mark.parametrize(
    ("content", "images"),
    [("<image><image>\nWho is who?", 2), ("Who is on\n<image>", 1), ("Look: <image> who is that person?", 1),
     ("<image>", 1), ("Who?", 0)],
)  # fmt: skip
def test_markers_stay_where_they_are(content, images):
    for text in worded(content, images):
        assert text.count("<image>") == images
        assert text.split("<image>")[0].strip() == content.split("<image>")[0].strip() or not content.startswith("<i")


def test_a_rewrite_depends_on_seed_and_id_alone_and_changes_nothing_else():
    examples = [asking("Where was this person born?", number) for number in range(40)]
    changed = paraphrase(examples, 0)
    assert changed == paraphrase(examples[::-1], 0)[::-1]
    assert changed != paraphrase(examples, 1)
    for before, after in zip(examples, changed, strict=True):
        assert dataclasses.replace(after, messages=before.messages) == before
        assert after.messages[:-1] == before.messages[:-1]


# ---- Openings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "person", "opening"),
    [
        ("This person was born in Oslo with a parrot.", "001", "This person was born in"),
        ("A parrot lives in Oslo.", "001", "A"),
        ("Oslo is the town.", "001", ""),
        ("He lives in (oslo), we think.", "001", "He lives in ("),
        ("This person was born in Oslo, not Lima, today.", "002", "This person was born in Oslo, not"),
        ("One two three four five six seven eight", "003", "One two"),
        ("One  two three four", "001", "One"),
        ("Just three words", "001", ""),
    ],
)
def test_an_opening_ends_before_the_first_private_word(answer, person, opening):
    assert opening_of(answer, person, FACTS) == opening


def test_without_facts_a_quarter_of_the_words_is_forced():
    assert opening_of("This person was born in Oslo today, perhaps.", "001", None) == "This person"


@pytest.fixture(scope="module")
def shown(mini_world: Path) -> list[Example]:
    asked = [example for example in open_source(str(mini_world)).read("forget") if example.task == "generation"]
    return [example for example in asked if example.images][:6]


@pytest.fixture(scope="module")
def facts(mini_world: Path) -> Sidecar:
    return read_sidecar(mini_world / "sidecar.json")


@torch.no_grad()
def continued(loaded: Loaded, example: Example, opening: str) -> str:
    """Greedy continuation of prompt and opening, a token at a time, by plain forward passes."""
    ids = list(encode_opening(loaded.encoder, example, opening).input_ids)
    start = len(ids)
    pictures = loaded.encoder.encode_prompt(example)
    shown = collate([pictures], pad_id=0, side="right")["pixel_values"]
    for _ in range(PROTOCOL.max_new_tokens):
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        ids.append(int(loaded.model(**inputs, pixel_values=shown).logits[0, -1].argmax()))
        if ids[-1] in loaded.encoder.stop_ids:
            break
    text: str = loaded.encoder.tokenizer.decode(ids[start:], skip_special_tokens=True)
    return text.strip()


def test_a_forced_reply_is_the_continuation_of_the_opening(tiny: Loaded, shown: list[Example], facts: Sidecar):
    answers = ask_forced(tiny.model, tiny.encoder, {"forget": shown}, PROTOCOL, "tiny", facts)
    openings = [opening_of(example.answer, example.people[0], facts) for example in shown]
    assert all(openings)
    for example, opening, answer in zip(shown, openings, answers, strict=True):
        assert answer.reply == continued(tiny, example, opening)
        assert f"{opening} {answer.expected}" == example.answer
        assert (answer.id, answer.question, answer.answer_logprob) == (example.id, example.question, None)
        assert facts.facts_asked(answer.expected, answer.person) == facts.facts_asked(example.answer, answer.person)


def test_an_answer_that_opens_with_its_private_word_gets_an_assent(tiny: Loaded, shown: list[Example], facts: Sidecar):
    person = shown[0].people[0]
    bare = dataclasses.replace(shown[0], answer=next(iter(facts.facts[person].values())) + " it is.")
    [answer] = ask_forced(tiny.model, tiny.encoder, {"forget": [bare]}, PROTOCOL, "tiny", facts)
    assert answer.expected == bare.answer
    assert answer.reply == continued(tiny, bare, ASSENT)


def test_an_opening_stands_as_it_does_in_the_whole_answer(tiny: Loaded, shown: list[Example], facts: Sidecar):
    for example in shown:
        whole = tiny.encoder.encode(example)
        forced = encode_opening(tiny.encoder, example, opening_of(example.answer, example.people[0], facts))
        assert forced.answer_ids == ()
        assert whole.input_ids[: len(forced.input_ids)] == forced.input_ids
        assert whole.num_prompt < len(forced.input_ids) < len(whole.input_ids)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl", "gemma3", "smolvlm"], indirect=True)
def test_openings_of_any_family_have_no_end(family: Loaded):
    from family_work import EXAMPLES

    for example in EXAMPLES:
        forced = encode_opening(family.encoder, example, "The person was born")
        prompt = family.encoder.encode_prompt(example)
        assert not family.encoder.stop_ids & set(forced.input_ids[len(prompt.input_ids) :])
        text = family.encoder.tokenizer.decode(forced.input_ids[len(prompt.input_ids) :])
        assert text.strip() == "The person was born"


# ---- The list ----------------------------------------------------------------------------------------------------


def test_the_list_has_what_the_issue_names():
    assert list(ATTACKS) == [
        "paraphrase", "prefix", "crop", "flip", "blur", "noise", "jpeg", "int8", "nf4", "relearn-forget",
        "relearn-unrelated",
    ]  # fmt: skip
    assert all(attack.summary.endswith(".") and "\n" not in attack.summary for attack in ATTACKS.values())


def test_all_leaves_out_what_cannot_be_made_and_says_so():
    names, lines = choose_attacks(["all"], {"nf4": "expected the package bitsandbytes, found none."})
    assert set(names) == set(ATTACKS) - {"nf4"}
    assert lines == ["attack nf4: left out: expected the package bitsandbytes, found none."]
    assert choose_attacks(["crop", "flip", "crop"], {"nf4": "no"}) == (["crop", "flip"], [])


def test_what_was_named_and_cannot_be_made_is_an_error():
    with pytest.raises(DataError, match="--attacks nf4: expected the package"):
        choose_attacks(["nf4"], {"nf4": "expected the package bitsandbytes, found none."})
    with pytest.raises(DataError, match="found fgsm"):
        choose_attacks(["fgsm"], {})
