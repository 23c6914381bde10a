"""Scores under `official` are the published loop's, on awkward replies; corrections change what they say, no more."""

import random
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import viker
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import rouge_scorer
from viker.data.example import DataError
from viker.data.sidecar import Sidecar
from viker.evaluate.answers import Answer
from viker.evaluate.protocols.corrections import CORRECTIONS, NOT_SWITCHED, PROTOCOLS, as_published
from viker.evaluate.protocols.effects import effects, effects_table, published_of
from viker.evaluate.protocols.metrics import (
    ScriptTokenizer,
    answer_scores,
    bleu_of_short,
    cut_reply,
    in_text,
    in_words,
    published_bleu,
    published_rouge,
    rouge_of_scripts,
)
from viker.evaluate.protocols.official_scores import official_table
from viker.evaluate.score import person_scores

ALL = as_published("official")
FIXED: frozenset[str] = frozenset()
OPTIONS = (("A", "Oslo"), ("B", "Lima"), ("C", "Riga"), ("D", "Cork"))
REPLIES = [
    "", " ", "B", "b", "A)", " a.", "b: Lima", "(B)", "Lima", "The answer is B", "E", "ß", "李", "\n\nB",
    "B\nASSISTANT: A", "ASSISTANT: B", "USER: B", "lima", "She was born in Lima.", "in Lima ASSISTANT: in Oslo",
    "Malmö", "malmo", "Søren lives in Malmö", "李明住在北京", "yes", "I know nothing", "a b c", "one two two",
    "well-known: 3.5 km!", "No.",
]  # fmt: skip
EXPECTED = [
    "Lima", "no", "Malmö", "李明", "北京", "yes", "She was born in Lima.", "one two two", "New York", "3.5 km", "c a t",
]  # fmt: skip


def answer(task: str = "generation", *, expected: str, reply: str | None, **fields: object) -> Answer:
    plain = Answer(
        model="vanilla",
        split="forget",
        task=task,
        modality="image",
        person="001",
        id="001/0",
        question="Q?",
        expected=expected,
        reply=reply,
        options=OPTIONS if task == "classification" else (),
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


# The published loop's parsing and metrics, from reference/benchmarks.md, section 1.5: what is decoded holds the prompt.


def assistant_response(reply: str) -> str:
    generated_text = f"USER:  \nQ?\nASSISTANT: {reply}"
    return generated_text.split("ASSISTANT:")[1].strip()


def published_letter(reply: str, options: dict[str, str]) -> str | None:
    response = assistant_response(reply)
    return response[0].upper() if response and response[0].upper() in options else None


def compute_bleu(ground_truth: str, predicted_answer: str) -> float:
    smoothing = SmoothingFunction().method1
    return float(sentence_bleu([ground_truth.split()], predicted_answer.split(), smoothing_function=smoothing))


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("expected", ["A", "B"])
def test_a_letter_is_the_published_one_under_both(reply: str, expected: str) -> None:
    right = float(published_letter(reply, dict(OPTIONS)) == expected)
    kept = answer("classification", expected=expected, reply=reply)
    assert answer_scores(kept, ALL) == {"accuracy_letter": right, "accuracy": right}
    assert answer_scores(kept, FIXED) == {"accuracy_letter": right, "accuracy": right}  # no likelihoods: the letter


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("expected", EXPECTED)
def test_open_answers_score_as_published(reply: str, expected: str) -> None:
    response = assistant_response(reply)
    cloze = answer_scores(answer("cloze", expected=expected, reply=reply), ALL)
    assert cloze == {"accuracy": float(expected.lower() in response.lower())}
    rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(expected, response)
    wanted = {name: score.fmeasure for name, score in rouge.items()}
    assert answer_scores(answer(expected=expected, reply=reply), ALL) == {
        **wanted,
        "sentence_bleu": compute_bleu(expected, response),
    }


def test_the_headline_of_a_choice_is_the_likeliest_option_and_as_published_the_letter() -> None:
    kept = answer("classification", expected="B", reply="A.", option_logprobs=(("A", -3.0, 1), ("B", -4.0, 2)))
    assert answer_scores(kept, FIXED) == {"accuracy_likelihood": 1.0, "accuracy_letter": 0.0, "accuracy": 1.0}
    assert answer_scores(kept, frozenset({"choice-letter"}))["accuracy"] == 0.0
    unasked = replace(kept, reply=None)
    assert answer_scores(unasked, ALL) == {"accuracy_likelihood": 1.0, "accuracy": 1.0}


@pytest.mark.parametrize(
    ("expected", "reply", "published", "ours"),
    [
        ("no", "I know nothing", True, False),
        ("art", "start", True, False),
        ("no", "No.", True, True),
        ("Lima", "born in LIMA, Peru", True, True),
        ("New York", "in New\n York", False, True),  # one place, two lines
        ("café", "cafe\u0301", False, True),  # one word, two spellings
        ("straße", "STRASSE", False, True),
        ("3.5 km", "13.5 km", True, False),
        ("C++", "C++ and Rust", True, True),
        ("北京", "他住在北京市", True, True),  # no spaces between words: no edges
        ("Lima", "", False, False),
    ],
)
def test_cloze_finds_whole_words(expected: str, reply: str, published: bool, ours: bool) -> None:
    assert in_text(expected, reply) is published
    assert in_words(expected, reply) is ours


def test_a_reply_ends_at_the_marker_as_published() -> None:
    assert cut_reply(" Lima\nASSISTANT: Oslo") == "Lima"
    assert cut_reply("ASSISTANT: Lima") == ""
    kept = answer("cloze", expected="Lima", reply="ASSISTANT: Lima")
    assert answer_scores(kept, FIXED) == {"accuracy": 1.0}
    assert answer_scores(kept, frozenset({"reply-cut"})) == {"accuracy": 0.0}


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
def test_words_of_every_script_change_nothing_on_ascii(expected: str, reply: str) -> None:
    assert rouge_of_scripts(expected, reply) == published_rouge(expected, reply)


@given(st.text("abcd e", min_size=7), st.text("abcd e"))
def test_bleu_of_four_words_or_more_is_the_published_one(expected: str, reply: str) -> None:
    short = len(expected.split()) < 4
    assert short or bleu_of_short(expected, reply) == published_bleu(expected, reply)
    assert 0.0 <= bleu_of_short(expected, reply) <= 1.0


@pytest.mark.parametrize("expected", ["Малмё", "李明", "Malmö", "हिन्दी", "ไทย", "Ελλάδα", "yes", "Lima Peru", "a b c"])
def test_a_perfect_answer_scores_one_in_every_script_and_length(expected: str) -> None:
    scores = answer_scores(answer(expected=expected, reply=expected), FIXED)
    assert scores["rouge1"] == scores["rougeL"] == 1.0
    assert scores["sentence_bleu"] == pytest.approx(1.0)
    assert answer_scores(answer(expected=expected, reply="zzz"), FIXED)["rougeL"] == 0.0
    assert answer_scores(answer(expected=expected, reply="zzz"), FIXED)["sentence_bleu"] == 0.0


def test_what_the_published_metrics_make_of_short_and_foreign_answers() -> None:
    assert published_rouge("Малмё", "Малмё")["rougeL"] == 0.0
    assert published_bleu("yes", "yes") == pytest.approx(0.1778, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Running to Malmö, 3.5 km!", ["run", "to", "malmö", "3", "5", "km"]),
        ("李明 in 北京 2024年", ["李", "明", "in", "北", "京", "2024", "年"]),
        ("snake_case", ["snake", "case"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("\u0301 ", ["\u0301"]),
        ("", []),
    ],
)
def test_words_of_scripts(text: str, words: list[str]) -> None:
    assert ScriptTokenizer().tokenize(text) == words


def some_answers(seed: int, model: str = "vanilla") -> list[Answer]:
    """Return answers of every split, task and modality, replies drawn from awkward ones."""
    rng = random.Random(seed)
    return [
        answer(
            task, model=model, split=split, modality=modality, person=f"{person:03d}", reply=rng.choice(REPLIES),
            id=f"{split}/{person}/{task}/{modality}/{index}",
            expected=rng.choice("ABCD") if task == "classification" else rng.choice(EXPECTED),
        )
        for split in ("forget", "test", "retain-seen", "retain-heldout", "real")
        for task in ("classification", "cloze", "generation")
        for modality in ("image", "text")
        for person in range(3)
        for index in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_official_table_is_the_published_loop_s(seed: int) -> None:
    answers = some_answers(seed)
    modes = {
        "Forget Set Results": ("forget",),
        "Test Set Results": ("test",),
        "Retain Set (shared dataset) Results": ("retain-seen", "retain-heldout"),
        "Retain Set (real person) Results": ("real",),
    }
    wanted: dict[str, dict[str, dict[str, float]]] = {}
    for title, splits in modes.items():
        correct, total, sums = {}, {}, {}  # type: dict[str, int], dict[str, int], dict[str, float]
        counts: dict[str, int] = {}
        for kept in answers:
            if kept.split not in splits:
                continue
            is_image = kept.modality == "image"
            response = assistant_response(kept.reply or "")
            if kept.task == "classification":
                key = "Image-Textual Question Accuracy" if is_image else "Pure Text Question Accuracy"
                hit = published_letter(kept.reply or "", dict(kept.options)) == kept.expected
            elif kept.task == "cloze":
                key = "image_textual_accuracy" if is_image else "pure_text_accuracy"
                hit = kept.expected.lower() in response.lower()
            else:
                kind = "Image_Textual" if is_image else "Pure_Text"
                rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
                scores = rouge.score(kept.expected, response)
                for name, label in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
                    key = f"Average {label} ({kind})"
                    sums[key] = sums.get(key, 0) + scores[name].fmeasure
                sums[f"Average BLEU ({kind})"] = sums.get(f"Average BLEU ({kind})", 0) + compute_bleu(
                    kept.expected, response
                )
                counts[kind] = counts.get(kind, 0) + 1
                continue
            correct[key] = correct.get(key, 0) + hit
            total[key] = total.get(key, 0) + 1
        accuracies = {key: correct[key] / total[key] * 100 for key in total}
        wanted[title] = {
            "fill_in_the_blank": {key: value for key, value in accuracies.items() if "_accuracy" in key},
            "classification": {key: value for key, value in accuracies.items() if "Accuracy" in key},
            "generation": {key: value / counts[key.split("(")[1][:-1]] for key, value in sums.items()},
        }
    found = official_table(answers)
    assert list(found) == list(wanted)
    for title, tasks in wanted.items():
        assert list(found[title]) == list(tasks)
        for task, values in tasks.items():
            assert found[title][task] == pytest.approx(values)


def test_the_official_table_leaves_out_what_was_not_asked() -> None:
    answers = [kept for kept in some_answers(0) if kept.split == "test" and kept.task == "cloze"]
    assert official_table([]) == {}
    assert list(official_table(answers)) == ["Test Set Results"]
    one = [kept for kept in answers if kept.modality == "text"]
    assert list(official_table(one)["Test Set Results"]["fill_in_the_blank"]) == ["pure_text_accuracy"]
    unread = answer("classification", expected="A", reply="", option_logprobs=(("A", -1.0, 1),), modality="image")
    unread = replace(unread, reply=None)
    assert official_table([unread]) == {"Forget Set Results": {"classification": {}}}
    with pytest.raises(DataError, match=r"one model, found those of other, vanilla"):
        official_table([*answers, *some_answers(0, "other")])


def test_person_scores_average_to_the_scores_of_all() -> None:
    answers = some_answers(4)
    records = person_scores(answers, None)
    assert {record.person for record in records} == {"000", "001", "002"}
    for published in (FIXED, ALL):
        cell = [a for a in answers if (a.split, a.task, a.modality) == ("test", "cloze", "image")]
        mine = [
            record for record in person_scores(answers, None, published)
            if (record.split, record.task, record.modality, record.metric) == ("test", "cloze", "image", "accuracy")
        ]  # fmt: skip
        total = sum(answer_scores(a, published)["accuracy"] for a in cell)
        assert sum(record.value * record.n for record in mine) == pytest.approx(total)
        assert sum(record.n for record in mine) == len(cell)


def test_person_scores_count_facts() -> None:
    facts = Sidecar(candidates={"town": ("Lima", "Oslo")}, facts={"001": {"town": "Lima"}, "002": {"town": "Oslo"}})
    answers = [
        answer(expected="In Lima.", reply="In Lima."),
        answer(expected="In Oslo.", reply="In Lima.", person="002", id="002/0"),
        answer(expected="So.", reply="So.", person="003", id="003/0"),
    ]
    recall = {r.person: (r.value, r.n) for r in person_scores(answers, facts) if r.metric == "fact_recall"}
    assert recall == {"001": (1.0, 1), "002": (0.0, 1)}
    assert person_scores([], facts) == []


def test_effects_hold_every_correction_beside_fixed() -> None:
    kept = [
        answer("cloze", expected="no", reply="I know nothing"),
        answer("cloze", expected="Lima", reply="Lima", id="001/1", split="retain-seen"),
        answer("cloze", expected="Lima", reply="Oslo", id="001/2", split="retain-heldout"),
    ]
    rows = effects({"fixed": kept, "official": kept, "few-shot-people": kept[1:]}, None)
    found = {(row.variant, row.mode): (row.value, row.change, row.n) for row in rows}
    assert found["fixed", "forget"] == (0.0, 0.0, 1)
    assert found["cloze-words", "forget"] == (1.0, 1.0, 1)
    assert found["official", "forget"] == (1.0, 1.0, 1)
    assert found["bleu-short", "retain"] == (0.5, 0.0, 2)
    assert ("few-shot-people", "forget") not in found
    assert ("few-shot-scored", "retain") not in found  # was not asked
    table = effects_table(rows).splitlines()
    assert table[0] == "| model | variant | forget cloze accuracy | retain cloze accuracy |"
    assert "| vanilla | cloze-words | 1.000 | 0.500 |" in table
    assert "| vanilla | few-shot-people | - | 0.500 |" in table
    with pytest.raises(DataError, match="expected answers of the variant fixed, found official"):
        effects({"official": kept}, None)


def test_a_protocol_is_a_set_of_corrections() -> None:
    assert as_published("fixed") == frozenset()
    assert as_published("official") == frozenset(CORRECTIONS)
    assert as_published("fixed", ["cloze-words"]) == published_of("cloze-words") == {"cloze-words"}
    assert published_of("fixed") == FIXED
    assert published_of("official") == ALL
    assert PROTOCOLS == ("fixed", "official")
    with pytest.raises(DataError, match=r"--as-published: expected some of few-shot-people, .* found cloze"):
        as_published("fixed", ["cloze"])
    with pytest.raises(DataError, match="expected none beside --protocol official"):
        as_published("official", ["cloze-words"])


def test_every_record_says_all_of_it() -> None:
    for name, correction in CORRECTIONS.items():
        assert name == correction.name
        assert all((correction.where, correction.published, correction.ours, correction.why))
        assert "|" not in correction.published + correction.ours + correction.why  # they stand in a table
    assert len({title for title, _ in NOT_SWITCHED}) == len(NOT_SWITCHED)


def test_the_page_lists_the_records() -> None:
    root = Path(viker.__file__).parent
    page = (root / "docs" / "protocols.md").read_text(encoding="utf-8")
    render = runpy.run_path(str(root / "docs" / "write_protocols.py"))["render"]
    assert render(page) == page, "docs/protocols.md is old: run `python docs/write_protocols.py`"
