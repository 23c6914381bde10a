"""What an attack brings back: kept answers before and after it, to recovery on the forget people, person by person.

Recovery is the value after an attack minus the value before it on the forget people, beside the change of the same
attack on held-out retain people (an attack that changes everybody's answers uncovers nothing). A model that never knew
the forget people also changes under attack, so what counts is the excess: recovery minus that of retain-only under the
same attack, paired by person; without retain-only, minus that of people no model was trained on (controls) in the same
model; with neither there is no excess, and the row says so. Source: reference/methods.md, section 5, R_A.
Values are means over people of their means. Intervals and tests are over people (`measures/statistics.py`), intervals
None below 18 of them. A caller that pools worlds puts the world into `person`. Nothing here needs a model; who asked is
`run.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from ...data.example import DataError
from ...data.sidecar import Sidecar
from ..answers import LOGPROB, Answer, token_logprob
from ..measures.statistics import Interval, clustered_mean, paired_test, unpaired_test
from ..protocols.metrics import rouge_of_scripts
from ..recall import fact_recall_by_person

ATTACKS_SCHEMA = "viker/attacks/1"
METRICS = ("fact_recall", "rougeL", LOGPROB)
FORGET, RETAIN, CONTROLS = "forget", "retain-heldout", "controls"
RETAIN_ONLY = "retain-only"
NO_BASELINE = "no retain-only, no controls"

# A person's value before and after an attack.
Change = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one model: its answers before any attack, and after each, by the attack's name."""

    before: Sequence[Answer]
    attacked: Mapping[str, Sequence[Answer]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """One attack on one model by one metric.

    Attributes:
        baseline: what recovery is compared with: `retain-only`, `controls`, or None; `label` then says that.
        before, after: on the forget people, means over people.
        retain_change: after minus before on held-out retain people; None where none were asked.
        excess: recovery minus the baseline's; paired by person against retain-only.
        n, n_baseline: people behind recovery and behind the baseline's.
        recovery_ci, excess_ci: 95 % intervals; None below 18 people.
        p: two-sided, of the excess being zero; None without a baseline, and not adjusted for the number of rows.
    """

    model: str
    attack: str
    metric: str
    baseline: str | None
    label: str | None
    before: float
    after: float
    recovery: float
    retain_change: float | None
    baseline_recovery: float | None
    excess: float | None
    n: int
    n_baseline: int
    recovery_ci: Interval | None
    excess_ci: Interval | None
    p: float | None
    seed: int


def attack_rows(
    kept: Kept,
    retain_only: Kept | None,
    facts: Sidecar | None,
    *,
    control_facts: Sidecar | None = None,
    seed: int = 0,
) -> list[Recovery]:
    """Return a row for each attack and metric that the kept answers hold on the forget people.

    Facts are needed for `fact_recall` only. `answer_logprob` is in nats a token, the others are shares.

    Raises:
        DataError: an answer under attack has no counterpart before it.
    """
    by_split = {FORGET: facts, RETAIN: facts, CONTROLS: control_facts}
    rows = []
    for attack, answers in kept.attacked.items():
        for metric in METRICS:
            changes = {
                split: changes_of(kept.before, answers, split, metric, sidecar) for split, sidecar in by_split.items()
            }
            if not changes[FORGET]:
                continue
            never_knew = (
                changes_of(retain_only.before, retain_only.attacked[attack], FORGET, metric, facts)
                if retain_only is not None and attack in retain_only.attacked
                else {}
            )
            rows.append(_row(answers[0].model, attack, metric, changes, never_knew, seed))
    return rows


def attacks_json(rows: Sequence[Recovery]) -> dict[str, Any]:
    """Return the content of `attacks.json`."""
    return {"schema": ATTACKS_SCHEMA, "rows": [asdict(row) for row in rows]}


def changes_of(
    before: Sequence[Answer], after: Sequence[Answer], split: str, metric: str, facts: Sidecar | None
) -> dict[str, Change]:
    """Return each person's value before and after an attack, over the questions of a split that both answer.

    Raises:
        DataError: a question was answered under attack only.
    """
    known = {answer.id: answer for answer in before if answer.split == split}
    values: dict[str, list[Change]] = {}
    for answer in after:
        if answer.split != split:
            continue
        if answer.id not in known:
            raise DataError(
                f"{split} / {answer.id}: expected an answer before the attack, found none. Attack the model again."
            )
        pair = tuple(_VALUES[metric](one, facts) for one in (_comparable(known[answer.id], answer), answer))
        if pair[0] is not None and pair[1] is not None:
            values.setdefault(answer.person, []).append((pair[0], pair[1]))
    return {
        person: (fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs))
        for person, pairs in sorted(values.items())
    }


def _comparable(before: Answer, after: Answer) -> Answer:
    """Return an answer before an attack without the words that the attack forced, in what is expected and in the reply.

    Forced words are cut from what is expected under attack (`prefix.py`), so they are what that lacks.
    """
    if after.expected == before.expected or not before.expected.endswith(after.expected):
        return before
    forced = before.expected[: len(before.expected) - len(after.expected)].strip()
    reply = before.reply or ""
    starts = reply.casefold().startswith(forced.casefold())
    return replace(before, expected=after.expected, reply=reply[len(forced) :].strip() if starts else reply)


def _fact_value(answer: Answer, facts: Sidecar | None) -> float | None:
    recall = fact_recall_by_person([answer], facts).get(answer.person)
    return None if recall is None else recall[0] / recall[1]


def _rouge_value(answer: Answer, _facts: Sidecar | None) -> float | None:
    return None if answer.options else rouge_of_scripts(answer.expected, answer.reply or "")["rougeL"]


def _logprob_value(answer: Answer, _facts: Sidecar | None) -> float | None:
    return token_logprob(answer)


_VALUES: Mapping[str, Callable[[Answer, Sidecar | None], float | None]] = {
    "fact_recall": _fact_value, "rougeL": _rouge_value, LOGPROB: _logprob_value,
}  # fmt: skip


def _row(
    model: str,
    attack: str,
    metric: str,
    changes: Mapping[str, Mapping[str, Change]],
    never_knew: Mapping[str, Change],
    seed: int,
) -> Recovery:
    forget = changes[FORGET]
    recoveries = [recovered(change) for change in forget.values()]
    retain = [recovered(change) for change in changes[RETAIN].values()]
    compared = _against_retain_only(forget, never_knew, seed) or _against_controls(recoveries, changes[CONTROLS], seed)
    return Recovery(
        model=model, attack=attack, metric=metric, baseline=compared.baseline,
        label=None if compared.baseline else NO_BASELINE,
        before=fmean(change[0] for change in forget.values()), after=fmean(change[1] for change in forget.values()),
        recovery=fmean(recoveries), retain_change=fmean(retain) if retain else None,
        baseline_recovery=compared.recovery, excess=compared.excess, n=len(recoveries), n_baseline=compared.n,
        recovery_ci=clustered_mean({str(i): (value, 1) for i, value in enumerate(recoveries)}, seed).ci,
        excess_ci=compared.ci, p=compared.p, seed=seed,
    )  # fmt: skip


class _Comparison(NamedTuple):
    baseline: str | None = None
    recovery: float | None = None
    excess: float | None = None
    n: int = 0
    ci: Interval | None = None
    p: float | None = None


def _against_retain_only(
    forget: Mapping[str, Change], never_knew: Mapping[str, Change], seed: int
) -> _Comparison | None:
    """Compare with the same people in retain-only; None where it was asked about none of them."""
    both = sorted(forget.keys() & never_knew.keys())
    if not both:
        return None
    others = [recovered(never_knew[person]) for person in both]
    test = paired_test([recovered(forget[person]) - other for person, other in zip(both, others, strict=True)], seed)
    return _Comparison(RETAIN_ONLY, fmean(others), test.mean, test.n, test.ci, test.p)


def _against_controls(recoveries: Sequence[float], controls: Mapping[str, Change], seed: int) -> _Comparison:
    """Compare with controls in the same model, or with nothing where there are none."""
    others = [recovered(change) for change in controls.values()]
    if not others:
        return _Comparison()
    test = unpaired_test(recoveries, others, seed)
    return _Comparison(CONTROLS, fmean(others), test.difference, test.n_second, test.ci, test.p)


def recovered(change: Change) -> float:
    """Return the value after an attack minus that before it."""
    return change[1] - change[0]
