"""Two models against each other, and runs that differ only by their seed, against scipy and plain means."""

import json
from dataclasses import replace

import numpy as np
import pytest
from kept_answers import ANSWER
from scipy import stats
from viker.data.example import DataError
from viker.data.sidecar import Sidecar
from viker.evaluate.answers import Answer
from viker.evaluate.measures.aggregate import Pooled, pool, pooled_json
from viker.evaluate.measures.compare import Compared, Comparison, as_json, as_text, compare
from viker.evaluate.measures.statistics import holm
from viker.evaluate.score import corpus_bleu, score_answers

PLAIN = ANSWER


def answers(levels: list[float], each: int = 2, **changes: str) -> list[Answer]:
    """One person a level; the n-th question of a person is n below it."""
    return [
        replace(
            PLAIN,
            person=f"{person:03}",
            id=f"{changes.get('split', '')}{person}/{place}",
            answer_logprob=((level - place) * 2, 2),
            **changes,
        )
        for person, level in enumerate(levels)
        for place in range(each)
    ]


def of(comparison: Comparison, metric: str) -> Compared:
    [found] = [record for record in comparison.records if record.metric == metric]
    return found


def test_the_test_is_over_people_of_all_worlds() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(-1, 1, (3, 4)), rng.normal(-2, 1, (3, 4))
    worlds = [(f"w{i}", answers(list(a[i])), answers(list(b[i]))) for i in range(3)]
    record = of(compare(worlds, {}, 0), "answer_logprob")
    assert (record.n, record.questions, record.without) == (12, 24, 0)
    assert record.a == pytest.approx(a.mean() - 0.5)
    assert record.b == pytest.approx(b.mean() - 0.5)
    assert record.difference == pytest.approx(record.b - record.a)
    scipys = stats.permutation_test(((b - a).ravel(),), lambda x, axis: x.mean(axis=axis), permutation_type="samples")
    assert record.p == pytest.approx(scipys.pvalue)


def test_people_with_more_questions_do_not_count_more() -> None:
    a = [*answers([0.0], each=1), *[replace(x, person="busy", id=f"busy/{x.id}") for x in answers([0.0], each=9)]]
    b = [replace(x, answer_logprob=((-8.0 if x.person == "busy" else 0.0), 2)) for x in a]
    record = of(compare([("w", a, b)], {}, 0), "answer_logprob")
    busy = np.mean([-4.0 + place for place in range(9)])
    assert record.difference == pytest.approx(busy / 2)


def test_the_same_ids_in_two_worlds_are_two_questions() -> None:
    worlds = [("w1", answers([-1.0]), answers([-2.0])), ("w2", answers([-1.0]), answers([-5.0]))]
    record = of(compare(worlds, {}, 0), "answer_logprob")
    assert (record.n, record.difference) == (2, -2.5)


def test_every_test_made_is_in_the_adjustment() -> None:
    a = [*answers([0.0] * 5), *answers([0.0] * 5, split="test")]
    b = [*answers([-1.0] * 5), *answers([-1.0] * 5, split="test")]
    comparison = compare([("w", a, b)], {}, 0)
    assert len({(record.split, record.metric) for record in comparison.records}) == len(comparison.records) == 18
    assert [record.p_holm for record in comparison.records] == holm([record.p for record in comparison.records])
    fewer = compare([("w", a, b)], {}, 0, metrics=["answer_logprob"])
    assert [(record.split, record.p, record.p_holm) for record in fewer.records] == [
        ("forget", 2 / 2**5, 4 / 2**5),
        ("test", 2 / 2**5, 4 / 2**5),
    ]


def test_what_only_one_side_has_is_counted_and_said() -> None:
    a, b = answers([0.0, 0.0, 0.0]), answers([0.0, 0.0])
    b[0] = replace(b[0], answer_logprob=None)
    comparison = compare([("w", a, [*b, replace(PLAIN, id="other")])], {}, 0)
    assert (comparison.only_a, comparison.only_b) == (2, 1)
    assert (of(comparison, "answer_logprob").questions, of(comparison, "answer_logprob").without) == (3, 1)
    text = as_text(comparison, "vanilla", "viker-1")
    assert "Left out: 2 questions asked of A only, 1 of B only." in text
    assert "Left out: 2 values that an answer of either side does not hold." in text  # and its probability


def test_a_metric_of_the_other_side_only_is_not_tested() -> None:
    a = [replace(answer, answer_logprob=None) for answer in answers([0.0])]
    metrics = {record.metric for record in compare([("w", a, answers([0.0]))], {}, 0).records}
    assert metrics == {"rouge1", "rouge2", "rougeL", "rougeL_recall", "sentence_bleu", "repetition", "blank_share"}


def test_facts_are_each_worlds_own() -> None:
    lima, oslo = ({"001": {"town": town}} for town in ("Lima", "Oslo"))
    facts = {"w1": Sidecar(candidates={"town": ("Lima", "Oslo")}, facts=lima), "w2": None}
    comparison = compare([("w1", [PLAIN], [replace(PLAIN, reply="Oslo")]), ("w2", [PLAIN], [PLAIN])], facts, 0)
    record = of(comparison, "fact_recall")
    assert (record.a, record.b, record.n) == (1.0, 0.0, 1)
    other = {"w1": Sidecar(candidates={"town": ("Lima", "Oslo")}, facts=oslo)}
    assert "fact_recall" not in {record.metric for record in compare([("w1", [PLAIN], [PLAIN])], other, 0).records}


def test_nothing_in_common_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"same questions, found none in common \(2 of A, 1 of B\)"):
        compare([("w", answers([0.0]), [replace(PLAIN, id="other")])], {}, 0)
    with pytest.raises(DataError, match="expected every world once, found w, w"):
        compare([("w", [PLAIN], [PLAIN]), ("w", [PLAIN], [PLAIN])], {}, 0)
    with pytest.raises(DataError, match=r"found none of nonsense\. Choose among rouge1"):
        compare([("w", [PLAIN], [PLAIN])], {}, 0, metrics=["nonsense"])


def test_the_table_and_the_json() -> None:
    comparison = compare([("w1", answers([-1.0] * 6), answers([-2.0] * 6))], {}, 0)
    text = as_text(comparison, "vanilla", "viker-1").splitlines()
    assert text[0] == "A = vanilla, B = viker-1; worlds: w1"
    assert " ".join(text[1].split()) == "split task modality metric A B B - A 95 % interval n p Holm p"
    [row] = [line for line in text if "answer_logprob" in line]
    assert " ".join(row.split()) == "forget generation image answer_logprob -1.5000 -2.5000 -1.0000 - 6 0.0312 0.2812"
    assert "A test over 6 has no p-value below 0.031 whatever the answers." in text[-1]
    value = as_json(comparison, "vanilla", "viker-1")
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert (value["schema"], value["a"], value["b"], value["tests"]) == ("viker/compare/1", "vanilla", "viker-1", 9)


def test_intervals_are_printed_from_eighteen_people_on() -> None:
    rng = np.random.default_rng(1)
    comparison = compare([("w", answers(list(rng.normal(0, 1, 18))), answers(list(rng.normal(1, 1, 18))))], {}, 0)
    assert "No interval" not in as_text(comparison, "a", "b")
    record = of(comparison, "answer_logprob")
    assert record.ci is not None
    assert record.ci[0] < record.difference < record.ci[1]


def pooled(records: list[Pooled], metric: str) -> Pooled:
    [found] = [record for record in records if record.metric == metric]
    return found


def test_pooled_values_are_over_answers_and_the_spread_is_over_runs() -> None:
    rng = np.random.default_rng(2)
    levels = rng.normal(-1, 1, (3, 6))
    runs = [(f"w{i}", answers(list(levels[i])), None) for i in range(3)]
    record = pooled(pool(runs, 0), "answer_logprob")
    by_run = levels.mean(axis=1) - 0.5
    assert (record.n, record.clusters, record.runs) == (36, 18, 3)
    assert record.value == pytest.approx(by_run.mean())
    assert record.run_mean == pytest.approx(by_run.mean())
    assert record.run_sd == pytest.approx(by_run.std(ddof=1))
    assert record.ci is not None, "three worlds of six people are eighteen clusters"
    assert record.ci[0] < record.value < record.ci[1]


def test_two_runs_on_one_world_are_no_new_people() -> None:
    runs = [("w", answers([-1.0] * 9), None), ("w", answers([-2.0] * 9), None)]
    record = pooled(pool(runs, 0), "answer_logprob")
    assert (record.n, record.clusters, record.runs, record.ci) == (36, 9, 2, None)
    apart = pooled(pool([("w1", *runs[0][1:]), ("w2", *runs[1][1:])], 0), "answer_logprob")
    assert (apart.clusters, apart.ci is None) == (18, False)


def test_bleu_has_the_same_clusters_as_everything_else() -> None:
    run = [
        replace(answer, reply="Born in Oslo long ago." if answer.person < "004" else answer.expected)
        for answer in answers([0.0] * 9)
    ]
    alike = pooled(pool([("w", run, None), ("w", run, None)], 0), "corpus_bleu")
    assert (alike.n, alike.clusters, alike.ci) == (36, 9, None)
    apart = pooled(pool([("w1", run, None), ("w2", run, None)], 0), "corpus_bleu")
    assert (apart.clusters, apart.ci is None) == (18, False)


def test_one_run_has_no_spread_and_a_metric_counts_the_runs_that_have_it() -> None:
    bare = [replace(answer, answer_logprob=None) for answer in answers([0.0])]
    assert pooled(pool([("w", bare, None)], 0), "rougeL").run_sd is None
    records = pool([("w1", answers([0.0]), None), ("w2", bare, None)], 0)
    assert (pooled(records, "answer_logprob").runs, pooled(records, "rougeL").runs) == (1, 2)


def test_pooling_one_run_gives_its_scores() -> None:
    replies = ["Born in Lima long ago.", "", "Born in Oslo.", "李明"]
    run = [replace(answer, reply=replies[i % 4]) for i, answer in enumerate(answers([-1.0] * 20))]
    records = pool([("w", run, None)], seed=3)
    for score in score_answers(run, None, seed=3):
        record = pooled(records, score.metric)
        assert (record.value, record.n) == (pytest.approx(score.value), score.n)
        assert record.ci == pytest.approx(score.ci)


def test_pooled_bleu_is_that_of_all_replies() -> None:
    first = answers([0.0] * 3)
    second = [replace(answer, reply="Born in Oslo long ago.") for answer in first]
    record = pooled(pool([("w1", first, None), ("w2", second, None)], 0), "corpus_bleu")
    everything = [*first, *second]
    assert record.value == pytest.approx(
        corpus_bleu([x.expected for x in everything], [x.reply or "" for x in everything])
    )
    values = [corpus_bleu([x.expected for x in run], [x.reply or "" for x in run]) for run in (first, second)]
    assert (record.run_mean, record.run_sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    choice = replace(PLAIN, task="cloze", expected="Lima")
    assert {one.metric for one in pool([("w", [choice], None)], 0)} == {"accuracy"}


def test_pooled_records_are_plain_json_and_nothing_is_an_error() -> None:
    value = pooled_json(pool([("w", answers([0.0] * 18), None)], 0))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["schema"] == "viker/pooled/1"
    with pytest.raises(DataError, match="expected evaluations to pool, found none"):
        pool([], 0)
