"""The parts of a study that train nothing: what each is given, and where its page and figure come from.

An analysis is a module of `analyses/` with `measure`, `page` and `draw`. One that cannot be made says why, in the
results file too; it never stops what was trained from being written down.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.example import DataError
from .collect import HEADLINE
from .study import DIAGNOSED

if TYPE_CHECKING:
    from .asked import Asked
    from .results import Result

DIAGNOSED_METHOD = "viker"


def analyze(asked: "Asked", result: "Result", announce: Callable[[str], None]) -> dict[str, Any]:
    """Return what every analysis of a study finds, by its name; `reason` where it finds nothing."""
    found: dict[str, Any] = {}
    for name in asked.analyses:
        try:
            found[name] = _MEASURES[name](asked, result)
        except DataError as error:
            announce(f"sweep: {name}: {error}")
            found[name] = {"reason": str(error)}
    return found


def pages(analyses: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the page of every analysis by its name."""
    return {
        name: f"### {_title(name)}\n\nNot made: {found['reason']}" if "reason" in found else _module(name).page(found)
        for name, found in analyses.items()
    }


def draw_analysis(path: Path, name: str, found: Mapping[str, Any]) -> None:
    """Draw the figure of an analysis."""
    _module(name).draw(path, found)


def _title(name: str) -> str:
    return name.replace("-", " ").capitalize()


def _module(name: str) -> Any:
    return import_module(f"{__package__}.analyses.{name.replace('-', '_')}")


def _thresholds(asked: "Asked", _: "Result") -> dict[str, Any]:
    from .analyses.thresholds import measure

    return measure([run.path for run in asked.under("reported")])


def _gradient_weights(asked: "Asked", result: "Result") -> dict[str, Any]:
    from .analyses.gradient_weights import measure

    paths = {run.name: run.path for run in asked.under("reported")}
    adapters = {
        one.run: paths[one.run] / "adapters" / one.adapter
        for one in result.under("reported")
        if one.contender == DIAGNOSED_METHOD
    }
    return measure(adapters)


def _reference_ranking(asked: "Asked", result: "Result") -> dict[str, Any]:
    from ..precompute.cache import TeacherCache, cache_home
    from ..precompute.reference_scores import pool_scores
    from .analyses.reference_ranking import measure
    from .prepare import Draw, cache_key

    outcomes: dict[str, dict[str, float | None]] = {}
    for one in result.under("reported"):
        if "pool" in one.values:
            kept = None if one.crossing is None else one.crossing[HEADLINE]
            outcomes.setdefault(one.run, {})[str(one.values["pool"])] = kept
    scores = {}
    for run in asked.under("reported"):
        keys = {pool: cache_key(run, Draw(pool, None)) for pool in outcomes.get(run.name, {})}
        scores[run.name] = pool_scores({pool: TeacherCache.open(cache_home() / key) for pool, key in keys.items()})
    return measure(scores, outcomes)


_MEASURES: dict[str, Callable[["Asked", "Result"], dict[str, Any]]] = {
    "thresholds": _thresholds,
    DIAGNOSED: _gradient_weights,
    "reference-ranking": _reference_ranking,
}
