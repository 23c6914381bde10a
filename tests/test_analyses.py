"""The analyses of a study: counts and orders are what a textbook says, and pages and figures follow from them alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pool_caches import DISAGREEMENT, make_pool_cache
from sklearn.metrics import f1_score, roc_auc_score
from viker.data.example import DataError
from viker.data.sidecar import read_sidecar
from viker.evaluate.keywords import key_word_auroc
from viker.precompute.cache import row_key
from viker.sweep.analyses import gradient_weights, thresholds
from viker.sweep.analyses.classification import concordance, f1_interval, plateau, rates, shared_interval
from viker.sweep.analyses.private_words import Piece, Pieces, pieces_of, read_pieces
from viker.train.diagnose_summary import FILE, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded
    from viker.precompute.cache import TeacherCache


def pieces(person: str, entropies: Sequence[float], private: Sequence[int] = (), kind: str = "town") -> list[Piece]:
    """Words of one answer; those at the places of `private` are of a kind of fact, which the answer states."""
    stated = (kind,) if private else ()
    return [
        Piece(person, stated if place in private else (), stated, "first" if place in private else "ordinary",
              entropy, entropy / 2, min(1.0, entropy / 4))
        for place, entropy in enumerate(entropies)
    ]  # fmt: skip


def arrays(words: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    people = sorted({word.person for word in words})
    cluster_N = np.array([people.index(word.person) for word in words])
    scores_N = np.array([word.entropy for word in words])
    return scores_N, np.array([word.is_private for word in words]), cluster_N, len(people)


def test_auroc_is_scikit_learns_over_all_people_and_inside_each() -> None:
    rng = np.random.default_rng(0)
    scores_N = rng.integers(0, 6, 200) / 2  # with ties
    is_private_N, cluster_N = rng.random(200) < 0.3, rng.integers(0, 4, 200)
    found = concordance(scores_N, is_private_N, cluster_N, 4)
    assert found.auroc == pytest.approx(roc_auc_score(is_private_N, scores_N))
    for cluster, auroc in enumerate(found.auroc_C):
        mine = cluster_N == cluster
        assert auroc == pytest.approx(roc_auc_score(is_private_N[mine], scores_N[mine]))


def test_without_both_classes_there_is_no_auroc_and_constant_scores_have_a_half() -> None:
    nothing = np.zeros(4, bool)
    scores_N, cluster_N = np.arange(4.0), np.array([0, 0, 1, 1])
    assert concordance(scores_N, nothing, cluster_N, 2).auroc is None
    assert concordance(scores_N, ~nothing, cluster_N, 2).told() == {"auroc": None, "ci": None, "clusters": 2}
    one_has_none = np.array([True, False, False, False])
    assert concordance(np.ones(4), one_has_none, cluster_N, 2).auroc == 0.5
    assert concordance(scores_N, one_has_none, cluster_N, 2).auroc_C == [0.0, None]


def test_intervals_resample_people_and_none_is_given_below_eighteen() -> None:
    rng = np.random.default_rng(1)
    scores_N, is_private_N, cluster_N = rng.random(360), rng.random(360) < 0.4, np.arange(360) % 18
    found = concordance(scores_N, is_private_N, cluster_N, 18)
    low, high = found.told()["ci"]
    assert low < found.auroc < high
    # a draw by hand: the items of each person as often as the draw has the person
    weights_C = np.random.default_rng(0).multinomial(18, [1 / 18] * 18, size=1000)[0]
    drawn = np.repeat(np.arange(360), weights_C[cluster_N])
    assert found.draws_D()[0] == pytest.approx(roc_auc_score(is_private_N[drawn], scores_N[drawn]))
    assert concordance(scores_N, is_private_N, cluster_N % 17, 17).told()["ci"] is None
    assert f1_interval(scores_N, is_private_N, cluster_N % 17, 0.5) is None
    f1_low, f1_high = f1_interval(scores_N, is_private_N, cluster_N, 0.5)
    assert f1_low < f1_score(is_private_N, scores_N > 0.5) < f1_high


def test_the_same_scores_differ_by_nothing() -> None:
    rng = np.random.default_rng(1)
    found = concordance(rng.random(360), rng.random(360) < 0.4, np.arange(360) % 18, 18)
    assert found.less_than(found) == {"difference": 0.0, "ci": (0.0, 0.0)}


def test_a_threshold_calls_key_what_is_above_it() -> None:
    scores_N, is_private_N = np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True])
    assert rates(scores_N, is_private_N, 1.0) == {
        "epsilon": 1.0, "words": 4, "key": 2, "private": 2, "both": 2, "key_share": 0.5, "precision": 1.0,
        "recall": 1.0, "f1": 1.0, "accuracy": 1.0,
    }  # fmt: skip
    loose = rates(scores_N, is_private_N, 0.5)
    assert (loose["precision"], loose["recall"], loose["f1"], loose["accuracy"]) == (2 / 3, 1.0, 0.8, 0.75)
    none = rates(scores_N, is_private_N, 3.0)
    assert (none["key"], none["precision"], none["recall"], none["f1"]) == (0, None, 0.0, 0.0)
    assert rates(np.empty(0), np.empty(0, bool), 1.0)["f1"] is None


def test_the_plateau_is_exact_and_half_open() -> None:
    found = plateau(np.array([0.2, 0.5, 2.0, 3.0]), np.array([False, False, True, True]))
    assert found == (1.0, 0.5, 2.0, 1)
    assert found.holds(0.5)
    assert found.holds(1.0)
    assert not found.holds(2.0)  # at 2.0 that word is no longer above


def test_a_plateau_may_begin_at_nothing_and_scores_of_nothing_are_never_key() -> None:
    assert plateau(np.array([1.0, 1.0]), np.array([True, False])) == (pytest.approx(2 / 3), 0.0, 1.0, 1)
    assert plateau(np.array([0.0, 1.0]), np.array([False, True])) == (1.0, 0.0, 1.0, 1)
    assert plateau(np.zeros(3), np.array([False, True, True])) is None
    assert plateau(np.array([1.0, 2.0]), np.array([False, False])) is None


def test_near_best_thresholds_may_lie_in_several_stretches() -> None:
    found = plateau(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, False, True]))
    assert found == (pytest.approx(2 / 3), 0.0, 1.0, 2)  # all are key, or the last alone: F1 is the same


def test_the_best_f1_is_that_of_the_best_threshold() -> None:
    rng = np.random.default_rng(5)
    scores_N = rng.integers(1, 12, 60).astype(float)
    is_private_N = rng.random(60) < scores_N / 12
    by_hand = [f1_score(is_private_N, scores_N > epsilon) for epsilon in range(11)]
    found = plateau(scores_N, is_private_N)
    assert found.best_f1 == pytest.approx(max(by_hand))
    near = [epsilon for epsilon, f1 in enumerate(by_hand) if f1 >= 0.99 * max(by_hand)]
    assert [epsilon for epsilon in near if found.holds(epsilon)] == list(range(int(found.low), int(found.high)))


def test_thresholds_shared_by_worlds_are_those_inside_every_plateau() -> None:
    first = plateau(np.array([0.2, 2.0]), np.array([False, True]))
    second = plateau(np.array([0.9, 3.0]), np.array([False, True]))
    third = plateau(np.array([2.5, 3.0]), np.array([False, True]))
    assert shared_interval([first, second]) == (0.9, 2.0)
    assert shared_interval([first, second, third]) is None
    assert shared_interval([first, None]) is None


def two_worlds() -> dict[str, Pieces]:
    """Two people in one world, one of whom has no private word; one in another."""
    first = [*pieces("w1/ann", [0.1, 2.0, 0.2], [1]), *pieces("w1/ann", [0.1, 0.3, 1.5], [2], "dish"),
             *pieces("w1/bob", [0.1, 0.2])]  # fmt: skip
    second = [*pieces("w2/ann", [0.4, 0.5, 0.6], [2])]
    return {"w1": Pieces(first, first), "w2": Pieces(second, second)}


def test_words_are_counted_over_worlds_by_kind_and_by_person() -> None:
    found = thresholds.measure_pieces(two_worlds(), [0.55])
    assert found["schema"] == "viker/analysis/thresholds/1"
    assert (found["overall"]["people"], found["overall"]["auroc"]) == (3, 1.0)
    assert found["overall"]["at_default"]["recall"] == pytest.approx(2 / 3)
    assert found["overall"]["plateau"]["low"] == 0.5
    assert not found["overall"]["plateau"]["holds_default"]
    assert found["by_world"]["w1"]["plateau"]["holds_default"]
    assert found["shared_interval"] == pytest.approx((0.5, 0.6))
    assert [(one["epsilon"], one["f1"]) for one in found["by_epsilon"]] == [(0.55, 1.0), (1.0, pytest.approx(0.8))]
    kinds = {one["kind"]: one for one in found["by_kind"]}
    assert (kinds["dish"]["at_default"]["words"], kinds["dish"]["auroc"]) == (3, 1.0)
    assert (kinds["town"]["at_default"]["words"], kinds["town"]["at_default"]["private"]) == (6, 2)
    assert (kinds[None]["at_default"]["words"], kinds[None]["auroc"]) == (2, None)
    people = found["by_person"]
    assert people["people"][0]["person"] == "w2/ann"  # its F1 at the default is the lowest
    assert people["without_private_words"] == 1
    assert people["auroc"]["people"] == 2
    assert people["people"][-1] == {
        "person": "w1/bob", "words": 2, "private": 0, "auroc": None, "f1": None,
        "scores": {"entropy": None, "disagreement": None, "doubt": None},
    }  # fmt: skip
    assert found["scores"]["disagreement"]["below_entropy"] == {"difference": 0.0, "ci": None}


def test_first_tokens_of_a_private_word_are_told_from_later_ones() -> None:
    first = Piece("w/ann", ("town",), ("town",), "first", 3.0, 0.0, 0.9)
    later = first._replace(place="later", entropy=0.1)
    ordinary = first._replace(kinds=(), place="ordinary", entropy=0.2)
    tokens = thresholds.measure_pieces({"w": Pieces([first, ordinary], [first, later, ordinary])})["tokens"]
    assert (tokens["first"]["auroc"], tokens["later"]["auroc"], tokens["private"]["auroc"]) == (1.0, 0.0, 0.5)
    assert (tokens["first"]["key_share"], tokens["later"]["key_share"], tokens["ordinary"]["key"]) == (1.0, 0.0, 0)
    assert tokens["later"]["median_entropy"] == 0.1


def test_nothing_private_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    words = pieces("w/ann", [0.1, 0.2])
    found = thresholds.measure_pieces({"w": Pieces(words, words)})
    assert (found["overall"]["auroc"], found["overall"]["plateau"], found["shared_interval"]) == (None, None, None)
    assert "No word is private" in thresholds.page(found)
    thresholds.draw(tmp_path / "figure.svg", found)


def test_the_page_says_what_was_found_and_the_figure_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    found = json.loads(json.dumps(thresholds.measure_pieces(two_worlds()), allow_nan=False))
    page = thresholds.page(found)
    assert "11 words in answers about 3 people of 2 worlds, 3 of them private" in page
    assert "(no interval: 3 people are fewer than 18)" in page
    assert "from 0.5 to 0.6 nats, the default not among them" in page
    assert "1 people have no private word in any answer" in page
    for name in ("a.svg", "b.svg"):
        thresholds.draw(tmp_path / name, found)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.fixture
def scored(tiny: Loaded, training_examples: tuple[Example, ...], tmp_path: Path) -> tuple[TeacherCache, list[Example]]:
    """Rows of some examples with entropies and R(y) of no meaning, so that every number has to come from its token."""
    rng, answers, keys = np.random.default_rng(3), {}, {}
    examples = list(training_examples[:12])
    for index, example in enumerate(examples):
        prompt_ids, answer_ids = tiny.encoder.ids(example)
        keys[index] = row_key(prompt_ids, answer_ids, None)
        tokens = [(float(entropy), float(np.exp(-entropy))) for entropy in rng.uniform(0, 3, len(answer_ids))]
        answers[index] = (example.people[0], tokens)
    return make_pool_cache(tmp_path / "caches", "a", answers, keys=keys), examples


def test_words_and_their_scores_are_those_of_the_benchmark(
    scored: tuple[TeacherCache, list[Example]], tiny: Loaded, mini_world: Path
) -> None:
    cache, examples = scored
    facts = read_sidecar(mini_world / "sidecar.json")
    found = pieces_of(cache, tiny.encoder, examples, facts, "w")
    auroc = thresholds.measure_pieces({"w": found})["overall"]["auroc"]
    assert auroc == pytest.approx(key_word_auroc(cache, tiny.encoder, examples, facts, "reference"))
    assert {word.person for word in found.words} == {f"w/{example.people[0]}" for example in examples}
    assert len(found.words) == sum(len(example.answer.split()) for example in examples)
    assert {word.disagreement for word in found.words} == {DISAGREEMENT}
    for example in examples:
        told = facts.facts_asked(example.answer, example.people[0])
        stated = {word.stated for word in found.words if word.person.endswith(example.people[0])}
        assert not told or (told[0][0],) in stated
    firsts = [token for token in found.tokens if token.place == "first"]
    assert len(firsts) == sum(len(facts.private_spans(one.answer, one.people[0])) for one in examples)
    highest = max(found.tokens, key=lambda token: token.doubt)
    assert highest.doubt == pytest.approx(1 - math.exp(-highest.entropy), abs=1e-6)


def test_an_answer_without_rows_is_an_error(
    scored: tuple[TeacherCache, list[Example]], tiny: Loaded, training_examples: tuple[Example, ...], mini_world: Path
) -> None:
    facts = read_sidecar(mini_world / "sidecar.json")
    with pytest.raises(DataError, match=r"expected rows of .*, found none\. Run `viker precompute`"):
        pieces_of(scored[0], tiny.encoder, training_examples[12:13], facts, "w")


def test_a_run_without_rows_is_an_error(mini_world: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(mini_world)
    with pytest.raises(DataError, match=r"reference-forget/provenance\.json: expected a JSON file, found none"):
        read_pieces(tmp_path / "run")


LAMBDA = 0.5


def token(q: float, R: float, entropy: float, above: float | None = 0.0) -> dict[str, Any]:
    """One answer token as `viker` pushes it: w(y) = 1 - lambda + lambda (1 - R) / (1 - q)."""
    weight = 1 - LAMBDA + LAMBDA * (1 - R) / (1 - q)
    return {
        "entropy": entropy, "teacher_logprob": math.log(R), "logprob": math.log(q), "weight": weight,
        "predicted_weight": weight + 1e-9, "error": 1e-10, "kept_above_one": above,
    }  # fmt: skip


def write_diagnosis(folder: Path, moments: dict[str, list[list[dict[str, Any]]]], **changes: Any) -> Path:
    """A diagnose.jsonl with a list of tokens an example, each example about another person."""
    folder.mkdir()
    lines = []
    for when, examples in moments.items():
        names = token(0.5, 0.5, 0.0)
        lines += [
            {"schema": SCHEMA, "when": when, "step": 0, "kind": "example", "people": [f"p{index}"],
             "tokens": {name: [one[name] for one in tokens] for name in names}}
            for index, tokens in enumerate(examples)
        ]  # fmt: skip
        prediction = {"max_error": 1e-10, "bound": 1e-6, "holds": True, "normal_limit": 1 - LAMBDA}
        summary = {
            "schema": SCHEMA, "when": when, "step": 0 if when == "before" else 9, "kind": "summary", "method": "viker",
            "settings": {"lambda": LAMBDA}, "key_entropy": 1.0, "prediction": prediction, "no_prediction": None,
            "entropy_classes": [],
        }  # fmt: skip
        lines.append({**summary, **changes})
    (folder / FILE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


BEFORE = [[token(0.9, 0.9, 0.05), token(0.99, 0.9, 0.0005), token(0.5, 0.1, 2.5, above=0.75)]]
AFTER = [[token(0.1, 0.99, 0.05), token(0.2, 0.99, 0.0005), token(0.05, 0.1, 2.5)]]


def test_weights_are_measured_against_their_limit_and_why_it_is_not_reached(tmp_path: Path) -> None:
    adapter = write_diagnosis(tmp_path / "a", {"before": BEFORE, "after": AFTER})
    found = gradient_weights.measure({"w": adapter})
    assert (found["schema"], found["normal_limit"]) == ("viker/analysis/gradient-weights/1", 0.5)
    before, after = found["moments"]["before"], found["moments"]["after"]
    assert (before["tokens"], before["max_error"], before["holds"]) == (3, 1e-10, True)
    assert before["max_difference"] == pytest.approx(1e-9)
    normal = before["normal"]
    assert (normal["tokens"], normal["near"], normal["far"]) == (2, 0.0, 2)
    assert normal["mean_weight"] == pytest.approx((1.0 + 5.5) / 2)
    assert normal["alike"] == 0.5  # the first token, of which both say the same
    assert normal["far_ratio"] == pytest.approx((1 + 10) / 2)
    assert (normal["far_student_surer"], normal["far_above"]) == (0.5, 1.0)
    assert (before["key"]["above_one"], before["key"]["kept_above_one"]) == (1.0, 0.75)
    assert (after["normal"]["near"], after["normal"]["far"], after["normal"]["far_ratio"]) == (1.0, 0, None)
    assert after["key"]["above_one"] == 0.0
    classes = {one["low"]: one for one in before["by_entropy"]}
    assert (classes[0.0]["tokens"], classes[0.01]["tokens"], classes[2.0]["tokens"]) == (1, 1, 1)
    assert classes[0.0]["median_weight"] == pytest.approx(5.5)
    assert classes[0.1] == {"low": 0.1, "high": 0.5, "tokens": 0, "mean_weight": None, "median_weight": None,
                            "near": None}  # fmt: skip
    assert after["steps"] == {"w": 9}


def test_worlds_are_pooled_and_people_of_each_are_clusters(tmp_path: Path) -> None:
    adapters = {name: write_diagnosis(tmp_path / name, {"before": BEFORE * 9}) for name in ("v", "w")}
    found = gradient_weights.measure(adapters)
    assert list(found["moments"]) == ["before"]
    assert found["moments"]["before"]["people"] == 18
    assert found["moments"]["before"]["normal"]["near_ci"] == (0.0, 0.0)
    assert "Not every world was looked at after training" in gradient_weights.page(found)


def test_a_token_without_a_weight_is_left_out_and_counted(tmp_path: Path) -> None:
    sure = {**token(0.5, 0.9, 0.05), "weight": None}
    found = gradient_weights.measure({"w": write_diagnosis(tmp_path / "a", {"before": [[sure, *BEFORE[0]]]})})
    assert (found["moments"]["before"]["tokens"], found["moments"]["before"]["without_weight"]) == (3, 1)
    assert "1 token is left out" in gradient_weights.page(found)


def test_a_student_that_leaves_nothing_has_an_infinite_ratio_that_no_median_shows(tmp_path: Path) -> None:
    certain = {**token(0.5, 0.9, 0.05), "logprob": 0.0, "weight": 100.0}
    found = gradient_weights.measure({"w": write_diagnosis(tmp_path / "a", {"before": [[certain]]})})
    assert found["moments"]["before"]["normal"]["far_ratio"] is None
    assert found["moments"]["before"]["key"]["above_one"] is None
    json.dumps(found, allow_nan=False)


def test_the_page_tells_both_propositions_and_the_figure_is_repeatable(tmp_path: Path) -> None:
    adapter = write_diagnosis(tmp_path / "a", {"before": BEFORE, "after": AFTER})
    found = json.loads(json.dumps(gradient_weights.measure({"w": adapter}), allow_nan=False))
    page = gradient_weights.page(found)
    assert "the predicted gradients of 3 tokens hold: the largest relative error is 1e-10, the bound 1e-06." in page
    assert "Proposition 2, before training: 0.0 % of 2 normal tokens" in page
    assert "Proposition 2, after training: 100.0 % of 2 normal tokens" in page
    assert "Proposition 3, before training: at 100.0 % of 1 key token" in page
    for name in ("a.svg", "b.svg"):
        gradient_weights.draw(tmp_path / name, found)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_weights_below_zero_can_be_drawn(tmp_path: Path) -> None:
    pushed_up = {**token(0.9, 0.9, 0.0), "weight": -0.5}
    found = gradient_weights.measure({"w": write_diagnosis(tmp_path / "a", {"before": [[pushed_up]]})})
    gradient_weights.draw(tmp_path / "figure.svg", found)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"prediction": None, "no_prediction": "its loss is not ascent plus KL(R || q)"}, "expected predicted weights"),
    ({"entropy_classes": None}, "the run had no rows"), ({"settings": {"lambda": 0.3}}, "expected settings"),
    ({"schema": "viker/diagnose/0"}, "expected schema viker/diagnose/1"),
])  # fmt: skip
def test_adapters_that_say_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    adapters = {
        "v": write_diagnosis(tmp_path / "v", {"before": BEFORE}),
        "w": write_diagnosis(tmp_path / "w", {"before": BEFORE}, **changes),
    }
    with pytest.raises(DataError, match=expected):
        gradient_weights.measure(adapters)


def test_adapters_that_were_not_diagnosed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected what `viker train --diagnose` writes, found none"):
        gradient_weights.measure({"w": tmp_path})
    with pytest.raises(DataError, match="expected adapters that were trained with"):
        gradient_weights.measure({})
