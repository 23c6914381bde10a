"""The prompts of the MLLMU protocol, letter by letter, as LLaVA-1.5's template completes them."""

import pytest
from viker.data.example import DataError, EncodedImage, Example, Message, Task, ask_about
from viker.evaluate.questions import (
    official_prompt,
    option_examples,
    parse_letter,
    plain_prompt,
    shot_block,
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


CLASSIFICATION_BLOCK = "Question: In __?\nA: Oslo\nB: Lima\nC: Riga\nD: Cork\nCorrect Answer: B\n"
CLOZE_BLOCK = (
    "In [Blank]?\nPlease **ONLY** provide the correct answer that should replace the [Blank].\nCorrect Answer: Lima\n"
)


@pytest.mark.parametrize(
    ("shot", "block"),
    [
        (question("classification", "In __?"), f"USER: <image>\n{CLASSIFICATION_BLOCK}"),
        (question("classification", "In __?", shown=False), f"USER:\n{CLASSIFICATION_BLOCK}"),
        (question("cloze", "In __?", answer="Lima"), f"USER:<image>\n{CLOZE_BLOCK}"),
        (question("cloze", "In __?", answer="Lima", shown=False), f"USER:\n{CLOZE_BLOCK}"),
    ],
)
def test_answered_questions_stand_in_front_as_published(shot: Example, block: str) -> None:
    assert shot_block(shot) == block
