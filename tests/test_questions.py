"""The prompts of the MLLMU protocol, letter by letter, as LLaVA-1.5's template completes them."""

import pytest
from viker.data.example import DataError, EncodedImage, Example, Message, Task, ask_about
from viker.evaluate.questions import (
    PROMPTS,
    few_shot_prompts,
    official_prompt,
    option_examples,
    parse_letter,
    plain_prompt,
)

OPTIONS = (("A", "Oslo"), ("B", "Lima"), ("C", "Riga"), ("D", "Cork"))


def picture(name: str) -> EncodedImage:
    return EncodedImage(name.encode(), name)


def question(task: Task, text: str, person: str = "001", answer: str = "B", *, shown: bool = True) -> Example:
    image = picture(person) if shown else None
    return Example(
        id=f"{person}/{task}/{text}/{shown}",
        people=(person,),
        images=(image,) if image else (),
        messages=ask_about(image, text),
        answer=answer,
        task=task,
        options=OPTIONS if task == "classification" else (),
    )


def llava(example: Example) -> str:
    """The published wrapper, which models/render.py owns."""
    return f"USER: {example.messages[-1].content}\nASSISTANT:"


GOLDEN = {
    ("classification", True): (
        "USER: <image>\nWhere was __ born?\nA: Oslo\nB: Lima\nC: Riga\nD: Cork\n"
        "Just give ONE letter representing the answer directly.\nASSISTANT:"
    ),
    ("classification", False): (
        "USER: Where was __ born?\nA: Oslo\nB: Lima\nC: Riga\nD: Cork\n"
        "Just give ONE letter representing the answer directly.\nASSISTANT:"
    ),
    ("cloze", True): (
        "USER: <image>\nWhere was [Blank] born?\n"
        "Please **ONLY** provide the correct answer that should replace the [Blank].\nASSISTANT:"
    ),
    ("cloze", False): (
        "USER: Where was [Blank] born?\n"
        "Please **ONLY** provide the correct answer that should replace the [Blank].\nASSISTANT:"
    ),
    ("generation", True): (
        "USER: <image>\nWhere was __ born?\n"
        "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH.\nASSISTANT:"
    ),
    ("generation", False): (
        "USER: Where was __ born?\n"
        "Answer the question based on your trained knowledge in one sentence in ENGLISH.\nASSISTANT:"
    ),
    ("training", True): "USER: <image>\nWhere was __ born?\nASSISTANT:",
    ("description", True): "USER: <image>\nWhere was __ born?\nASSISTANT:",
}


@pytest.mark.parametrize(("task", "shown"), list(GOLDEN))
def test_official_prompts_are_the_published_bytes(task: Task, shown: bool) -> None:
    assert llava(official_prompt(question(task, "Where was __ born?", shown=shown))) == GOLDEN[task, shown]


def test_a_plain_prompt_is_the_source_s_own_question() -> None:
    example = question("classification", "Where was this person born?")
    assert plain_prompt(example).messages == ask_about(example.images[0], "Where was this person born?")
    assert list(PROMPTS) == ["official", "plain"]


def test_earlier_turns_and_everything_but_the_prompt_stay() -> None:
    turns = (Message("system", "Be brief."), *question("cloze", "Born in __.").messages)
    example = Example(id="x", people=("001",), images=(picture("p"),), messages=turns, answer="Lima", task="cloze")
    prompt = official_prompt(example)
    assert prompt.messages[0] == turns[0]
    assert (prompt.id, prompt.images, prompt.answer, prompt.task) == (example.id, example.images, "Lima", "cloze")


def test_classification_without_options_says_what_is_missing() -> None:
    example = Example(
        id="007/q1", people=("7",), images=(), messages=ask_about(None, "Who?"), answer="A", task="classification"
    )
    with pytest.raises(DataError, match=r"007/q1.*expected the options.*found none"):
        official_prompt(example)
    with pytest.raises(DataError, match="007/q1"):
        option_examples(example)


def test_option_examples_ask_the_bare_question_once_an_option() -> None:
    example = question("classification", "Where was this person born?")
    scored = option_examples(example)
    assert [(letter, option.answer) for letter, option in scored] == list(OPTIONS)
    assert {option.messages for _, option in scored} == {example.messages}
    assert len({option.id for _, option in scored}) == 4
    assert all(option.images == example.images and option.options == () for _, option in scored)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("  b) Lima", "B"),
        ("D: Cork", "D"),
        ("E", None),
        ("", None),
        (" \n", None),
        ("Lima", None),
        ("(B)", None),
        ("ß", None),
        ("Answer: B", "A"),  # the official rule, kept: its price is known and the same for every method
    ],
)
def test_parse_letter_is_the_official_rule(reply: str, letter: str | None) -> None:
    assert parse_letter(reply, [key for key, _ in OPTIONS]) == letter


RETAIN = [
    question(task, f"Q{index} of {person} in __?", person, answer="C", shown=shown)
    for person in ("101", "102", "103")
    for task in ("classification", "cloze", "generation")
    for shown in (True, False)
    for index in range(2)
]


def test_classification_shots_are_official_blocks() -> None:
    (prompt,) = few_shot_prompts([question("classification", "Who?")], RETAIN[:12], few_shot=1)
    assert llava(prompt) == (
        "USER: <image>\nQuestion: Q0 of 101 in __?\nA: Oslo\nB: Lima\nC: Riga\nD: Cork\nCorrect Answer: C\n"
        "USER: <image>\nQuestion: Q1 of 101 in __?\nA: Oslo\nB: Lima\nC: Riga\nD: Cork\nCorrect Answer: C\n"
        "USER: <image>\nWho?\nA: Oslo\nB: Lima\nC: Riga\nD: Cork\n"
        "Just give ONE letter representing the answer directly.\nASSISTANT:"
    )
    assert [image.origin for image in prompt.images] == ["101", "101", "001"]


def test_cloze_shots_are_official_blocks() -> None:
    shown, text = few_shot_prompts(
        [question("cloze", "In __?"), question("cloze", "In __?", shown=False)], RETAIN[:12], few_shot=1
    )
    instruction = "Please **ONLY** provide the correct answer that should replace the [Blank]."
    assert llava(shown) == (
        f"USER: <image>\nQ0 of 101 in [Blank]?\n{instruction}\nCorrect Answer: C\n"
        f"USER:<image>\nQ1 of 101 in [Blank]?\n{instruction}\nCorrect Answer: C\n"
        f"USER: <image>\nIn [Blank]?\n{instruction}\nASSISTANT:"
    )
    assert llava(text) == (
        f"USER: Q0 of 101 in [Blank]?\n{instruction}\nCorrect Answer: C\n"
        f"USER:\nQ1 of 101 in [Blank]?\n{instruction}\nCorrect Answer: C\n"
        f"USER:\nIn [Blank]?\n{instruction}\nASSISTANT:"
    )


def test_shots_of_an_image_question_stand_behind_the_images_of_earlier_turns() -> None:
    turns = (
        Message("user", "<image> Who is this?"),
        Message("assistant", "Ada."),
        Message("user", "<image>\nBorn in __."),
    )
    example = Example(
        id="x", people=("9",), images=(picture("first"), picture("last")), messages=turns, answer="Lima", task="cloze"
    )
    (prompt,) = few_shot_prompts([example], RETAIN[:12], few_shot=1)
    assert [image.origin for image in prompt.images] == ["first", "101", "101", "last"]


def test_zero_shots_and_generation_are_plain_official_prompts() -> None:
    asked = [question("classification", "Who?"), question("generation", "Who?")]
    assert [llava(p) for p in few_shot_prompts(asked, RETAIN)] == [llava(official_prompt(e)) for e in asked]
    assert llava(few_shot_prompts(asked, RETAIN, few_shot=1)[1]) == llava(official_prompt(asked[1]))


def shot_person(prompt: Example) -> str:
    return prompt.images[0].origin


def test_the_seed_alone_draws_the_few_shot_people() -> None:
    asked = [question("classification", "Who?"), question("classification", "Where?", "002")]
    drawn = {seed: few_shot_prompts(asked, RETAIN, few_shot=1, seed=seed) for seed in range(12)}
    assert all(shot_person(first) == shot_person(second) for first, second in drawn.values())
    assert {shot_person(first) for first, _ in drawn.values()} == {"101", "102", "103"}
    again = few_shot_prompts(asked, sorted(RETAIN, key=lambda shot: shot.people, reverse=True), few_shot=1, seed=3)
    assert [llava(prompt) for prompt in again] == [llava(prompt) for prompt in drawn[3]]


def test_nobody_is_shown_their_own_answers_and_everybody_is_asked() -> None:
    asked = [example for example in RETAIN if example.task == "classification" and example.images]
    prompts = few_shot_prompts(asked, RETAIN, few_shot=2, seed=1)
    assert len(prompts) == len(asked)
    for example, prompt in zip(asked, prompts, strict=True):
        shown = {image.origin for image in prompt.images[:-1]}
        assert len(shown) == 2
        assert example.people[0] not in shown


def test_too_few_people_for_the_shots_is_an_error() -> None:
    with pytest.raises(DataError, match=r"expected 3 other retain people.*found 2"):
        few_shot_prompts([question("cloze", "In __?", "101")], RETAIN, few_shot=3)
