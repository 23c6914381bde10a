"""The page and the figure of `gradient_weights.py`, from nothing but what it found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ...evaluate.report.table import table
from .drawing import panels
from .shown import interval, number, percent, plural

_COLORS = {False: "C0", True: "C1"}
_LEAST_ENTROPY = 1e-7  # nats, of the figure
_MARKS = {"before": "o", "after": "x"}


def page(found: Mapping[str, Any]) -> str:
    """Return the page of what was found: a sentence a finding, then tables."""
    parts = ["### Gradient weights", _opening(found)]
    for when, moment in found["moments"].items():
        parts += [_held(found, when, moment), _normal(found, when, moment), _key(found, when, moment)]
    parts += ["Mean weight w(y) by entropy of the row:", _entropy_table(found), _world_table(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(found: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value:g}" for name, value in found["settings"].items())
    missing = "" if "after" in found["moments"] else " Not every world was looked at after training: no such numbers."
    return (
        f"Method `{found['method']}` ({settings}) in {plural(len(found['worlds']), 'world')}; key tokens have more "
        f"than {found['key_entropy']:g} nats. Weights are the answer's logit's, relative to gradient ascent.{missing}"
    )


def _held(found: Mapping[str, Any], when: str, moment: Mapping[str, Any]) -> str:
    if moment["max_error"] is None:
        return f"{_when(when)} no token had a weight."
    verdict = "hold" if moment["holds"] else "DO NOT hold"
    without = moment["without_weight"]
    left_out = (
        f" {plural(without, 'token')} {'is' if without == 1 else 'are'} left out: nothing is left beside the answer."
        if without
        else ""
    )
    return (
        f"{_when(when)} the predicted gradients of {plural(moment['tokens'], 'token')} {verdict}: the largest relative "
        f"error is {moment['max_error']:.2g}, the bound {found['bound']:g}.{left_out}"
    )


def _normal(found: Mapping[str, Any], when: str, moment: Mapping[str, Any]) -> str:
    normal, limit = moment["normal"], found["normal_limit"]
    if not normal["tokens"]:
        return ""
    told = (
        f"Proposition 2, {when} training: {percent(normal['near'])} of {plural(normal['tokens'], 'normal token')} have "
        f"a weight within {found['near']:g} of the limit {limit:g} "
        f"{interval(normal['near_ci'], normal['near_people'], found['min_clusters'], 3)}; their mean weight is "
        f"{number(normal['mean_weight'], 2)}, the median {number(normal['median_weight'], 2)}."
    )
    if not normal["far"]:
        return told
    ratios = f"{_magnitude(normal['far_ratio'])} there, {_magnitude(normal['near_ratio'])} at those within"
    return (
        f"{told} Of the {normal['far']} others {percent(normal['far_above'])} are above the limit, and at "
        f"{percent(normal['far_student_surer'])} the student is surer of the answer than the teacher. The median of "
        f"(1 - R(y)) / (1 - q(y)), what teacher and student leave to other tokens, is {ratios}: a low entropy is not "
        "enough, the teacher has to leave less than the student does. Over all normal tokens the teacher leaves "
        f"{_magnitude(normal['teacher_doubt'])} and the student {_magnitude(normal['student_doubt'])} (medians); at "
        f"{percent(normal['alike'])} both leave the same within {100 * found['near']:g} %, and there the regularizer "
        "cancels: the weight is that of ascent alone."
    )


def _key(found: Mapping[str, Any], when: str, moment: Mapping[str, Any]) -> str:
    key = moment["key"]
    if not key["with_kept"]:
        return ""
    return (
        f"Proposition 3, {when} training: at {percent(key['above_one'])} of {plural(key['with_kept'], 'key token')} "
        f"some token beside the answer is pushed harder than by ascent, w(v) > 1 "
        f"{interval(key['above_one_ci'], key['above_one_people'], found['min_clusters'], 3)}; over the kept tokens of "
        f"a row, {percent(key['kept_above_one'])} are."
    )


def _entropy_table(found: Mapping[str, Any]) -> str:
    moments = found["moments"]
    classes = zip(*(moment["by_entropy"] for moment in moments.values()), strict=True)
    rows = [
        [_nats(same[0]), *(cell for one in same for cell in
                           (str(one["tokens"]), number(one["mean_weight"], 2), number(one["median_weight"], 2),
                            percent(one["near"])))]
        for same in classes
    ]  # fmt: skip
    header = [
        f"{name}, {when}"
        for when in moments
        for name in ("tokens", "mean", "median", f"within {found['near']:g} of limit")
    ]
    return table(["entropy (nats)", *header], rows)


def _world_table(found: Mapping[str, Any]) -> str:
    rows = [
        [world, when, str(moment["steps"][world]), str(one["tokens"]), str(one["key"]), percent(one["near"]),
         number(one["normal_weight"], 2), number(one["key_weight"], 2), _magnitude(one["max_error"])]
        for when, moment in found["moments"].items() for world, one in moment["by_world"].items()
    ]  # fmt: skip
    header = ["world", "when", "step", "tokens", "key", "normal within limit", "mean weight, normal",
              "mean weight, key", "largest error"]  # fmt: skip
    return table(header, rows)


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Draw measured against predicted weights, and weights along the entropy of the row."""
    with panels(path, 2) as (agreement, along):
        for when, moment in found["moments"].items():
            points = moment["points"]
            for is_key in (False, True):
                places = [place for place, one in enumerate(points["is_key"]) if one == is_key]
                label = f"{'key' if is_key else 'normal'}, {when}"
                _scatter(agreement, points, ("predicted", "measured"), places, when, is_key, label)
                _scatter(along, points, ("entropy", "measured"), places, when, is_key, label)
        agreement.axline((0, 0), slope=1, color="black", linewidth=0.7)
        agreement.set(xlabel="predicted w(y)", ylabel="measured w(y)", title="Weights of answer tokens")
        along.axhline(found["normal_limit"], color="black", linestyle=":", label=f"limit {found['normal_limit']:g}")
        along.axvline(found["key_entropy"], color="gray", linewidth=0.7)
        along.set(xlabel="entropy of the row (nats)", ylabel="measured w(y)", title="Weight along entropy")
        along.set_xscale("log")
        low, high, scale = _scale_of_weights(found)
        agreement.set_xscale(**scale)
        for axes in (agreement, along):
            axes.set_yscale(**scale)
            axes.set_ylim(low, high)
        agreement.set_xlim(low, high)
        along.legend(fontsize="small")


def _scale_of_weights(found: Mapping[str, Any]) -> tuple[float, float, dict[str, Any]]:
    """Return the ends of an axis of weights and its scale: logarithmic, through zero where weights are not above it."""
    weights = [value for moment in found["moments"].values() for value in moment["points"]["measured"]]
    low, high = min([*weights, found["normal_limit"]]), max([*weights, 1.0])
    if low > 0:
        return low / 1.3, high * 1.3, {"value": "log"}
    return low * 1.3 - 0.1, high * 1.3, {"value": "symlog", "linthresh": 1}


def _scatter(
    axes: Axes,
    points: Mapping[str, Any],
    names: tuple[str, str],
    places: list[int],
    when: str,
    is_key: bool,
    label: str,
) -> None:
    x, y = ([points[name][place] for place in places] for name in names)
    if names[0] == "entropy":
        x = [max(value, _LEAST_ENTROPY) for value in x]  # rounding may leave an entropy of 0
    axes.plot(
        x,
        y,
        _MARKS[when],
        color=_COLORS[is_key],
        markersize=3,
        alpha=0.4,
        linestyle="none",
        label=label,
        rasterized=True,
    )  # thousands of marks: as paths they are a megabyte


def _nats(one: Mapping[str, Any]) -> str:
    return f"{one['low']:g} and more" if one["high"] is None else f"{one['low']:g} to {one['high']:g}"


def _when(when: str) -> str:
    return f"{when.capitalize()} training,"


def _magnitude(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
