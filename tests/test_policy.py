"""A policy is read whole or not at all, what was not measured never passes, and a failed verdict is a full record."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import viker
from viker.data.artefact import ArtefactMismatch
from viker.data.example import DataError
from viker.evaluate.policy import (
    MAX_BYTES,
    POLICY_FILE,
    UNCOMPARED,
    Policy,
    Requirement,
    read_policy,
    record_policy,
    recorded_policy,
)
from viker.evaluate.policy_check import (
    ALLOWED,
    NO_VERDICT,
    Lookup,
    as_text,
    check,
    verdict_json,
    was_fixed_before,
    words_on_record,
)

EXAMPLE = Path(viker.__file__).parent / "docs" / "policy.example.toml"
HEAD = 'schema = "viker/policy/1"\nname = "n"\n'
GOOD = HEAD + '[[require]]\nmetric = "fact_recall"\nsplit = "forget"\nat_most = 0.1\n'
MODEL = "viker-1"


def written(directory: Path, text: str | bytes) -> Path:
    path = directory / "policy.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mistakes_of(directory: Path, text: str, known: dict[str, tuple[str, ...]] | None = None) -> list[str]:
    with pytest.raises(DataError) as failed:
        read_policy(written(directory, text), known)
    first, *listed = str(failed.value).split("\n")
    assert first.endswith("found mistakes. Correct all of them:")
    return [line.strip() for line in listed]


def requirement(**changes: Any) -> Requirement:
    plain = {"metric": "fact_recall", "split": "forget", "task": "generation", "modality": "image"}
    return Requirement(**plain, **(changes or {"at_most": 0.1}))


def policy(*requirements: Requirement, allow: tuple[str, ...] = (UNCOMPARED,)) -> Policy:
    return Policy(
        name="n", text="text", sha256=hashlib.sha256(b"text").hexdigest(),
        requirements=requirements or (requirement(),), allow=frozenset(allow),
    )  # fmt: skip


def number(value: Any, **changes: Any) -> dict[str, Any]:
    plain = {"model": MODEL, "split": "forget", "task": "generation", "modality": "image", "metric": "fact_recall"}
    return {**plain, "value": value, "n": 40, "ci": None, "seed": 0, **changes}


def judged(one: Requirement, *records: dict[str, Any]) -> Any:
    """The check of one requirement, where nothing else can fail."""
    verdict = check(policy(one), Lookup(records), model=MODEL)
    assert verdict.passed == verdict.checks[0].passed
    return verdict.checks[0]


# ---- reading


def test_the_example_is_a_policy() -> None:
    found = read_policy(EXAMPLE)
    assert found.name == "forgotten as if never seen, and otherwise unharmed"
    assert found.sha256 == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    assert found.text == EXAMPLE.read_text(encoding="utf-8")
    assert found.allow == frozenset()
    assert len(found.requirements) == 9
    assert found.requirements[0] == Requirement(
        metric="fact_recall", split="forget", task="generation", modality="image", at_most=0.05,
        relative_to="retain-only", why="more would be memory, less is luck",
    )  # fmt: skip
    assert [one.attack for one in found.requirements].count("relearn-forget") == 1
    assert [one.worst_person for one in found.requirements].count(True) == 1


def test_a_whole_number_is_a_bound_and_bytes_are_the_digest(tmp_path: Path) -> None:
    text = GOOD.replace("0.1", "0").replace("\n", "\r\n") + "# née"
    found = read_policy(written(tmp_path, text))
    assert found.requirements == (requirement(at_most=0.0),)
    assert isinstance(found.requirements[0].at_most, float)
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert found.text == text


def test_both_sides_of_one_number_may_be_bounded(tmp_path: Path) -> None:
    second = GOOD.split("\n", 2)[2].replace("at_most", "at_least")
    assert len(read_policy(written(tmp_path, GOOD + second)).requirements) == 2


@pytest.mark.parametrize("text", ["", "\n# nothing is required\n"])
def test_an_empty_file_is_no_policy(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="found an empty file"):
        read_policy(written(tmp_path, text))


@pytest.mark.parametrize("text", [b"name = ", b"\xff\xfe", b"[" * 5000, b"a = 1\na = 2"])
def test_what_is_not_toml_is_said(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(DataError, match=r"policy\.toml: expected a policy in TOML, found something else"):
        read_policy(written(tmp_path, text))


def test_a_file_that_is_none_or_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a TOML file, found none"):
        read_policy(tmp_path / "nothing.toml")
    with pytest.raises(DataError, match="expected a TOML file, found none"):
        read_policy(tmp_path)
    path = written(tmp_path, "")
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(DataError, match=f"at most {MAX_BYTES} bytes, found {MAX_BYTES + 1}"):
        read_policy(path)


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = """
    schema = "viker/policy/2"
    alow = []
    allow = ["anything"]
    [[require]]
    metric = 3
    at_most = nan
    [[require]]
    metric = "fact_recall"
    split = "forget"
    task = "generate"
    modality = "sound"
    relative_to = "base"
    worst_person = "yes"
    why = 1
    at_most = 0.1
    at_least = 0.0
    threshold = 1
    """
    found = mistakes_of(tmp_path, text)
    starts = [
        "alow: unknown; known are schema, name, allow, require",
        "schema: expected 'viker/policy/1', found 'viker/policy/2'",
        "name: expected words, found None",
        "allow: expected a list of 'no retain-only, no controls', found ['anything']",
        "require 1: metric: expected a name, found 3",
        "require 1: split: expected a name, found None",
        "require 1: at_most: expected a finite number, found nan",
        "require 2: threshold: unknown; known are metric, split, ",
        "require 2: why: expected words, found 1",
        "require 2: task: expected one of 'training', ",
        "require 2: modality: expected one of 'image', 'text', found 'sound'",
        "require 2: relative_to: expected one of 'vanilla', 'retain-only', 'controls', found 'base'",
        "require 2: worst_person: expected true or false, found 'yes'",
        "require 2: expected exactly one of at_least and at_most, found at_least and at_most",
    ]
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True)), found


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (("at_most = 0.1", ""), "expected exactly one of at_least and at_most, found neither"),
        (("0.1", "inf"), "at_most: expected a finite number, found inf"),
        (("0.1", "-nan"), "at_most: expected a finite number, found nan"),
        (("0.1", "true"), "at_most: expected a finite number, found True"),
        (("0.1", "'0.1'"), "at_most: expected a finite number, found '0.1'"),
        (("0.1", "1" + "0" * 400), "at_most: expected a finite number, found 1000"),
        (('"forget"', '" "'), "split: expected a name, found ' '"),
        (('"forget"', "[]"), "split: expected a name, found []"),
        (("0.1", '0.1\nattack = ""'), "attack: expected a name, found ''"),
        (("0.1", "0.1\ntask = []"), "task: expected one of "),
        (("0.1", "0.1\nrelative_to = {}"), "relative_to: expected one of "),
        (
            ("0.1", '0.1\nattack = "x"\nrelative_to = "retain-only"'),
            "relative_to, attack: expected one of them; the recovery of an attack is relative already",
        ),
        (
            ('"forget"', '"controls"\nrelative_to = "controls"'),
            "relative_to: expected another split than the controls themselves, found controls beside controls",
        ),
    ],
)
def test_each_mistake_of_a_requirement_is_named(tmp_path: Path, change: tuple[str, str], mistake: str) -> None:
    (found,) = mistakes_of(tmp_path, GOOD.replace(*change))
    assert found.startswith(f"require 1: {mistake}")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (HEAD, "require: expected at least one [[require]] table, found []"),
        (HEAD + "require = []", "require: expected at least one [[require]] table, found []"),
        (HEAD + "require = [1]", "require: expected at least one [[require]] table, found [1]"),
        (HEAD + "[require]\nat_most = 1", "require: expected at least one [[require]] table, found {'at_most': 1}"),
        (GOOD.replace('name = "n"', "name = ''"), "name: expected words, found ''"),
        (GOOD.replace('name = "n"', 'name = "n"\nallow = "no"'), "allow: expected a list of"),
        (GOOD.replace('name = "n"', 'name = "n"\nallow = [[]]'), "allow: expected a list of"),
    ],
)
def test_each_mistake_of_the_whole_is_named(tmp_path: Path, text: str, mistake: str) -> None:
    (found,) = mistakes_of(tmp_path, text)
    assert found.startswith(mistake)


def test_the_same_bound_twice_is_a_mistake_whatever_its_value(tmp_path: Path) -> None:
    table = GOOD.split("\n", 2)[2]
    again = table.replace("0.1", '0.2\ntask = "generation"\nworst_person = false')
    other = table.replace("forget", "test")
    assert mistakes_of(tmp_path, GOOD + other + again) == ["require 3: the same bound on the same number as require 1"]


def test_names_that_this_run_cannot_measure_are_mistakes(tmp_path: Path) -> None:
    known = {"metric": ("rougeL",), "split": ("forget", "test"), "attack": ("crop",)}
    assert mistakes_of(tmp_path, GOOD.replace("0.1", '0.1\nattack = "crup"'), known) == [
        "require 1: metric: expected one of 'rougeL', which this run can measure, found 'fact_recall'",
        "require 1: attack: expected one of 'crop', which this run can measure, found 'crup'",
    ]
    assert read_policy(written(tmp_path, GOOD), {"split": ("forget",)}).requirements == (requirement(),)


# ---- judging


@pytest.mark.parametrize(
    ("bound", "value", "passed"),
    [
        ({"at_most": 0.1}, 0.1, True),
        ({"at_most": 0.1}, 0.3 - 0.2 + 1e-12, True),
        ({"at_most": 0.1}, 0.1001, False),
        ({"at_least": 0.9}, 0.9, True),
        ({"at_least": 0.9}, 0.8999, False),
        ({"at_least": -2.0}, -3, False),
        ({"at_most": 0.0}, 0, True),
        ({"at_least": 0.0}, -0.01, False),
    ],
)
def test_a_bound_includes_its_end(bound: dict[str, float], value: float, passed: bool) -> None:
    found = judged(requirement(**bound), number(value, ci=(0.0, 0.2)))
    assert (found.passed, found.value, found.own, found.n, found.ci) == (passed, value, value, 40, (0.0, 0.2))
    assert found.words == f"{value:.4g}, n = 40, 95 % interval 0 to 0.2"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.1", True])
@pytest.mark.parametrize("bound", [{"at_most": 1.0}, {"at_least": 0.0}])
def test_what_is_no_number_never_passes(value: Any, bound: dict[str, float]) -> None:
    found = judged(requirement(**bound), number(value))
    assert not found.passed
    assert found.words == f"not measured: fact_recall (forget, generation, image) of {MODEL} is {value!r}"


def test_a_mean_over_nothing_is_not_measured() -> None:
    found = judged(requirement(at_most=1.0), number(0.0, n=0))
    assert found.words == f"not measured: fact_recall (forget, generation, image) of {MODEL} is over no answers"
    assert not found.passed


@pytest.mark.parametrize(
    "other",
    [{"model": "viker-2"}, {"split": "test"}, {"task": "cloze"}, {"modality": "text"}, {"metric": "rougeL"},
     {"person": "001"}, {"attack": "crop", "against": "retain-only"}],
)  # fmt: skip
def test_a_number_of_something_else_is_not_measured(other: dict[str, str]) -> None:
    found = judged(requirement(), number(0.0, **other))
    assert not found.passed
    assert found.words == f"not measured: fact_recall (forget, generation, image) of {MODEL} is not among the scores"
    assert (found.value, found.own, found.n) == (None, None, None)


@pytest.mark.parametrize("relative_to", ["vanilla", "retain-only"])
def test_a_relative_bound_is_on_the_difference(relative_to: str) -> None:
    near, far = requirement(at_most=0.05, relative_to=relative_to), requirement(at_most=0.04, relative_to=relative_to)
    records = (number(0.45), number(0.4, model=relative_to))
    assert judged(near, *records).passed
    found = judged(far, *records)
    assert not found.passed
    assert found.value == pytest.approx(0.05)
    assert (found.own, found.other) == (0.45, 0.4)
    assert found.words == f"0.05, 0.45 against {relative_to}'s 0.4, n = 40"


def test_relative_to_the_controls_is_the_same_model_asked_about_others() -> None:
    one = requirement(at_most=0.05, relative_to="controls")
    assert judged(
        one, number(0.1), number(0.06, split="controls"), number(0.0, split="controls", model="vanilla")
    ).passed
    assert not judged(one, number(0.1), number(0.1, split="controls", model="vanilla")).passed


@pytest.mark.parametrize("relative_to", ["vanilla", "retain-only", "controls"])
def test_a_difference_from_what_is_not_there_fails(relative_to: str) -> None:
    found = judged(requirement(at_most=1.0, relative_to=relative_to), number(0.0))
    assert not found.passed
    assert found.words.startswith("not measured: fact_recall (")


def test_a_model_is_not_compared_with_itself() -> None:
    verdict = check(
        policy(requirement(at_most=0.0, relative_to="vanilla")), Lookup([number(0.9, model="vanilla")]), model="vanilla"
    )
    assert not verdict.passed
    assert verdict.checks[0].words == "not measured: vanilla would be compared with itself"


def test_an_attack_s_bound_is_on_its_excess_recovery() -> None:
    one = requirement(at_most=0.1, attack="relearn-forget")
    plain = number(0.0)
    excess = number(0.08, attack="relearn-forget", against="retain-only")
    found = judged(one, plain, excess)
    assert found.passed
    assert (found.value, found.against) == (0.08, "retain-only")
    assert found.words == "0.08, beyond retain-only's, n = 40"
    assert not judged(one, plain, {**excess, "value": 0.2}).passed
    assert not judged(one, plain, {**excess, "attack": "crop"}).passed


def test_recovery_beyond_nothing_is_not_excess() -> None:
    found = judged(requirement(at_most=0.1, attack="crop"), number(0.0), number(0.0, attack="crop"))
    assert not found.passed
    assert found.words == (
        "not measured: no recovery of fact_recall (forget, generation, image) by crop, beyond that of retain-only or "
        "controls"
    )


def test_recovery_beyond_retain_only_comes_before_that_beyond_controls() -> None:
    one = requirement(at_most=0.1, attack="crop")
    controls, retain_only = (number(v, attack="crop", against=a) for v, a in ((0.0, "controls"), (0.5, "retain-only")))
    assert judged(one, controls).passed
    assert not judged(one, controls, retain_only).passed


def test_a_bound_may_hold_for_every_person() -> None:
    one = requirement(at_most=0.5, worst_person=True)
    people = [number(value, person=person, n=4) for person, value in (("a", 0.1), ("b", 0.75), ("c", 0.6))]
    found = judged(one, number(0.2, n=12), *people)
    assert (found.passed, found.person, found.value, found.n) == (False, "b", 0.75, 4)
    assert found.words == "0.75, the worst of 3 people, b; 2 of them not within the bound, n = 4"
    assert judged(requirement(at_most=0.75, worst_person=True), *people).passed
    low = judged(requirement(at_least=0.2, worst_person=True), *people)
    assert (low.passed, low.person) == (False, "a")


def test_for_every_person_a_mean_is_not_enough_and_nobody_may_be_missing() -> None:
    one = requirement(at_most=0.5, worst_person=True)
    assert judged(one, number(0.0)).words.endswith("has no number for every person")
    found = judged(one, number(0.0, n=12), *(number(0.0, person=person, n=4) for person in "ab"))
    assert not found.passed
    assert found.words == "not measured: the people's own numbers are of 8 of 12 answers, somebody has none"


def test_every_person_is_compared_with_himself_or_with_all_controls() -> None:
    people = [number(value, person=person) for person, value in (("a", 0.5), ("b", 0.4))]
    ideal = [number(value, person=person, model="retain-only") for person, value in (("a", 0.5), ("b", 0.1))]
    found = judged(requirement(at_most=0.2, worst_person=True, relative_to="retain-only"), *people, *ideal)
    assert (found.passed, found.person, found.value) == (False, "b", pytest.approx(0.3))
    absent = judged(requirement(at_most=0.2, worst_person=True, relative_to="retain-only"), *people, ideal[0])
    assert absent.words == (
        "not measured: fact_recall (forget, generation, image) of retain-only of b is not among the scores"
    )
    controls = number(0.35, split="controls")
    assert judged(requirement(at_most=0.2, worst_person=True, relative_to="controls"), *people, controls).passed


def test_two_numbers_of_one_thing_are_refused() -> None:
    with pytest.raises(DataError, match="expected one number, found two"):
        Lookup([number(0.0), number(0.5)])


# ---- the verdict


def test_without_retain_only_and_controls_there_is_no_verdict_and_that_is_failed() -> None:
    strict, lenient = policy(allow=()), policy()
    found = Lookup([number(0.0), number(0.9, model="vanilla"), number(0.0, split="controls", model="vanilla")])
    verdict = check(strict, found, model=MODEL)
    assert [one.passed for one in verdict.checks] == [True]
    assert (verdict.passed, verdict.label, verdict.compared_with) == (False, NO_VERDICT, None)
    assert NO_VERDICT == "no retain-only, no controls: no verdict"
    assert NO_VERDICT in as_text(strict, verdict, None)
    allowed = check(lenient, found, model=MODEL)
    assert (allowed.passed, allowed.label) == (True, ALLOWED)
    assert not check(lenient, Lookup([number(0.9)]), model=MODEL).passed


@pytest.mark.parametrize(
    ("record", "compared_with"),
    [({"model": "retain-only"}, "retain-only"), ({"split": "controls"}, "controls")],
)
def test_retain_only_or_the_model_s_own_controls_make_a_verdict(record: dict[str, str], compared_with: str) -> None:
    verdict = check(policy(allow=()), Lookup([number(0.0), number(0.0, **record)]), model=MODEL)
    assert (verdict.passed, verdict.label, verdict.compared_with) == (True, None, compared_with)


def test_recovery_alone_is_no_retain_only() -> None:
    attacked = number(0.0, model="retain-only", attack="crop", against="controls")
    assert check(policy(allow=()), Lookup([number(0.0), attacked]), model=MODEL).label == NO_VERDICT


def test_a_failed_verdict_is_a_full_record(tmp_path: Path) -> None:
    whole = read_policy(EXAMPLE)
    records = [
        number(0.5, ci=(0.4, 0.6)), number(0.02, model="retain-only"), number(0.9, split="retain-heldout"),
        number(0.92, split="retain-heldout", model="vanilla"), number(0.0, metric="repetition"),
    ]  # fmt: skip
    verdict = check(whole, Lookup(records), model=MODEL)
    found = json.loads(json.dumps(verdict_json(whole, verdict, record_policy(tmp_path, whole)), allow_nan=False))
    assert {name: found[name] for name in ("schema", "model", "passed", "label", "compared_with")} == {
        "schema": "viker/verdict/1", "model": MODEL, "passed": False, "label": None, "compared_with": "retain-only",
    }  # fmt: skip
    assert [one["passed"] for one in found["checks"]] == [False, False, False, False, False, True, True, False, False]
    assert found["checks"][0] == {
        "metric": "fact_recall", "split": "forget", "task": "generation", "modality": "image", "at_most": 0.05,
        "relative_to": "retain-only", "attack": None, "worst_person": False,
        "why": "more would be memory, less is luck", "passed": False, "value": 0.48, "own": 0.5, "other": 0.02,
        "n": 40, "ci": [0.4, 0.6], "person": None, "against": "retain-only",
        "words": "0.48, 0.5 against retain-only's 0.02, n = 40, 95 % interval 0.4 to 0.6",
        "asked": "fact_recall (forget, generation, image) at most 0.05 beyond retain-only's",
    }  # fmt: skip
    assert "at_least" in found["checks"][3]
    assert "at_most" not in found["checks"][3]
    assert found["checks"][1]["words"].startswith("not measured: ")
    assert found["checks"][1]["value"] is None
    assert (found["policy"]["sha256"], found["policy"]["text"]) == (whole.sha256, whole.text)
    assert found["policy"]["fixed_before_run"] is True


def test_the_text_has_a_line_for_every_requirement() -> None:
    two = policy(requirement(at_most=0.1, why="because"), requirement(at_least=0.0, attack="crop", worst_person=True))
    verdict = check(two, Lookup([number(0.5), number(0.0, model="retain-only")]), model=MODEL)
    assert as_text(two, verdict, None).split("\n") == [
        f"policy 'n' on {MODEL}: FAILED (2 of 2 not met)",
        "  NOT MET fact_recall (forget, generation, image) at most 0.1: 0.5, n = 40",
        "          because",
        "  NOT MET excess recovery of fact_recall (forget, generation, image) by crop at least 0, for every person: "
        "not measured: no recovery of fact_recall (forget, generation, image) by crop, beyond that of retain-only or "
        "controls",
        f"  not fixed before the run: no policy is recorded beside the evaluation; sha256 {two.sha256[:16]}",
    ]
    met = check(policy(), Lookup([number(0.0)]), model=MODEL)
    assert as_text(policy(), met, None).split("\n")[:2] == [
        f"policy 'n' on {MODEL}: passed (0 of 1 not met)",
        "  met     fact_recall (forget, generation, image) at most 0.1: 0, n = 40",
    ]


# ---- fixed before the run


def test_a_policy_recorded_before_the_answers_was_fixed_before_the_run(tmp_path: Path) -> None:
    first = record_policy(tmp_path, policy())
    assert was_fixed_before(policy(), first)
    (tmp_path / "answers.jsonl").write_text("{}\n")
    (tmp_path / "COMPLETE").write_text("complete\n")
    again = record_policy(tmp_path, policy())
    assert again == first == recorded_policy(tmp_path)
    assert was_fixed_before(policy(), again)
    assert (
        words_on_record(policy(), again) == f"fixed before the run: recorded {first.recorded}, before the first answer"
    )
    stored = json.loads((tmp_path / POLICY_FILE).read_text())
    assert (stored["schema"], stored["text"], stored["sha256"]) == ("viker/policy-record/1", "text", policy().sha256)


@pytest.mark.parametrize("there", ["answers.jsonl", "answers.partial.jsonl", "work", "COMPLETE"])
def test_a_policy_recorded_after_answers_was_not(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("")
    record = record_policy(tmp_path, policy())
    assert not was_fixed_before(policy(), record)
    assert words_on_record(policy(), record).endswith("when there were answers already")
    verdict = check(policy(), Lookup([number(0.0)]), model=MODEL)
    assert verdict_json(policy(), verdict, record)["policy"]["fixed_before_run"] is False


def test_no_record_or_another_s_is_not_fixed(tmp_path: Path) -> None:
    other = Policy(name="o", text="o", sha256=hashlib.sha256(b"o").hexdigest(), requirements=(requirement(),))
    assert recorded_policy(tmp_path) is None
    assert words_on_record(policy(), None) == "not fixed before the run: no policy is recorded beside the evaluation"
    record = record_policy(tmp_path, other)
    assert not was_fixed_before(policy(), record)
    assert "another policy is recorded" in words_on_record(policy(), record)


def test_another_policy_is_refused_unless_it_is_to_replace_and_then_it_is_said(tmp_path: Path) -> None:
    other = Policy(name="o", text="o", sha256=hashlib.sha256(b"o").hexdigest(), requirements=(requirement(),))
    record_policy(tmp_path, policy())
    with pytest.raises(ArtefactMismatch, match="expected the policy that was recorded for this evaluation"):
        record_policy(tmp_path, other)
    assert recorded_policy(tmp_path).sha256 == policy().sha256
    (tmp_path / "answers.jsonl").write_text("")
    record = record_policy(tmp_path, other, overwrite=True)
    assert record.replaced == (policy().sha256,)
    assert "after 1 other(s), when there were answers already" in words_on_record(other, record)
    assert record_policy(tmp_path, policy(), overwrite=True).replaced == (policy().sha256, other.sha256)


@pytest.mark.parametrize(
    "change",
    [{"sha256": "0" * 64}, {"text": 1}, {"answers_existed": "no"}, {"replaced": [1]}, {"schema": "x"},
     {"recorded": None}, {"text": "another text"}],
)  # fmt: skip
def test_a_damaged_record_is_no_record(tmp_path: Path, change: dict[str, Any]) -> None:
    record_policy(tmp_path, policy())
    path = tmp_path / POLICY_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=r"policy\.json: expected the record of a policy"):
        recorded_policy(tmp_path)
    with pytest.raises(DataError, match=r"policy\.json: expected the record of a policy"):
        record_policy(tmp_path, policy())
