"""From options to a method: a name of the table or a user's own file, its settings, and the parts of it left out.

Everything that can be wrong with a method is said here, before anything heavy is loaded. Imports no torch (a user's
file may, `own_method.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..data.example import DataError
from ..data.kinds import Kind
from .method import BUILT_IN, Method, Reads, Rows, Term
from .methods import METHODS
from .own_method import own_method

Ascent = Literal["uniform", "adaptive", "none"]
Regularizer = Literal["kl", "jsd", "cosine", "none"]
TokenLambda = Literal["constant", "entropy"]

_ASCENTS = {"uniform": "climb", "adaptive": "climb_adaptively"}
_REGULARIZERS = {
    ("kl", "constant"): "follow", ("kl", "entropy"): "follow_by_entropy",
    ("jsd", "constant"): "follow_jensen_shannon", ("cosine", "constant"): "follow_kept_cosine",
}  # fmt: skip
_DIVIDE_BY_BETA = ("prefer_anything", "prefer_anything_simply", "prefer_refusals")


def find_method(name: str) -> Method:
    """Return a method of the table, or the one that `FILE.py:NAME` names.

    Raises:
        DataError: there is none.
    """
    path, _, attribute = name.rpartition(":")
    if path.endswith(".py"):
        return own_method(Path(path), attribute)
    if name not in METHODS:
        raise DataError(f"--method: expected one of {', '.join(METHODS)}, or FILE.py:NAME, found {name!r}.")
    return METHODS[name]


def choose_method(
    name: str,
    *,
    lambda_: float | None = None,
    retain: float | None = None,
    settings: Mapping[str, float] | None = None,
    ascent: Ascent | None = None,
    regularizer: Regularizer | None = None,
    token_lambda: TokenLambda = "constant",
    teacher: Kind | None = None,
) -> Method:
    """Return a method with the user's settings and terms.

    `lambda_` reaches methods that have one; `ascent` and `regularizer` replace those terms, or leave them out
    (ablations without GA, without Reg); `teacher` is another kind of rows for the forget examples (`self`: without
    Vis).

    Raises:
        DataError: an unknown name or setting, a number that cannot be, or nothing left of the loss.
    """
    method = _with_settings(find_method(name), lambda_, retain, settings or {})
    terms = _with_ascent(method.forget, ascent)
    terms = _with_regularizer(terms, regularizer, token_lambda)
    terms = tuple(term for term in terms if method.weight(term) != 0)
    method = replace(method, forget=terms, reads=_reads(method.reads, terms, teacher))
    _require_numbers(method)
    if not method.forget and not method.needs_retain:
        raise DataError(
            f"--method {method.name} with what was left out: expected at least one term in the loss, found none. "
            "Keep the ascent, the regularizer, or a retain term."
        )
    return method


def unread_options(
    name: str, *, lambda_: float | None, ascent: Ascent | None, regularizer: Regularizer | None,
    token_lambda: TokenLambda, teacher: Kind | None,
) -> list[str]:  # fmt: skip
    """Return which of the options given a method has no term for; one call may train several methods."""
    method = find_method(name)
    climbs = any(term.name == "ascent" for term in method.forget)
    regularizes = any(term.weight == "lambda" for term in method.forget)
    unread = {
        "--lambda": lambda_ is not None and "lambda" not in method.settings,
        "--ascent": ascent is not None and not climbs,
        "--regularizer": regularizer is not None and not regularizes,
        "--token-lambda": token_lambda != "constant" and not regularizes,
        "--teacher": teacher is not None and method.reads is None,
    }
    return [option for option, is_unread in unread.items() if is_unread]


def _with_settings(
    method: Method, lambda_: float | None, retain: float | None, settings: Mapping[str, float]
) -> Method:
    """Return a method whose numbers are the user's where they name any."""
    named = dict(settings)
    if unknown := sorted(named.keys() - method.settings.keys()):
        known = ", ".join(method.settings) or "none"
        raise DataError(f"--hp {unknown[0]}: expected a setting of {method.name} ({known}), found none of that name.")
    if lambda_ is not None and "lambda" in method.settings:
        named["lambda"] = lambda_
    if retain is not None:
        if retain != 0 and method.retain is None:
            raise DataError(f"--retain {retain:g}: expected a method with a retain term, found {method.name}.")
        named["retain"] = retain
    return replace(method, settings={**method.settings, **named})


def _require_numbers(method: Method) -> None:
    """Raise `DataError` where a number is none, a weight turns its term around, or a division has no result."""
    for name, value in method.settings.items():
        if not math.isfinite(value):
            raise DataError(f"{_option(name)} {value}: expected a finite number for {method.name}.")
    for term in method.all_terms:
        if isinstance(term.weight, str) and method.weight(term) < 0:
            raise DataError(
                f"{_option(term.weight)} {method.weight(term):g}: expected a weight of at least 0 for {method.name}: "
                "below, its term would do the opposite."
            )
        if term.of in _DIVIDE_BY_BETA and method.settings["beta"] <= 0:
            raise DataError(
                f"--hp beta {method.settings['beta']:g}: expected a number above 0 for {method.name}: it divides by it."
            )


def _option(setting: str) -> str:
    return f"--{setting}" if setting in ("lambda", "retain") else f"--hp {setting}"


def _with_ascent(terms: Sequence[Term], ascent: Ascent | None) -> tuple[Term, ...]:
    """Return terms whose ascent is another, or gone; a method without one is left as it is."""
    if ascent is None:
        return tuple(terms)
    kept = ascent != "none"
    return tuple(
        term._replace(of=_ASCENTS[ascent]) if term.name == "ascent" and kept else term
        for term in terms
        if kept or term.name != "ascent"
    )


def _with_regularizer(
    terms: Sequence[Term], regularizer: Regularizer | None, token_lambda: TokenLambda
) -> tuple[Term, ...]:
    """Return terms whose regularizer (weight `lambda`) is another, or gone; a method without one is left as it is."""
    if regularizer is None and token_lambda == "constant":
        return tuple(terms)
    of = _REGULARIZERS.get((regularizer or "kl", token_lambda))
    if of is None and (regularizer != "none" or token_lambda != "constant"):
        raise DataError(f"--regularizer {regularizer}: expected --token-lambda constant, found {token_lambda}.")
    return tuple(
        term._replace(of=of) if term.weight == "lambda" and of is not None else term
        for term in terms
        if term.weight != "lambda" or regularizer != "none"
    )


def _reads(declared: Reads | None, terms: Sequence[Term], teacher: Kind | None) -> Reads | None:
    """Return the rows that terms read: what the built-in ones need, and for a user's own what the method declares."""
    of_own: Rows = "none" if declared is None else "kept" if declared.kept else "scalars"
    needs = {BUILT_IN[term.of].rows if isinstance(term.of, str) else of_own for term in terms} - {"none"}
    if not needs:
        return None
    kind = teacher or ("reference" if declared is None else declared.kind)
    return Reads(kind, kept="kept" in needs)
