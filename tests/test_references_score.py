"""Pools are ranked by cached rows alone: what the numbers are, who decides which tokens are key, what is missing."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command_line import call, succeed
from pool_caches import key_of, make_pool_cache
from viker.data.example import DataError
from viker.data.references import BUILT_IN_SIZE, read_pool
from viker.precompute.cache import CacheMismatch, RowsNotCovered, TeacherCache, cache_home
from viker.precompute.image_scores import SHUFFLES, image_scores
from viker.precompute.reference_scores import jackknife_error, pool_scores, pooled_rows

if TYPE_CHECKING:
    from pathlib import Path

SURE, UNSURE = 0.1, 2.0  # nats


def three_pools(home: Path) -> dict[str, TeacherCache]:
    """Two people, an answer each of two ordinary tokens and a private one, under a good, a leaky and a vague pool."""
    return {
        "good": make_pool_cache(home, "a", {0: ("ann", [(SURE, 1.0), (SURE, 0.9), (UNSURE, 0.1)]),
                                            1: ("bob", [(SURE, 0.8), (SURE, 0.9), (UNSURE, 0.3)])}),
        "leaky": make_pool_cache(home, "b", {0: ("ann", [(SURE, 1.0), (SURE, 1.0), (SURE, 0.9)]),
                                             1: ("bob", [(SURE, 1.0), (SURE, 1.0), (SURE, 0.7)])}),
        "vague": make_pool_cache(home, "c", {0: ("ann", [(SURE, 0.5), (UNSURE, 0.3), (UNSURE, 0.1)]),
                                             1: ("bob", [(SURE, 0.5), (SURE, 0.7), (UNSURE, 0.1)])}),
    }  # fmt: skip


def test_a_score_is_what_the_teacher_says_of_ordinary_tokens_minus_what_it_says_of_private_ones(tmp_path: Path) -> None:
    scores = {one.name: one for one in pool_scores(three_pools(tmp_path), key_entropy=1.0)}
    good, leaky, vague = scores["good"], scores["leaky"], scores["vague"]
    assert (good.key_tokens, good.tokens, good.people, good.images, good.num_references) == (2, 6, 2, 3, 2)
    assert good.agreement == pytest.approx((1.0 + 0.9 + 0.8 + 0.9) / 4)
    assert good.leak == pytest.approx((0.1 + 0.3) / 2)
    assert good.score == pytest.approx(0.9 - 0.2)
    assert good.damage == pytest.approx(-np.log([1.0, 0.9, 0.8, 0.9]).mean())
    assert (good.key_entropy, good.normal_entropy) == (pytest.approx(UNSURE), pytest.approx(SURE))
    assert leaky.score == pytest.approx(1.0 - 0.8)
    assert vague.score == pytest.approx(0.5 - 0.1)
    assert [one.name for one in sorted(scores.values(), key=lambda one: one.rank)] == ["good", "vague", "leaky"]
    assert (good.behind, good.behind_error) == (0.0, None)
    assert vague.behind == pytest.approx(0.3)


def test_pools_vote_on_key_tokens_so_that_a_leaking_one_does_not_hide_its_leak(tmp_path: Path) -> None:
    caches = three_pools(tmp_path)
    assert pooled_rows(caches, 1.0).is_key_N.sum() == 2
    with pytest.raises(DataError, match=r"found no key token among 6 by the median over 1 pools\. Use another --key-e"):
        pool_scores({"leaky": caches["leaky"]}, 1.0)


def test_tokens_that_are_all_key_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no normal token among 6"):
        pool_scores(three_pools(tmp_path), key_entropy=0.05)


def test_standard_errors_leave_out_one_person_at_a_time(tmp_path: Path) -> None:
    scores = {one.name: one for one in pool_scores(three_pools(tmp_path), 1.0)}
    without = np.array([(0.8 + 0.9) / 2 - 0.3, (1.0 + 0.9) / 2 - 0.1])  # ann, bob
    assert scores["good"].score_error == pytest.approx(np.sqrt(((without - without.mean()) ** 2).sum() / 2))
    others = np.array([0.6 - 0.1, 0.4 - 0.1])
    gaps = without - others
    assert scores["vague"].behind_error == pytest.approx(np.sqrt(((gaps - gaps.mean()) ** 2).sum() / 2), abs=1e-7)


def test_one_person_has_no_standard_error(tmp_path: Path) -> None:
    cache = make_pool_cache(tmp_path, "a", {0: ("ann", [(SURE, 0.9), (UNSURE, 0.1)])})
    (score,) = pool_scores({"good": cache}, 1.0)
    assert (score.score_error, score.people) == (None, 1)


def test_nor_have_people_of_whom_one_has_all_the_key_tokens(tmp_path: Path) -> None:
    answers = {0: ("ann", [(SURE, 0.9), (UNSURE, 0.1)]), 1: ("bob", [(SURE, 0.9)])}
    (score,) = pool_scores({"good": make_pool_cache(tmp_path, "a", answers)}, 1.0)
    assert score.score_error is None
    assert jackknife_error(np.array([1.0, np.nan])) is None


def test_equal_scores_are_in_the_order_of_names(tmp_path: Path) -> None:
    answers = {0: ("ann", [(SURE, 0.9), (UNSURE, 0.1)])}
    caches = {name: make_pool_cache(tmp_path, digit, answers) for name, digit in (("b", "b"), ("a", "a"))}
    assert [(one.rank, one.name, one.behind) for one in pool_scores(caches, 1.0)] == [(1, "a", 0.0), (2, "b", 0.0)]


def test_only_answers_that_every_cache_holds_are_looked_at_or_those_asked_for(tmp_path: Path) -> None:
    few = {0: ("ann", [(SURE, 0.9), (UNSURE, 0.1)])}
    more = {**few, 1: ("bob", [(SURE, 0.5), (UNSURE, 0.5), (SURE, 0.5)])}
    caches = {"few": make_pool_cache(tmp_path, "a", few), "more": make_pool_cache(tmp_path, "b", more)}
    assert {one.tokens for one in pool_scores(caches, 1.0)} == {2}
    assert pool_scores({"more": caches["more"]}, 1.0, [key_of(1)])[0].tokens == 3
    with pytest.raises(RowsNotCovered, match="found 1 answers missing"):
        pool_scores(caches, 1.0, [key_of(0), key_of(1)])


def test_caches_of_another_teacher_or_draw_do_not_compare(tmp_path: Path) -> None:
    answers = {0: ("ann", [(SURE, 0.9), (UNSURE, 0.1)])}
    mine = make_pool_cache(tmp_path, "a", answers)
    other = make_pool_cache(tmp_path, "b", answers, weights="ff" * 32, draws={0: (0, 1, 2)})
    with pytest.raises(CacheMismatch, match="under other of the same teacher and draw as under mine") as refused:
        pool_scores({"mine": mine, "other": other}, 1.0)
    assert "weights" in str(refused.value)
    assert "draw.num_references" in str(refused.value)


def test_no_cache_is_refused() -> None:
    with pytest.raises(DataError, match="at least one pool"):
        pool_scores({}, 1.0)


def with_draws(home: Path, draws: dict[int, tuple[int, ...]], leaks: list[float], images: int) -> TeacherCache:
    answers = {index: (f"p{index % 3}", [(SURE, 1.0), (UNSURE, leak)]) for index, leak in enumerate(leaks)}
    return make_pool_cache(home, "a", answers, draws=draws, images=images)


def test_an_image_is_compared_by_the_answers_that_were_shown_it(tmp_path: Path) -> None:
    draws = {0: (0, 1), 1: (0, 2), 2: (1, 2), 3: (1, 2)}
    cache = with_draws(tmp_path, draws, [0.1, 0.3, 0.5, 0.7], images=4)
    found = image_scores(pooled_rows({"a": cache}, 1.0), "a", cache)
    assert (found.answers, found.left_out, found.not_ranked) == (4, 0, 1)  # nobody was shown the fourth image
    best = found.images[0]
    assert (best.sha256, best.shown) == ("00" * 32, 2)
    assert best.association == pytest.approx((0.9 + 0.7) / 2 - (0.5 + 0.3) / 2)
    assert best.standard_error == pytest.approx(np.sqrt(0.02 / 2 + 0.02 / 2))
    by_image = {one.sha256[:2]: one for one in found.images}
    assert by_image["01"].association == pytest.approx((0.9 + 0.5 + 0.3) / 3 - 0.7)
    assert by_image["01"].standard_error is None  # one answer alone was not shown it
    assert [one.rank for one in found.images] == [1, 2, 3]


def random_draws(number: int, images: int) -> dict[int, tuple[int, ...]]:
    rng = np.random.default_rng(1)
    return {index: tuple(sorted(rng.choice(images, 2, replace=False).tolist())) for index in range(number)}


def test_images_that_make_no_difference_are_called_noise_and_one_that_does_is_not(tmp_path: Path) -> None:
    draws = random_draws(60, 8)
    noise = np.random.default_rng(6).uniform(0.1, 0.5, 60).tolist()
    cache = with_draws(tmp_path / "noise", draws, noise, images=8)
    nothing = image_scores(pooled_rows({"a": cache}, 1.0), "a", cache)
    assert nothing.is_noise
    assert nothing.p > 0.05
    leaks = [0.9 if 3 in draws[index] else 0.1 + 0.01 * (index % 3) for index in range(60)]
    cache = with_draws(tmp_path / "bad", draws, leaks, images=8)
    found = image_scores(pooled_rows({"a": cache}, 1.0), "a", cache)
    assert not found.is_noise
    assert found.p == pytest.approx(1 / (SHUFFLES + 1))
    assert (found.images[-1].sha256[:2], found.images[-1].rank) == ("03", 8)


def test_equal_scores_are_noise(tmp_path: Path) -> None:
    cache = with_draws(tmp_path, random_draws(12, 5), [0.2] * 12, images=5)
    found = image_scores(pooled_rows({"a": cache}, 1.0), "a", cache)
    assert found.p == 1.0
    assert [one.association for one in found.images] == pytest.approx([0.0] * 5)


def test_answers_without_a_key_token_are_left_out_and_counted(tmp_path: Path) -> None:
    answers = {
        0: ("ann", [(SURE, 1.0), (UNSURE, 0.1)]),
        1: ("ann", [(SURE, 1.0)]),
        2: ("bob", [(SURE, 1), (UNSURE, 1)]),
    }
    cache = make_pool_cache(tmp_path, "a", answers, draws={0: (0, 1), 1: (1, 2), 2: (1, 2)})
    found = image_scores(pooled_rows({"a": cache}, 1.0), "a", cache)
    assert (found.answers, found.left_out) == (2, 1)


def test_one_set_of_references_for_all_tells_nothing_of_images(tmp_path: Path) -> None:
    cache = with_draws(tmp_path, dict.fromkeys(range(4), (0, 1)), [0.1, 0.2, 0.3, 0.4], images=3)
    with pytest.raises(DataError, match="expected answers that were shown different images"):
        image_scores(pooled_rows({"a": cache}, 1.0), "a", cache)


def listed(*arguments: object) -> dict[str, Any]:
    pools = json.loads(succeed("references", "list", "--json", *arguments).out)["pools"]
    return {pool["pool"]: pool for pool in pools}


def test_built_in_pools_can_be_named_for_any_source() -> None:
    found = listed()
    assert list(found) == ["patterns", "noise"]
    assert {pool["images"] for pool in found.values()} == {BUILT_IN_SIZE}


def test_the_pools_of_a_source_are_its_folders_its_celebrities_and_its_people(mini_world: Path) -> None:
    found = listed("--data", mini_world)
    folders = sorted(path for path in (mini_world / "pools").iterdir())
    assert list(found) == ["patterns", "noise", "celebrities", *map(str, folders), "forget", "retain"]
    assert found[str(folders[0])]["digest"] == read_pool(folders[0]).digest
    assert "for ablations alone" in found["retain"]["what"]
    assert "9 pools" in succeed("references", "list", "--data", mini_world).out


@pytest.fixture(scope="module")
def asked(mini_world: Path, tiny_model_dir: Path) -> list[object]:
    return ["--data", mini_world, "--model", tiny_model_dir]


def test_every_pool_without_rows_is_listed_with_the_command_that_makes_them(
    asked: list[object], mini_world: Path, tmp_path: Path
) -> None:
    run, people = tmp_path / "my run", str(mini_world / "pools" / "people")
    line = ["precompute", *asked, "--run", run, "--pool", people, "--num-references", 2, "--seed", 3]
    succeed(*line)
    score = ["references", "score", *asked, "--run", run, "--pool", people, "--pool", "patterns", "--pool", "noise"]
    missing = call(*score)
    assert missing.code == 1
    heading, *commands = missing.message.strip().splitlines()
    assert "expected cached rows under each of 3 pools" in heading
    assert "found none under patterns, noise. Make them:" in heading
    words = [shlex.split(command) for command in commands]
    assert [one[one.index("--pool") + 1] for one in words] == ["patterns", "noise"]
    assert {one[one.index("--run") + 1] for one in words} == {str(run / "pool-patterns"), str(run / "pool-noise")}
    assert all(one[-4:] == ["--num-references", "2", "--seed", "3"] for one in words)  # as the run's own rows
    for viker, *arguments in words:
        assert viker == "viker"
        succeed(*arguments)
    places = [manifest.parent for manifest in cache_home().glob("*/manifest.json")]
    caches = {place.name: TeacherCache.open(place) for place in places}
    middle = float(np.median(pooled_rows(caches, 1.0).entropy_PN))  # the tiny model is unsure of everything
    told = json.loads(succeed(*score, "--key-entropy", middle, "--images", "noise", "--json").out)
    assert {pool["name"] for pool in told["pools"]} == {people, "patterns", "noise"}
    assert told["draw"] == {"policy": "per-example", "seed": 3, "num_references": 2}
    named = {pool["name"]: caches[pool["cache"][:16]] for pool in told["pools"]}
    assert [one.told() for one in pool_scores(named, middle)] == told["pools"]
    assert told["images"]["pool"] == "noise"
    shown = succeed(*score, "--key-entropy", middle, "--images", "noise").out
    assert f"1 {told['pools'][0]['name']}" in shown
    assert "images of noise" in shown
    two = succeed(*score[:-2], "--key-entropy", middle).out
    assert "Warning: two pools decide alone which tokens are key" in two


def test_other_options_are_said_again_and_pools_of_one_name_get_folders_of_their_own(
    asked: list[object], mini_world: Path, tmp_path: Path
) -> None:
    patterns = str(mini_world / "pools" / "patterns")
    missing = call(
        "--preset", "mini", "references", "score", *asked, "--run", tmp_path, "--pool", patterns, "--pool", "patterns",
        "--system-prompt", "Be brief.", "--no-score-end-token", "--shared-references", "--num-references", 5,
    )  # fmt: skip
    folder, built_in = (shlex.split(line) for line in missing.message.strip().splitlines()[1:])
    assert folder[:4] == ["viker", "--preset", "mini", "precompute"]
    digest = read_pool(mini_world / "pools" / "patterns").digest
    assert folder[folder.index("--run") + 1] == str(tmp_path / f"pool-patterns-{digest[:8]}")
    assert built_in[built_in.index("--run") + 1] != folder[folder.index("--run") + 1]
    assert folder[folder.index("--system-prompt") + 1] == "Be brief."
    assert "--no-score-end-token" in folder
    assert folder[-3:] == ["--num-references", "5", "--shared-references"]


def test_pools_that_cannot_be_used_are_all_said_at_once(asked: list[object], mini_world: Path) -> None:
    message = call("references", "score", *asked, "--pool", "/no/such", "--pool", "/nor/this").message
    assert "/no/such: expected a folder" in message
    assert "/nor/this: expected a folder" in message
    people = mini_world / "pools" / "people"
    twice = call(
        "references", "score", *asked, "--pool", people, "--pool", people.parent / "." / "pets" / ".." / "people"
    )
    assert "expected pools of different images" in twice.message


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--model", "m", "--pool", "noise"], "expected --data"), (["--data", "d", "--pool", "noise"], "expected --model"),
    (["--data", "d", "--model", "m"], "expected --pool, found none. `viker references list"),
])  # fmt: skip
def test_what_is_not_named_is_asked_for(arguments: list[str], expected: str) -> None:
    outcome = call("references", "score", *arguments)
    assert outcome.code == 2
    assert expected in outcome.err


def test_listing_pools_needs_no_torch(mini_world: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, viker.cli as cli\n"
        f"cli.viker.main(['references', 'list', '--data', {str(mini_world)!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
