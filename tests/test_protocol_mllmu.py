"""Under `official` is asked what the published loop asks, letter by letter; each correction changes one thing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import mllmu_fixture
import pytest
from viker.data.example import DataError, EncodedImage, Example, Message, ask_about
from viker.data.halves import half_of
from viker.data.mllmu import MllmuSource
from viker.evaluate.protocols.corrections import CORRECTIONS, as_published
from viker.evaluate.protocols.mllmu import Prompted, prompts, published_text
from viker.evaluate.protocols.spacing import encode_published
from viker.evaluate.questions import official_prompt
from viker.models.render import render_llava

if TYPE_CHECKING:
    from viker.models.load import Loaded

ALL = as_published("official")
FIXED: frozenset[str] = frozenset()
RATIO = 15
MODES = {"forget": "forget", "test": "test", "retain-seen": "retain", "retain-heldout": "retain", "real": "real"}
Questions = dict[str, list[Example]]
Asked = dict[str, tuple[str, list[bytes]]]  # id -> prompt, pictures


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    """The questions of the fixture's published folders, by split."""
    source = MllmuSource(location=mllmu_fixture.write_mllmu(tmp_path_factory.mktemp("mllmu")), ratio=RATIO)
    found: Questions = {split: [] for split in MODES}
    for name in ("forget", "test", "retain", "real"):
        for example in source.read(name):
            if example.task in ("classification", "cloze", "generation"):
                half = half_of(example.people[0]).replace("-", "")
                found[f"retain-{half}" if name == "retain" else name].append(example)
    return found


def ask(questions: Questions, published: frozenset[str], few_shot: int | None = None, seed: int = 0) -> list[Prompted]:
    return prompts(questions, style="official", few_shot=few_shot, as_published=published, seed=seed)


# The published loop, from reference/benchmarks.md, section 1.5: over rows, with what it draws given.


def drawn(seed: int, mode: str, task: str, people: list[str], number: int) -> list[str]:
    """Return whom we draw: the only thing here that is ours."""
    return sorted(people, key=lambda p: hashlib.sha256("\0".join((str(seed), mode, task, p)).encode()).digest())[
        :number
    ]


def with_options(question: str, options: dict[str, str]) -> str:
    return f"{question}\n" + "\n".join(f"{key}: {value}" for key, value in options.items())


def blank(question: str) -> str:
    return (
        question.replace("__", "[Blank]")
        + "\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
    )


def shown_picture(row: dict[str, Any], ours: tuple[str, list[bytes]]) -> list[bytes]:
    """Return the row's picture; of the several of a test row, ours, which must be one of them."""
    if "images" not in row:
        return [row["image"]["bytes"]]
    assert ours[1][-1] in [image["bytes"] for image in row["images"]]
    return ours[1][-1:]


def published_classification(
    mode: str, folder: str, rows: list[dict[str, Any]], full: list[dict[str, Any]], selected: list[str], pictures: Asked
) -> Asked:
    asked: Asked = {}
    shots: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    images, shown = [], {}
    for row in full:
        if row["ID"] in selected:
            task = row["Classification_Task"] or {}
            for is_image, key in ((True, "Image_Textual_Questions"), (False, "Pure_Text_Questions")):
                shots[is_image] += task.get(key) or []
                shown[row["ID"], is_image] = len(task.get(key) or [])
            images += [row["image"]["bytes"]] * shown[row["ID"], True]
    for row in rows:
        task = row["Classification_Task"] or {}
        for is_image, key in ((True, "Image_Textual_Questions"), (False, "Pure_Text_Questions")):
            for index, ele in enumerate(task.get(key) or []):
                if index < shown.get((row["ID"], is_image), 0):
                    continue
                few_shot = ""
                for shot in shots[is_image] if mode in ("forget", "retain", "test") else []:
                    options = shot["Options"]
                    few_shot += (
                        ("USER: <image>\n" if is_image else "USER:\n")
                        + f"Question: {shot['Question']}\n"
                        + f"A: {options['A']}\nB: {options['B']}\nC: {options['C']}\nD: {options['D']}\n"
                        + f"Correct Answer: {shot['Correct_Answer']}\n"
                    )
                instruction = "\nJust give ONE letter representing the answer directly.\nASSISTANT:"
                opening = "USER: <image>\n" if is_image else "USER:\n"
                name = f"{folder}/{row['ID']}/classification-{'image' if is_image else 'text'}/{index}"
                prompt = few_shot + opening + with_options(ele["Question"], ele["Options"]) + instruction
                asked[name] = (prompt, [*images, *shown_picture(row, pictures[name])] if is_image else [])
    return asked


def published_cloze(
    folder: str, rows: list[dict[str, Any]], full: list[dict[str, Any]], selected: list[str], pictures: Asked
) -> Asked:
    asked: Asked = {}
    shots: dict[str, str] = {"Image_Textual": "", "Pure_Text": ""}
    images, shown = [], set()
    for row in full:
        for index, ele in enumerate(row["Mask_Task"] if row["ID"] in selected else []):
            opening = {"Image_Textual": "USER:<image>\n", "Pure_Text": "USER:\n"}[ele["Type"]]
            shots[ele["Type"]] += f"{opening}{blank(ele['Question'])}\nCorrect Answer: {ele['Ground_Truth']}\n"
            images += [row["image"]["bytes"]] if ele["Type"] == "Image_Textual" else []
            shown.add((row["ID"], index))
    for row in rows:
        for index, ele in enumerate(row["Mask_Task"]):
            if (row["ID"], index) in shown:
                continue
            is_image = ele["Type"] == "Image_Textual"
            name = f"{folder}/{row['ID']}/cloze-{'image' if is_image else 'text'}/{index}"
            opening = "USER: <image>\n" if is_image else "USER:\n"
            prompt = f"{shots[ele['Type']]}{opening}{blank(ele['Question'])}\nASSISTANT:"
            asked[name] = (prompt, [*images, *shown_picture(row, pictures[name])] if is_image else [])
    return asked


def published_generation(folder: str, rows: list[dict[str, Any]], pictures: Asked) -> Asked:
    asked: Asked = {}
    for row in rows:
        for index, ele in enumerate(row["Generation_Task"] or []):
            is_image = ele["Type"] == "Image_Textual"
            name = f"{folder}/{row['ID']}/generation-{'image' if is_image else 'text'}/{index}"
            question = ele["Question"]
            if is_image:
                prompt = (
                    f"USER: <image>\n{question}\nAnswer the question based on your trained knowledge in one sentence "
                    "accurately in ENGLISH.\nASSISTANT: "
                )
            else:
                prompt = (
                    f"USER: {question}\nAnswer the question based on your trained knowledge in one sentence in "
                    "ENGLISH.\nASSISTANT:"
                )
            asked[name] = (prompt, shown_picture(row, pictures[name]) if is_image else [])
    return asked


def published_loop(seed: int, one: int, two: int, pictures: Asked) -> Asked:
    """Return all that the published code asks; which test picture is drawn is taken from `pictures`."""
    forget = mllmu_fixture.FORGET[RATIO]
    full = [mllmu_fixture.split_row(person) for person in mllmu_fixture.PEOPLE]
    retain = [row for row in full if row["ID"] not in forget]
    test = [mllmu_fixture.test_row(person) for person in mllmu_fixture.PEOPLE if person in forget]
    real = [mllmu_fixture.split_row(person) for person in mllmu_fixture.CELEBRITIES]
    asked: Asked = {}
    for mode, folder, rows in (
        ("forget", f"forget_{RATIO}", [row for row in full if row["ID"] in forget]),
        ("test", "Test_Set", test),
        ("retain", f"retain_{100 - RATIO}", retain),
        ("real", "Retain_Set", real),
    ):
        people = [row["ID"] for row in rows if row["ID"] != mllmu_fixture.NULL_TASKS]  # who is asked anything
        first, second = (drawn(seed, mode, task, people, n) for task, n in (("classification", one), ("cloze", two)))
        asked |= published_classification(mode, folder, rows, full, first, pictures)
        asked |= published_cloze(folder, rows, full, second, pictures)
        asked |= published_generation(folder, rows, pictures)
    return asked


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("few_shot", "one", "two"), [(None, 1, 2), (0, 0, 0), (1, 1, 1)])
def test_official_asks_what_the_published_loop_asks(
    questions: Questions, seed: int, few_shot: int | None, one: int, two: int
) -> None:
    asked = ask(questions, ALL, few_shot, seed)
    ours = {item.example.id: (item.text, [image.data for image in item.prompt.images]) for item in asked}
    assert ours == published_loop(seed, one, two, {name: (text or "", data) for name, (text, data) in ours.items()})
    assert (len(asked) < sum(map(len, questions.values()))) == bool(one)


def test_what_the_template_makes_of_a_published_prompt_differs_in_spaces_alone(questions: Questions) -> None:
    for item in ask(questions, ALL):
        rendered = render_llava(item.prompt.messages, None, image_token="<image>", end_token="</s>")
        assert item.text is not None
        assert rendered == "USER: " + item.text.removeprefix("USER:").lstrip().rstrip()
        assert rendered.startswith("USER: ")
    same = [
        item.text == render_llava(item.prompt.messages, None, image_token="<image>", end_token="</s>")
        for item in ask(questions, ALL, 0)
        if bool(item.example.images) == (item.example.task != "generation")
    ]
    assert len(same) > 10
    assert all(same)


def test_the_tokens_of_a_published_prompt_are_those_of_its_text(tiny: Loaded, questions: Questions) -> None:
    encoder = tiny.encoder
    for item in ask(questions, ALL, 0):
        assert item.text is not None
        row = encode_published(encoder, item.prompt, item.text)
        assert list(row.prompt_ids) == encoder.tokenizer(item.text.replace("<image>", encoder.image_token))["input_ids"]
        same = bool(item.example.images) == (item.example.task != "generation")
        assert (row.prompt_ids == encoder.encode_prompt(item.prompt).prompt_ids) == same
        if item.split == "test":  # long enough a look
            break


def test_fixed_shows_retain_people_and_scores_everybody(questions: Questions) -> None:
    asked = ask(questions, FIXED)
    assert len(asked) == sum(map(len, questions.values()))
    pictures = {
        image.sha256: example.people[0]
        for split in ("retain-seen", "retain-heldout")
        for example in questions[split]
        for image in example.images
    }
    for item in asked:
        assert item.text is None
        own = len(item.example.images)
        shown = {pictures[image.sha256] for image in item.prompt.images[: len(item.prompt.images) - own]}
        expected = {"classification": 0 if item.split == "real" else 1, "cloze": 2}.get(item.example.task, 0)
        assert len(shown) == (expected if own else 0)
        assert not shown & set(item.example.people)
        if not own:
            assert item.prompt.messages[0].content.count("Correct Answer") == {0: 0, 1: 5, 2: 4}[expected]


def differing(questions: Questions, published: frozenset[str], few_shot: int | None = None) -> set[tuple[str, str]]:
    """Return the (split, task) whose questions are asked otherwise than under `fixed`, or not at all."""
    fixed = {item.example.id: item for item in ask(questions, FIXED, few_shot, seed=1)}
    other = {item.example.id: item for item in ask(questions, published, few_shot, seed=1)}
    return {
        (MODES[item.split], item.example.task)
        for name, item in fixed.items()
        if name not in other or other[name].prompt != item.prompt
    }


def test_each_correction_changes_what_it_says(questions: Questions) -> None:
    shot_tasks = {(mode, task) for mode in ("forget", "test", "retain") for task in ("classification", "cloze")}
    changed = {name: differing(questions, frozenset({name})) for name in CORRECTIONS}
    # Retain people are drawn from themselves in both.
    kept = {("retain", "classification"), ("retain", "cloze")}
    assert changed.pop("few-shot-people") == shot_tasks - kept | {("real", "cloze")}
    # Whom the retain prompts show does not change for the rest: only the shown people are left out.
    assert changed.pop("few-shot-scored") == {("retain", "classification"), ("retain", "cloze")}
    assert changed.pop("test-picture") == {("test", task) for task in ("classification", "cloze", "generation")}
    assert set(map(frozenset, changed.values())) == {frozenset()}
    assert differing(questions, frozenset({"few-shot-people", "few-shot-scored"}), 0) == set()
    spaced = [item.text for item in ask(questions, frozenset({"turn-spacing"}))]
    assert None not in spaced


def test_the_shown_people_alone_are_not_scored_as_published(questions: Questions) -> None:
    asked = {item.example.id for item in ask(questions, ALL, None, seed=3)}
    missing = [(split, example) for split, found in questions.items() for example in found if example.id not in asked]
    people = {(MODES[split], example.task): set() for split, example in missing}  # type: dict[tuple[str, str], set[str]]
    for split, example in missing:
        people[MODES[split], example.task].add(example.people[0])
    expected = {
        (mode, task): set(drawn(3, mode, task, [e.people[0] for e in unique(questions, mode)], number))
        for mode in ("forget", "test", "retain")
        for task, number in (("classification", 1), ("cloze", 2))
    }
    expected = {key: named - {mllmu_fixture.NO_CLASSIFICATION} if key[1] == "classification" else named
                for key, named in expected.items()}  # fmt: skip
    assert people == {key: named for key, named in expected.items() if named}


def unique(questions: Questions, mode: str) -> list[Example]:
    """Return one question a person of a mode; test people are those of forget."""
    wanted = "forget" if mode == "test" else mode
    found = {e.people[0]: e for split, examples in questions.items() if MODES[split] == wanted for e in examples}
    return list(found.values())


def test_one_picture_a_test_person_and_task_as_published(questions: Questions) -> None:
    shown: dict[int, dict[tuple[str, str], set[str]]] = {}
    for seed in range(8):
        for item in ask(questions, frozenset({"test-picture"}), 0, seed):
            if item.split == "test" and item.example.images:
                key = (item.example.people[0], item.example.task)
                shown.setdefault(seed, {}).setdefault(key, set()).add(item.example.images[0].sha256)
    assert all(len(pictures) == 1 for cells in shown.values() for pictures in cells.values())
    for key in shown[0]:
        assert len({next(iter(shown[seed][key])) for seed in shown}) > 1
    fixed = ask(questions, FIXED, 0)
    assert [item.example for item in fixed] == [example for found in questions.values() for example in found]


def test_nothing_depends_on_the_order_of_the_questions(questions: Questions) -> None:
    turned = {
        split: sorted(found, key=lambda e: (e.people, e.task, e.modality), reverse=True)
        for split, found in reversed(questions.items())
    }
    for published in (FIXED, ALL):
        first, second = (
            {
                (i.example.id, i.prompt.question, tuple(p.sha256 for p in i.prompt.images))
                for i in ask(q, published, seed=2)
            }
            for q in (questions, turned)
        )
        assert first == second


def test_plain_asks_bare_questions_and_published_choices(questions: Questions) -> None:
    for item in prompts(questions, style="plain", few_shot=None, as_published=FIXED, seed=0):
        wanted = official_prompt(item.example) if item.example.task == "classification" else item.example
        assert item.prompt == wanted
        assert item.text is None
    with pytest.raises(DataError, match=r"--few-shot: expected 0 with --style plain, found 1"):
        prompts(questions, style="plain", few_shot=1, as_published=FIXED, seed=0)


def test_too_few_people_is_an_error_that_says_who_and_how_many(questions: Questions) -> None:
    with pytest.raises(DataError, match=r"expected 4 people .* \(forget\), found 3. Lower --few-shot"):
        ask(questions, ALL, 4)
    alone = {**questions, "retain-seen": [], "retain-heldout": []}
    with pytest.raises(DataError, match=r"expected 1 people .* found 0"):
        ask(alone, FIXED)


@pytest.mark.parametrize("published", [FIXED, ALL])
def test_controls_are_asked_as_forget_people_are(questions: Questions, published: frozenset[str]) -> None:
    with_controls = {**questions, "forget": [], "test": [], "controls": questions["forget"]}
    controls = [item for item in ask(with_controls, published) if item.split == "controls"]
    forget = [item for item in ask(questions, published) if item.split == "forget"]
    assert len(controls) >= len(forget) - 10  # as published, whoever is drawn may have no choices to leave out
    for item in controls:
        number = {"classification": 5, "cloze": 4}.get(item.example.task, 0)
        assert item.prompt.messages[0].content.count("Correct Answer") == number


def test_blocks_stand_behind_the_pictures_of_earlier_turns(questions: Questions) -> None:
    first, last = EncodedImage(b"first", "first"), EncodedImage(b"last", "last")
    turns = (
        Message("user", "<image> Who is this?"),
        Message("assistant", "Ada."),
        Message("user", "<image>\nBorn in __."),
    )
    example = Example(id="x", people=("9",), images=(first, last), messages=turns, answer="Lima", task="cloze")
    (item,) = [item for item in ask({**questions, "forget": [example]}, FIXED) if item.split == "forget"]
    assert item.prompt.images[0] == first
    assert item.prompt.images[-1] == last
    assert len(item.prompt.images) == 2 + 2 * 2
    assert item.prompt.messages[:2] == turns[:2]


def test_a_published_text_is_one_string() -> None:
    example = Example(id="q", people=("1",), images=(), messages=ask_about(None, "In __?"), answer="Lima", task="cloze")
    assert published_text(official_prompt(example)) == (
        "USER:\nIn [Blank]?\nPlease **ONLY** provide the correct answer that should replace the [Blank].\nASSISTANT:"
    )
