"""Did it really forget? Everything that kept answers say about one model, as long-form records that a policy reads.

A record is a number and what it is measured against: "nothing" (the model alone), "retain-only" (the same questions put
to the model that never knew), or the split of strangers ("controls"). A metric's name with `_difference` behind it is
the model minus what it is measured against. A value of None is not measured, never zero, and `note` says why.
Vanilla and retain-only are measured by the same function: what they reach is what an adapter's numbers stand beside.
Differences from retain-only say in `note` which way they go (`report/likelihood.py`'s words: less forgotten, the same,
over-forgotten). Which of these numbers decides is a policy's to say.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...data.sidecar import Sidecar
from ..answers import Answer
from ..matched import mean_and_standard_error
from ..report.likelihood import NO_ERROR, verdict_on
from .controls import METRICS as _GROW_WITH_KNOWLEDGE
from .controls import ControlsDifference, controls_differences
from .distance import Distance, distances
from .membership import MIN_NON_MEMBERS, Membership, aucs, membership
from .pairs import Pair, cluster_means, difference_sums, matched_by_id, with_metric
from .per_answer import Cell, Scored, cells, metrics_of, scored, sums_by_cluster
from .statistics import Interval, clustered_mean, paired_test

MEASURES_SCHEMA = "viker/measures/1"
NOTHING, RETAIN_ONLY, CONTROLS = "nothing", "retain-only", "controls"
NO_VERDICT = "no retain-only, no controls: no verdict"
FORGET = "forget"
_COMPARED_WITH_STRANGERS = (FORGET, "test")
_SHARES_OF_RIGHT = frozenset({"fact_recall", "accuracy", "accuracy_likelihood"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number about a model.

    Attributes:
        n: questions it is over; matched ones for a difference, members and non-members for membership.
        people: clusters it is over: people, pairs of people, or people of both sides.
        ci: 95 % interval over them; None below 18 and where a number has none.
        p: two-sided and not adjusted for the other records, None where nothing is tested.
        against: "retain-only", the split of strangers, or "nothing".
    """

    split: str
    task: str
    modality: str
    metric: str
    value: float | None
    n: int
    people: int
    ci: Interval | None = None
    p: float | None = None
    against: str = NOTHING
    note: str = ""


def measure(
    answers: Sequence[Answer],
    retain_only: Sequence[Answer] | None,
    facts: Sidecar | None,
    seed: int,
    strangers: str = CONTROLS,
) -> list[Measure]:
    """Return every measure of one model's answers, of one world.

    `retain_only` are the answers of that model to the same questions, None where there is none; `strangers` names the
    split of people whom no model met, and answers without such a split are not compared with any.
    """
    ours, ideal = cells(scored(answers, facts)), cells(scored(retain_only or (), facts))
    found = [record for cell, items in ours.items() for record in _alone(cell, items, seed)]
    for cell, items in ours.items():
        if cell in ideal:
            found += _differences(cell, items, ideal[cell], seed) + _distances(cell, items, ideal[cell])
    for cell, items in ours.items():
        unknown = cell._replace(split=strangers)
        if cell.split in _COMPARED_WITH_STRANGERS and unknown in ours:
            found += _against_strangers(cell, items, ours[unknown], seed, strangers)
        if cell.split == FORGET and unknown in ours:
            ideal_aucs = aucs(_membership(ideal.get(cell, ()), ideal.get(unknown, ()), {}, seed))
            for leak in _membership(items, ours[unknown], ideal_aucs, seed):
                found += _leak_records(cell, leak, strangers)
    return found


def label(answers: Iterable[Answer], retain_only: Sequence[Answer] | None, strangers: str = CONTROLS) -> str:
    """Return what a model's measures stand against, in words; without anything there is no verdict."""
    against = [RETAIN_ONLY] if retain_only else []
    against += [strangers] if any(answer.split == strangers for answer in answers) else []
    return f"against {' and '.join(against)}" if against else NO_VERDICT


def measures_json(measures: Iterable[Measure], against: str) -> dict[str, Any]:
    """Return measures and their label (`label`) ready for `json.dump`."""
    records = [asdict(one) | {"ci": list(one.ci) if one.ci else None} for one in measures]
    return {"schema": MEASURES_SCHEMA, "label": against, "measures": records}


def _alone(cell: Cell, items: Sequence[Scored], seed: int) -> list[Measure]:
    found = []
    for metric in metrics_of(items):
        mean = clustered_mean(sums_by_cluster(items, metric), seed)
        found.append(
            Measure(**cell._asdict(), metric=metric, value=mean.value, n=mean.n, people=mean.clusters, ci=mean.ci)
        )
    return found


def _differences(cell: Cell, items: Sequence[Scored], ideal: Sequence[Scored], seed: int) -> list[Measure]:
    pairs = matched_by_id(items, ideal)
    alone = len(items) + len(ideal) - 2 * len(pairs)
    found = []
    for metric in metrics_of(items):
        shared = with_metric(pairs, metric)
        if shared:
            test = paired_test(cluster_means(difference_sums(shared, metric)), seed)
            notes = [_both_directions(cell, metric, shared, test.mean)] if metric in _GROW_WITH_KNOWLEDGE else []
            notes += [f"{alone} questions were asked of one model only"] if alone else []
            found.append(
                Measure(
                    **cell._asdict(),
                    metric=f"{metric}_difference",
                    value=test.mean,
                    n=len(shared),
                    people=test.n,
                    ci=test.ci,
                    p=test.p,
                    against=RETAIN_ONLY,
                    note="; ".join(filter(None, notes)),
                )
            )
    return found


def _both_directions(cell: Cell, metric: str, pairs: Sequence[Pair], difference: float) -> str:
    """Say whether forget people are forgotten less or more than never known, as the report does of likelihood.

    One standard error of retain-only's counts as the same, and of shares of right answers one answer at least: where
    retain-only has none right the error is zero, and a single lucky guess is not knowledge (as in `matched.py`).
    """
    if cell.split not in _COMPARED_WITH_STRANGERS:
        return ""
    sums = sums_by_cluster([ideal for _, ideal in pairs], metric)
    if len(sums) == 1:
        return NO_ERROR
    _, error = mean_and_standard_error(sums)
    return verdict_on(difference, max(error, 1 / len(pairs)) if metric in _SHARES_OF_RIGHT else error)


def _distances(cell: Cell, items: Sequence[Scored], ideal: Sequence[Scored]) -> list[Measure]:
    found = distances([item.answer for item in items], [item.answer for item in ideal])
    people = len({item.cluster for item in items})
    return [record for distance in found for record in _distance_records(cell, distance, people)]


def _distance_records(cell: Cell, distance: Distance, people: int) -> list[Measure]:
    """Return one record a number; `forget_quality` names are only for the forget split, which they are defined on."""
    values: dict[str, tuple[float, float | None]] = {
        f"{distance.quantity}_ks": (distance.ks, distance.ks_p),
        f"{distance.quantity}_js": (distance.js, None),
    }
    if distance.js_official is not None:
        values[f"{distance.quantity}_js_official"] = (distance.js_official, None)
        if cell.split == FORGET:
            values["forget_quality_tofu"] = (distance.ks_p, distance.ks_p)
            values["forget_quality_clear"] = (1 - distance.js, None)
            values["forget_quality_clear_official"] = (1 - distance.js_official, None)
    return [
        Measure(
            **cell._asdict(), metric=metric, value=value, n=distance.n, people=people, p=p, against=RETAIN_ONLY
        )
        for metric, (value, p) in values.items()
    ]  # fmt: skip


def _against_strangers(
    cell: Cell, items: Sequence[Scored], unknown: Sequence[Scored], seed: int, strangers: str
) -> list[Measure]:
    found = controls_differences(items, unknown, seed)
    return [record for difference in found for record in _controls_records(cell, difference, strangers)]


def _controls_records(cell: Cell, found: ControlsDifference, strangers: str) -> list[Measure]:
    """Return the paired test with its verdict, and the unpaired one of all people."""
    left = f"; {found.left_over} people in no pair" if found.left_over else ""
    paired = Measure(
        **cell._asdict(), metric=f"{found.metric}_difference", value=found.paired.mean, n=found.questions,
        people=found.paired.n, ci=found.paired.ci, p=found.paired.p, against=strangers, note=found.verdict + left,
    )  # fmt: skip
    everyone = found.everyone
    people = everyone.n_first + everyone.n_second
    unpaired = Measure(
        **cell._asdict(), metric=f"{found.metric}_difference_unpaired", value=everyone.difference, n=people,
        people=people, ci=everyone.ci, p=everyone.p, against=strangers,
        note=f"{everyone.n_first} forget people, {everyone.n_second} others, questions unmatched",
    )  # fmt: skip
    return [paired, unpaired]


def _membership(
    items: Sequence[Scored], unknown: Sequence[Scored], ideal_aucs: Mapping[str, float], seed: int
) -> list[Membership]:
    return membership([item.answer for item in items], [item.answer for item in unknown], seed, ideal_aucs)


def _leak_records(cell: Cell, leak: Membership, strangers: str) -> list[Measure]:
    """Return AUC, privacy, TPR and PrivLeak of one attack; PrivLeak is against retain-only, and only there."""
    values = {
        f"auc_{leak.attack}": (leak.auc, leak.ci, leak.not_measured),
        f"privacy_{leak.attack}": (leak.privacy, None, leak.not_measured),
        f"tpr_at_1_percent_{leak.attack}": (leak.tpr, None, leak.not_measured or _too_few(leak)),
    }
    found = [
        Measure(
            **cell._asdict(), metric=metric, value=value, n=leak.members + leak.non_members, people=leak.people,
            ci=ci, against=strangers, note=note,
        )
        for metric, (value, ci, note) in values.items()
    ]  # fmt: skip
    if leak.priv_leak is not None:
        found.append(
            Measure(
                **cell._asdict(),
                metric=f"priv_leak_{leak.attack}",
                value=leak.priv_leak,
                n=leak.members + leak.non_members,
                people=leak.people,
                against=RETAIN_ONLY,
            )
        )
    return found


def _too_few(leak: Membership) -> str:
    if leak.tpr is not None:
        return ""
    return f"not measured: {leak.non_members} non-members, 1 % false alarms need {MIN_NON_MEMBERS}"
