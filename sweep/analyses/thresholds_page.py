"""The page and the figure of `thresholds.py`, from nothing but what it found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...evaluate.report.table import table
from .drawing import panels
from .shown import bounds, interval, number, percent

_NAMES = {
    "entropy": "entropy of the row", "disagreement": "disagreement of the references", "doubt": "1 - R(y)",
}  # fmt: skip
_SHOWN = (0.01, 0.05, 0.1, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.5, 3.0, 3.5, 4.0)
_WORST = 3
_LEAST_AUROC = 0.9  # where the figure begins, if nothing is below


def page(found: Mapping[str, Any]) -> str:
    """Return the page of what was found: a sentence a finding, then tables."""
    parts = [
        "### Entropy threshold", *_sentences(found), _epsilon_table(found), _world_table(found), _score_table(found),
        _kind_table(found), _person_table(found), _place_table(found),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _sentences(found: Mapping[str, Any]) -> list[str]:
    overall, default = found["overall"], found["default"]
    at_default = overall["at_default"]
    order = (
        f"{at_default['words']} words in answers about {overall['people']} people of {len(found['worlds'])} "
        f"{'world' if len(found['worlds']) == 1 else 'worlds'}, {at_default['private']} of them private: a word's "
        f"largest row entropy puts private words above others with an AUROC of {number(overall['auroc'], 4)} "
        f"{interval(overall['ci'], overall['clusters'], found['min_clusters'])}."
    )
    return [order, _plateau_sentence(found, default), *_rival_sentences(found), *_place_sentences(found)]


def _plateau_sentence(found: Mapping[str, Any], default: float) -> str:
    best = found["overall"]["plateau"]
    if best is None:
        return "No word is private, so that no threshold is better than another."
    at_default = found["overall"]["at_default"]
    shared = found["shared_interval"]
    within = "lies within" if best["holds_default"] else "lies outside"
    also = f" F1 falls further between {best['pieces']} such stretches." if best["pieces"] > 1 else ""
    told = (
        f"The best F1 of any threshold is {best['best_f1']:.4f}; it stays within 1 % of that from {best['low']:.3g} to "
        f"{best['high']:.3g} nats. The default of {default:g} nats {within} that: F1 {number(at_default['f1'], 4)}, "
        f"precision {number(at_default['precision'], 4)}, recall {number(at_default['recall'], 4)}, "
        f"{percent(at_default['key_share'])} of all words called key.{also}"
    )
    if len(found["worlds"]) < 2:
        return told
    if shared is None:
        return f"{told} No threshold is within 1 % of the best in every world."
    holds = "the default among them" if shared[0] <= default < shared[1] else "the default not among them"
    return f"{told} Thresholds from {shared[0]:.3g} to {shared[1]:.3g} nats, {holds}, are that near in every world."


def _rival_sentences(found: Mapping[str, Any]) -> list[str]:
    sentences = []
    for name, rival in found["scores"].items():
        difference = rival["below_entropy"]
        if difference is None or difference["difference"] is None:
            continue
        by, ci = difference["difference"], difference["ci"]
        verdict = (
            "no interval says whether that is more than chance" if ci is None
            else f"95 % interval of entropy's lead {ci[0]:+.2g} to {ci[1]:+.2g}"
        )  # fmt: skip
        compared = f"{abs(by):.2g} {'less' if by > 0 else 'more'} than entropy" if by else "as much as entropy"
        sentences.append(
            f"{_NAMES[name][0].upper()}{_NAMES[name][1:]}: AUROC {number(rival['auroc'], 4)}, {compared} ({verdict})."
        )
    return sentences


def _place_sentences(found: Mapping[str, Any]) -> list[str]:
    tokens, default = found["tokens"], found["default"]
    first, later = tokens["first"], tokens["later"]
    if first["auroc"] is None:
        return []
    told = (
        f"Of single tokens, the first of a private word has an AUROC of {first['auroc']:.4f} against ordinary ones, "
        f"and {percent(first['key_share'])} of them are above {default:g} nats"
    )
    if later["auroc"] is None:
        return [f"{told}; no private word has a second token."]
    return [
        f"{told}; of the {later['tokens']} tokens that follow inside a private word {percent(later['key_share'])} are "
        f"(AUROC {later['auroc']:.4f}), as is to be expected where the first decides the rest. Over all private tokens "
        f"AUROC is {number(tokens['private']['auroc'], 4)}."
    ]


def _epsilon_table(found: Mapping[str, Any]) -> str:
    rows = [
        [f"{one['epsilon']:g}", percent(one["key_share"]),
         *(number(one[name], 3) for name in ("precision", "recall", "f1", "accuracy"))]
        for one in found["by_epsilon"] if one["epsilon"] in _SHOWN or one["epsilon"] == found["default"]
    ]  # fmt: skip
    return table(["epsilon (nats)", "words called key", "precision", "recall", "F1", "accuracy"], rows)


def _world_table(found: Mapping[str, Any]) -> str:
    rows = [
        [name, str(one["people"]), str(one["at_default"]["words"]), number(one["auroc"], 4),
         *(_plateau_cell(one["plateau"], end) for end in ("best_f1", "low", "high")),
         number(one["at_default"]["f1"], 4)]
        for name, one in found["by_world"].items()
    ]  # fmt: skip
    header = ["world", "people", "words", "AUROC", "best F1", "within 1 % from", "to below", "F1 at default"]
    return table(header, rows)


def _score_table(found: Mapping[str, Any]) -> str:
    rows = [
        [_NAMES[name], number(one["auroc"], 4), bounds(one["ci"]), _plateau_cell(one["plateau"], "best_f1"),
         _plateau_cell(one["plateau"], "low"), _plateau_cell(one["plateau"], "high")]
        for name, one in found["scores"].items()
    ]  # fmt: skip
    return table(["score", "AUROC", "95 % interval", "best F1", "within 1 % from", "to below"], rows)


def _kind_table(found: Mapping[str, Any]) -> str:
    rows = [
        [one["kind"] or "(states no fact)", str(one["at_default"]["words"]), str(one["at_default"]["private"]),
         *(number(one["scores"][name], 4) for name in _NAMES),
         number(one["at_default"]["f1"], 3), percent(one["at_default"]["key_share"])]
        for one in found["by_kind"]
    ]  # fmt: skip
    return table(
        ["kind of fact", "words", "private", *(f"AUROC, {_NAMES[name]}" for name in _NAMES), "F1 at default",
         "called key"],
        rows,
    )  # fmt: skip


def _person_table(found: Mapping[str, Any]) -> str:
    people = found["by_person"]
    rows = [
        [f"{label}, over {spread['people']} people",
         *(number(spread[name], 4) for name in ("lowest", "first_quartile", "median", "third_quartile", "highest"))]
        for label, spread in (("AUROC", people["auroc"]), ("F1 at default", people["f1"])) if spread is not None
    ]  # fmt: skip
    worst = ", ".join(
        f"{one['person']} (AUROC {number(one['auroc'], 4)}, F1 {number(one['f1'], 3)})"
        for one in people["people"][:_WORST]
    )
    without = people["without_private_words"]
    left_out = f" {without} people have no private word in any answer, and no AUROC." if without else ""
    told = f"Lowest by person: {worst}.{left_out}"
    return "\n\n".join([table(["by person", "lowest", "25 %", "median", "75 %", "highest"], rows), told])


def _place_table(found: Mapping[str, Any]) -> str:
    names = {
        "first": "first of a private word", "later": "later in a private word", "private": "all private",
        "ordinary": "ordinary",
    }  # fmt: skip
    rows = [
        [label, str(one["tokens"]), str(one["key"]), percent(one["key_share"]), number(one["median_entropy"], 3),
         number(one.get("auroc"), 4)]
        for name, label in names.items() for one in [found["tokens"][name]]
    ]  # fmt: skip
    return table(["tokens", "number", "called key", "share", "median entropy", "AUROC against ordinary"], rows)


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Draw F1, precision and recall along epsilon, and AUROC of every score by kind of fact."""
    with panels(path, 2) as (along, kinds):
        for name, label in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
            points = [(one["epsilon"], one[name]) for one in found["by_epsilon"] if one[name] is not None]
            along.plot(*zip(*points, strict=True), marker=".", label=label)
        best = found["overall"]["plateau"]
        if best is not None:
            low = max(best["low"], found["by_epsilon"][0]["epsilon"])
            along.axvspan(low, max(low, best["high"]), alpha=0.15, color="gray", label="F1 within 1 % of best")
        along.axvline(found["default"], color="black", linestyle=":", label="default")
        along.set(xscale="log", xlabel="epsilon (nats)", ylim=(-0.02, 1.02), title="Words called key, against private")
        along.legend(fontsize="small", loc="lower left")
        known = [one for one in found["by_kind"] if one["auroc"] is not None]
        for name, mark in zip(_NAMES, "osD", strict=True):
            kinds.plot([one["scores"][name] for one in known], range(len(known)), mark, alpha=0.7, label=_NAMES[name])
        kinds.set_yticks(range(len(known)), [one["kind"] for one in known])
        lowest = min([_LEAST_AUROC, *(value for one in known for value in one["scores"].values())])
        kinds.set(xlabel="AUROC", title="By kind of fact", xlim=(lowest - 0.01, 1.01))
        kinds.legend(fontsize="small")


def _plateau_cell(best: Mapping[str, Any] | None, name: str) -> str:
    return "-" if best is None else f"{best[name]:.4f}" if name == "best_f1" else f"{best[name]:.3g}"
