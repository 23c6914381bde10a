"""CLEAR's numbers against few-line numpy versions of the published formulas, rouge_score and scipy themselves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.spatial.distance import jensenshannon
from scipy.stats import hmean, ks_2samp
from viker.data.example import DataError
from viker.evaluate.answers import Answer, answer_line, parse_answers
from viker.evaluate.measures.statistics import MIN_CLUSTERS
from viker.evaluate.protocols.clear_corrections import CORRECTIONS
from viker.evaluate.protocols.clear_logs import FILES, eval_logs
from viker.evaluate.protocols.clear_metrics import answer_metrics, answer_scores, kind_of, log_truth_ratio
from viker.evaluate.protocols.clear_scores import clear_scores, unmeasured
from viker.evaluate.protocols.clear_table import clear_table, js_distance

OFFICIAL, FIXED = frozenset(CORRECTIONS), frozenset[str]()
CAPTION = Answer(
    model="vanilla",
    split="forget",
    task="captioning",
    modality="image",
    person="Ada Li",
    id="forget10_perturbed/00000/captioning",
    question="What is depicted in the image?",
    expected="Ada Li reads a book by the sea.",
    reply="Ada Li is reading books",
    answer_logprob=(-6.0, 8),
    paraphrase_logprob=(-9.0, 9),
    wrong_logprobs=((-12.0, 8), (-20.0, 10)),
)
FACE = replace(
    CAPTION, task="recognition", id="forget10_perturbed/00000/recognition", expected="Ada Li", reply="It is Ada Li.",
    answer_logprob=(-1.0, 2), paraphrase_logprob=None, wrong_logprobs=((-4.0, 2), (-3.0, 1)),
)  # fmt: skip
WORLD = replace(FACE, split="real", task="generation", id="real_world/00000/generation", person="Paris",
                expected="Paris", reply="Paris")  # fmt: skip
QA = replace(
    CAPTION, task="generation", modality="text", id="forget10+tofu/00000/generation", expected="A novel.",
    reply="novels", answer_logprob=(-3.0, 3), paraphrase_logprob=None, wrong_logprobs=(),
)  # fmt: skip
CHOICE = replace(
    FACE, task="classification", id="forget10_perturbed/00000/recognition/options", expected="B", reply="Ada Li",
    options=(("A", "Bo Ra"), ("B", "Ada Li")), option_logprobs=(("A", -4.0, 2), ("B", -1.0, 2)), answer_logprob=None,
    wrong_logprobs=(),
)  # fmt: skip


def world(seed: int, model: str = "vanilla", people: int = 20, rows_each: int = 3, shift: float = 0.0) -> list[Answer]:
    """Answers to every task, with random likelihoods; `shift` makes the forget truths less likely."""
    rng, answers = np.random.default_rng(seed), []

    def logprob(mean: float) -> tuple[float, int]:
        tokens = int(rng.integers(1, 12))
        return float(-tokens * abs(rng.normal(mean, 0.3))), tokens

    places = [
        ("forget", "captioning", "forget10_perturbed"), ("forget", "recognition", "forget10_perturbed"),
        ("retain", "captioning", "retain_perturbed"), ("retain", "recognition", "retain_perturbed"),
        ("real", "recognition", "real_faces"), ("real", "generation", "real_world"),
    ]  # fmt: skip
    for split, task, config in places:
        for row in range(people * rows_each):
            person = row // rows_each
            half = ("-seen", "-heldout")[person % 2] if split == "retain" else ""
            truth = 0.6 + shift * (split == "forget")
            caption = task == "captioning"
            answers.append(
                replace(
                    CAPTION, model=model, split=split + half, task=task, person=f"{split} {person:03}",
                    id=f"{config}/{row:05}/{task}", expected="a tall person reads" if caption else f"Name{person} Li",
                    reply="the tall persons read" if row % 3 else "", answer_logprob=logprob(truth),
                    paraphrase_logprob=logprob(truth + 0.1) if caption else None,
                    wrong_logprobs=tuple(logprob(1.6) for _ in range(4)),
                )
            )  # fmt: skip
    blind = [replace(a, id=f"{a.id}/no-picture", modality="text", reply="a tall one", answer_logprob=None,
                     paraphrase_logprob=None, wrong_logprobs=()) for a in answers]  # fmt: skip
    return answers + blind


# ---- one answer


def test_each_kind_of_question_has_its_numbers() -> None:
    assert {kind_of(answer) for answer in (CAPTION, FACE, WORLD, QA, CHOICE)} == {
        "captioning", "recognition", "real-world", "qa", "options",
    }  # fmt: skip
    assert kind_of(replace(CAPTION, task="cloze")) is None
    assert answer_metrics(replace(CAPTION, task="cloze")) == {}
    assert set(answer_scores(CAPTION)) == {"probability", "truth_ratio", "rougeL_recall", "name_recall"}
    assert set(answer_scores(FACE)) == {*answer_scores(CAPTION), "accuracy_likelihood"}
    assert set(answer_scores(WORLD)) == set(answer_scores(FACE)) - {"name_recall"}
    assert set(answer_scores(QA)) == {"probability", "rougeL_recall"}
    assert set(answer_scores(CHOICE)) == {"accuracy", "accuracy_letter", "accuracy_likelihood"}
    assert "name_recall" not in answer_scores(replace(CAPTION, expected="A woman reads."))


def test_probabilities_are_per_token_and_among_wrong_answers_where_there_is_no_caption() -> None:
    assert answer_scores(CAPTION)["probability"] == pytest.approx(np.exp(-6 / 8))
    p, wrong = np.exp(-1 / 2), np.exp([-4 / 2, -3 / 1])
    assert answer_scores(FACE)["probability"] == pytest.approx(p / (p + wrong.sum()))
    assert answer_scores(QA)["probability"] == pytest.approx(np.exp(-1))


def test_probabilities_survive_a_model_that_has_diverged() -> None:
    far = replace(FACE, answer_logprob=(-5000.0, 1), wrong_logprobs=((-4000.0, 1),))
    assert answer_scores(far) == pytest.approx(
        {"probability": 0, "truth_ratio": 0, "accuracy_likelihood": 0, "rougeL_recall": 1, "name_recall": 1}
    )
    near = replace(FACE, answer_logprob=(-4000.0, 1), wrong_logprobs=((-5000.0, 1),), split="real")
    assert answer_scores(near)["probability"] == answer_scores(near)["truth_ratio"] == 1.0


@pytest.mark.parametrize("answer", [CAPTION, FACE, WORLD, replace(FACE, answer_logprob=(-9.0, 2), split="real")])
def test_the_truth_ratio_is_of_the_losses_and_folds_by_split(answer: Answer) -> None:
    truth = answer.paraphrase_logprob if answer.task == "captioning" else answer.answer_logprob
    assert truth is not None
    ratio = np.exp(np.mean([-s / n for s, n in answer.wrong_logprobs]) - -truth[0] / truth[1])
    assert np.exp(log_truth_ratio(answer) or 0.0) == pytest.approx(ratio)
    folded = min(ratio, 1 / ratio) if answer.split == "forget" else max(0, 1 - 1 / ratio)
    assert answer_scores(answer)["truth_ratio"] == pytest.approx(folded)


TEXTS = ["", " ", "Ada", "Ada Li reads.", "ada li READS the books", "李明", "Ёлкин", "José Núñez", "!?", "3.5 km"]


@pytest.mark.parametrize("expected", TEXTS)
@pytest.mark.parametrize("reply", TEXTS)
def test_rouge_recall_is_rouge_scores_where_both_are_ascii(expected: str, reply: str) -> None:
    answer = replace(CAPTION, expected=expected, reply=reply)
    library = RougeScorer(["rougeL"], use_stemmer=True).score(expected, reply)["rougeL"].recall
    assert answer_scores(answer, OFFICIAL)["rougeL_recall"] == library
    ours = answer_metrics(answer)["rougeL_recall"]
    if not any(character.isalnum() for character in expected):
        assert ours is None
    elif expected.isascii() and reply.isascii():
        assert ours == library
    elif expected == reply:
        assert ours == 1.0


def test_what_an_answer_lacks_is_not_measured_and_never_zero() -> None:
    bare = {"answer_logprob": None, "paraphrase_logprob": None, "wrong_logprobs": ()}
    assert answer_metrics(replace(CAPTION, paraphrase_logprob=None))["truth_ratio"] is None
    assert answer_metrics(replace(CAPTION, wrong_logprobs=()))["truth_ratio"] is None
    assert answer_scores(replace(CAPTION, **bare)) == {"rougeL_recall": 4 / 8, "name_recall": 1.0}  # ada li read book
    assert set(answer_scores(replace(FACE, **bare))) == {"rougeL_recall", "name_recall"}
    silent = replace(CHOICE, reply=None)
    assert answer_metrics(silent) == {"accuracy": 1.0, "accuracy_letter": None, "accuracy_likelihood": 1.0}
    assert answer_metrics(replace(CHOICE, option_logprobs=())) == {
        "accuracy": 1.0, "accuracy_letter": 1.0, "accuracy_likelihood": None,
    }  # fmt: skip
    missing = unmeasured([CAPTION, replace(CAPTION, id="1", paraphrase_logprob=None), replace(FACE, **bare)])
    assert missing == {
        ("vanilla", "forget", "captioning", "image", "truth_ratio"): 1,
        **{("vanilla", "forget", "recognition", "image", metric): 1
           for metric in ("probability", "truth_ratio", "accuracy_likelihood")},
    }  # fmt: skip


def test_official_parsing_is_the_published_one() -> None:
    assert answer_scores(CHOICE, OFFICIAL) == {"accuracy": 0, "accuracy_letter": 0, "accuracy_likelihood": 1}
    assert answer_scores(CHOICE)["accuracy_letter"] == 1
    assert answer_scores(FACE, OFFICIAL)["name_recall"] == 0, "a cased name never matches"
    assert answer_scores(replace(FACE, expected="ada"), OFFICIAL)["name_recall"] == 1


def test_a_tie_of_likelihoods_is_no_recognition() -> None:
    assert answer_scores(replace(FACE, wrong_logprobs=((-1.0, 2),)))["accuracy_likelihood"] == 0


# ---- long-form scores


def test_records_are_means_over_answers_and_halves_stay_apart() -> None:
    answers = [answer for answer in world(0) if answer.modality == "image"]
    records = {(r.split, r.task, r.metric): r for r in clear_scores(answers, seed=0)}
    assert {split for split, _, _ in records} == {"forget", "retain-seen", "retain-heldout", "real"}
    for (split, task, metric), record in records.items():
        values = [answer_scores(a)[metric] for a in answers if (a.split, a.task) == (split, task)]
        assert (record.value, record.n) == (pytest.approx(np.mean(values)), len(values))
        assert (record.ci is not None) == (not split.startswith("retain")), "ten people in a half are too few"
    interval = records["forget", "captioning", "truth_ratio"].ci
    assert interval
    assert interval[0] < records["forget", "captioning", "truth_ratio"].value < interval[1]


@pytest.mark.parametrize(("people", "has"), [(1, False), (MIN_CLUSTERS - 1, False), (MIN_CLUSTERS, True)])
def test_intervals_need_people(people: int, has: bool) -> None:
    answers = [replace(CAPTION, person=f"{i}", id=f"{i}/{j}") for i in range(people) for j in range(20)]
    assert {record.ci is not None for record in clear_scores(answers, seed=0)} == {has}


def test_in_records_as_published_wrong_answers_are_those_of_all_rows() -> None:
    other = replace(CAPTION, id="1", paraphrase_logprob=(-3.0, 3), wrong_logprobs=((-30.0, 3),))
    [record] = [r for r in clear_scores([CAPTION, other], 0, OFFICIAL) if r.metric == "truth_ratio"]
    mean = np.mean([12 / 8, 20 / 10, 30 / 3])
    ratios = np.exp(mean - np.array([9 / 9, 3 / 3]))
    assert record.value == pytest.approx(np.mean(np.minimum(ratios, 1 / ratios)))


def test_text_questions_are_scored_by_the_last_caption_as_published_only() -> None:
    rows = [CAPTION, replace(CAPTION, id="1", reply="A novel."), QA]
    value = {form: {(r.task, r.metric): r.value for r in clear_scores(rows, 0, form)} for form in (FIXED, OFFICIAL)}
    assert value[FIXED]["generation", "rougeL_recall"] == 0.5
    assert value[OFFICIAL]["generation", "rougeL_recall"] == 1.0
    assert {(r.task, r.metric): r.value for r in clear_scores([QA], 0, OFFICIAL)}["generation", "rougeL_recall"] == 0.5


# ---- the published table


def literal_table(logs: dict[str, Any], gold: dict[str, Any]) -> dict[str, float]:
    """The published formulas over the published file format, bugs included, in as few lines as they take."""

    def column(log: dict[str, Any], name: str) -> Any:
        return np.array(list(log[name].values()))

    def ratios(log: dict[str, Any]) -> Any:
        return np.exp(column(log, "average_perturb_loss").mean() - column(log, "avg_paraphrased_loss"))

    names, table = {file: task for task, file in FILES.items()}, {}
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for file, log in logs.items():
        p, R = np.exp(-column(log, "avg_gt_loss")), ratios(log)
        among = p / (p + np.exp(-column(log, "average_perturb_loss")).sum(axis=1))
        folded = np.minimum(R, 1 / R) if "forget" in file else np.maximum(0, 1 - 1 / R)
        recalls = [scorer.score(truth, text)["rougeL"].recall for _, text, truth in log["generated_text"].values()]
        table[f"Prob. {names[file]}"] = (p if "eval_log" in file else among).mean()
        table[f"ROUGE {names[file]}"] = np.mean(recalls)
        table[f"Truth Ratio {names[file]}"] = folded.mean()
    table["Model Utility"] = hmean([value for name, value in table.items() if "Forget" not in name])
    for group, tasks in {"Real": ("Real Faces", "Real World"), "Retain": ("Retain", "Retain FaceRec"),
                         "Forget": ("Forget", "Forget FaceRec")}.items():  # fmt: skip
        parts = [table[f"{number} {task}"] for number in ("Prob.", "Truth Ratio") for task in tasks]
        table[f"{group} metric"] = hmean(parts)
    pair = [ratios(each["eval_log_forget.json"]) for each in (logs, gold)]
    return table | {"JS metric": jensenshannon(*pair), "Forget Quality": 1 - jensenshannon(*pair),
                    "KS test p-value": ks_2samp(*pair).pvalue}  # fmt: skip


@pytest.mark.parametrize("rows_each", [1, 3, 16])
def test_the_official_table_is_that_of_the_published_formulas(rows_each: int) -> None:
    unlearned, gold = world(1, rows_each=rows_each, shift=0.4), world(2, "gold", rows_each=rows_each, shift=0.9)
    table = clear_table(unlearned, gold, OFFICIAL)
    (logs, lacking), (gold_logs, _) = (
        json.loads(json.dumps(eval_logs(answers, OFFICIAL))) for answers in (unlearned, gold)
    )
    assert set(lacking.values()) == {0}
    literal = literal_table(logs, gold_logs)
    assert {name: table["values"][name] for name in literal} == pytest.approx(literal)
    assert not any("Seen" in name for name in table["values"])
    cut = [note for note in table["notes"] if "the first 300 of 320" in note]
    assert len(cut) == len(table["notes"]) == (6 if rows_each == 16 else 0)


def test_the_official_rows_are_the_first_of_the_source_whatever_their_half() -> None:
    logs, _ = eval_logs(list(reversed(world(3, rows_each=16))), OFFICIAL)
    ordered = [a for a in world(3, rows_each=16) if a.split.startswith("retain") and a.task == "captioning"]
    losses = [-a.answer_logprob[0] / a.answer_logprob[1] for a in ordered if a.answer_logprob][:300]
    assert list(logs["eval_log.json"]["avg_gt_loss"].values()) == losses


def test_the_fixed_table_takes_each_row_by_itself_and_the_held_out_half() -> None:
    answers = world(4, rows_each=16)
    values = clear_table(answers, None)["values"]
    chosen = {
        "Retain": ("retain-heldout", "captioning"), "Retain Seen": ("retain-seen", "captioning"),
        "Retain FaceRec": ("retain-heldout", "recognition"), "Forget": ("forget", "captioning"),
        "Real World": ("real", "generation"),
    }  # fmt: skip
    for task, place in chosen.items():
        scores = [answer_scores(a) for a in answers if (a.split, a.task) == place and a.modality == "image"]
        for name, metric in {"Prob.": "probability", "ROUGE": "rougeL_recall", "Truth Ratio": "truth_ratio"}.items():
            assert values[f"{name} {task}"] == pytest.approx(np.mean([score[metric] for score in scores]))
    utility = [v for name, v in values.items() if v is not None and name.split()[0] in ("Prob.", "ROUGE", "Truth")
               and not any(part in name for part in ("Forget", "Seen"))]  # fmt: skip
    assert len(utility) == 12
    assert values["Model Utility"] == pytest.approx(hmean(utility))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_one_correction_can_be_reverted_at_a_time_and_each_changes_something(name: str) -> None:
    rows_each = 16 if name == "first-rows" else 2
    answers, gold = (world(5 + index, "vanilla", rows_each=rows_each, shift=index / 2) for index in (0, 1))
    cyrillic = {"expected": "Ёлка", "reply": "Ёлка"}
    answers = [replace(a, **cyrillic) if a.split == "forget" and a.modality == "image" else a for a in answers]
    fixed, reverted = (clear_table(answers, gold, form)["values"] for form in (FIXED, frozenset({name})))
    assert (reverted != fixed) is ("CLEAR_eval" not in CORRECTIONS[name].where)


def test_without_retain_only_or_a_task_nothing_is_made_up() -> None:
    table = clear_table([a for a in world(7) if a.split != "real"], None)
    assert table["values"]["Real metric"] is None
    assert table["values"]["Prob. Real World"] is None
    assert table["values"]["Model Utility"] is None
    assert table["values"]["Forget Quality"] is table["values"]["KS test p-value"] is None
    assert 0 < table["values"]["Forget metric"] < 1
    assert "Real World: not measured, no answers were given" in table["notes"]
    assert "Forget Quality: not measured, no retain-only answers were given" in table["notes"]
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_rows_that_lack_a_piece_are_left_out_and_said() -> None:
    answers = world(8)
    lacks = [a for a in answers if a.split == "forget" and a.task == "captioning" and a.modality == "image"]
    broken = [replace(a, paraphrase_logprob=None) if a in lacks[:5] else a for a in answers]
    table = clear_table(broken, world(9, "gold"))
    assert any(note.startswith("Truth Ratio Forget: of 55 rows, 5 rows lack") for note in table["notes"])
    assert "Forget Quality: 5 rows lack the truth ratio of one of the models" in table["notes"]
    assert table["values"]["Truth Ratio Forget"] == pytest.approx(np.mean([answer_scores(a)["truth_ratio"] for a in
                                                                           lacks[5:]]))  # fmt: skip
    assert eval_logs(broken, OFFICIAL)[1]["eval_log_forget.json"] == 5
    none = [replace(a, wrong_logprobs=()) if a in lacks else a for a in answers]
    assert clear_table(none, None)["values"]["Truth Ratio Forget"] is None
    assert clear_table(none, None)["values"]["Forget metric"] is None


def test_official_rouge_needs_the_replies_without_pictures() -> None:
    seen_only = [answer for answer in world(10) if answer.modality == "image"]
    table = clear_table(seen_only, None, OFFICIAL)
    assert table["values"]["ROUGE Retain"] is None
    assert any(note.startswith("ROUGE Retain: not measured") for note in table["notes"])
    assert clear_table(seen_only, None)["values"]["ROUGE Retain"] is not None


def test_mixed_models_and_two_answers_to_a_question_are_refused() -> None:
    with pytest.raises(DataError, match="answers of one model, found gold, vanilla"):
        clear_table([*world(0), *world(0, "gold")], None)
    with pytest.raises(DataError, match="00000/captioning twice"):
        clear_table([CAPTION, CAPTION], None)


def test_one_person_and_one_row_have_a_table() -> None:
    table = clear_table(world(11, people=1, rows_each=1), world(12, "gold", people=1, rows_each=1))
    assert table["rows"]["Forget"] == 1
    assert table["rows"]["Retain"] == 0
    assert table["values"]["Forget Quality"] is not None


# ---- forget quality


def samples(seed: int, shift: float, number: int = 300) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, number), rng.normal(shift, 1, number)


def test_our_distance_is_of_histograms_in_bits() -> None:
    first, second = samples(0, 0.7)
    edges = np.quantile(np.concatenate([first, second]), np.arange(11) / 10)
    counts = [np.histogram(sample, bins=edges)[0] for sample in (first, second)]
    assert js_distance(first, second, FIXED) == pytest.approx(jensenshannon(*counts, base=2), abs=5e-3)
    assert js_distance(first, first + 100, FIXED) == 1.0
    assert js_distance(first, first, FIXED) == 0.0


def test_our_distance_sees_distributions_and_nothing_else() -> None:
    first, second = samples(1, 0.7)
    shuffled = np.random.default_rng(2).permutation(second)
    assert js_distance(first, shuffled, FIXED) == js_distance(first, second, FIXED)
    assert js_distance(np.exp(first), np.exp(second), FIXED) == js_distance(first, second, FIXED)
    assert js_distance(first, shuffled, OFFICIAL) != pytest.approx(js_distance(first, second, OFFICIAL))
    assert js_distance(first, first + 5, OFFICIAL) == pytest.approx(0, abs=1e-7), "published: a shift is not seen"


def test_published_distance_is_scipys_on_raw_ratios_even_where_they_overflow() -> None:
    first, second = samples(3, 0.5)
    assert js_distance(first, second, OFFICIAL) == pytest.approx(jensenshannon(np.exp(first), np.exp(second)))
    assert js_distance(first + 2000, second - 2000, OFFICIAL) == pytest.approx(js_distance(first, second, OFFICIAL))


def test_published_forget_quality_does_not_depend_on_the_wrong_captions() -> None:
    unlearned, gold = world(13, shift=0.5), world(14, "gold", shift=1.0)
    other = [replace(a, wrong_logprobs=tuple((3 * s, n) for s, n in a.wrong_logprobs)) for a in unlearned]
    for form, same in ((OFFICIAL, True), (FIXED, False)):
        qualities = [clear_table(answers, gold, form)["values"]["Forget Quality"] for answers in (unlearned, other)]
        assert (qualities[0] == pytest.approx(qualities[1])) is same


def test_forget_quality_rises_as_a_model_nears_the_gold_one() -> None:
    gold = world(15, "gold", shift=1.0)
    quality = {
        shift: clear_table(world(16, shift=shift), gold)["values"]["Forget Quality"] for shift in (0.0, 0.6, 1.0)
    }
    assert quality[0.0] < quality[0.6] < quality[1.0]
    same = clear_table(world(16, shift=1.0), gold)["values"]["Forget Quality (same distribution)"]
    assert quality[1.0] == pytest.approx(same, abs=0.08)
    itself = clear_table([replace(answer, model="copy") for answer in gold], gold)["values"]
    assert (itself["Forget Quality"], itself["KS test p-value"]) == (1.0, 1.0)


def test_ks_is_scipys_on_the_rows_that_both_models_have() -> None:
    unlearned, gold = world(17, shift=0.3), world(18, "gold", shift=0.6)
    table = clear_table([a for a in unlearned if a.id != "forget10_perturbed/00000/captioning"], gold)["values"]
    pair = [
        [
            log_truth_ratio(a)
            for a in answers
            if a.split == "forget" and a.task == "captioning" and a.modality == "image"
        ]
        for answers in (unlearned, gold)
    ]
    test = ks_2samp(*(np.array(ratios, dtype=float)[1:] for ratios in pair))
    assert (table["KS test statistic"], table["KS test p-value"]) == pytest.approx((test.statistic, test.pvalue))


def test_tables_of_answers_that_were_written_and_read_are_the_same() -> None:
    answers = world(19)
    again = parse_answers([answer_line(answer) for answer in answers])
    assert clear_table(again, None, OFFICIAL) == clear_table(answers, None, OFFICIAL)
    assert all(math.isfinite(record.value) for record in clear_scores(again, 0, OFFICIAL))
