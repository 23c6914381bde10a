"""Controls: questions about people that no model here was trained on, for whoever has no retain-only model.

A model that has forgotten somebody should speak about them as about a stranger; controls are those strangers. They come
from any source, and all its questions are asked, by the names its layout gives to everybody. Whether they are strangers
cannot be seen from the outside: that nobody of them is in the run's own source is checked, by picture.
"""

from collections.abc import Iterable
from dataclasses import replace

from .example import DataError, Example
from .sidecar import Sidecar, merged
from .source import Source

# Of every layout, the split that holds questions about everybody; the first one that is there is read.
_WHOLE = ("Full_Set", "retain_perturbed", "full", "all")


def control_questions(controls: Source, tasks: Iterable[str]) -> list[Example]:
    """Return the questions of some tasks about everybody in a source; ids and people are marked as those of controls.

    Another world may have a person of the same id, who must not be taken for them.

    Raises:
        DataError: the source has no such questions.
    """
    wanted = frozenset(tasks)
    split = next((name for name in _WHOLE if name in controls.splits()), None)
    found = [] if split is None else [example for example in controls.read(split) if example.task in wanted]
    if not found:
        raise DataError(
            f"--controls {controls.location}: expected questions about people ({', '.join(sorted(wanted))}), found "
            f"none in {', '.join(controls.splits()) or 'it'}. Name a source in a published layout, or examples.jsonl."
        )
    return [replace(example, id=_marked(example.id), people=tuple(map(_marked, example.people))) for example in found]


def with_controls(facts: Sidecar | None, controls: Sidecar | None) -> Sidecar | None:
    """Return the private words of a source and of its controls, people of controls marked as above."""
    marked = controls and replace(controls, facts={_marked(person): words for person, words in controls.facts.items()})
    return merged([facts, marked]) if facts and marked else facts or marked


def _marked(name: str) -> str:
    return f"controls/{name}"


def refuse_acquaintances(controls: Iterable[Example], asked: Iterable[Example]) -> None:
    """Raise `DataError` where a picture of a control is one of the run's own people: they are no strangers."""
    known = {image.sha256: example.people[0] for example in asked for image in example.images}
    for example in controls:
        for image in example.images:
            if image.sha256 in known:
                raise DataError(
                    f"--controls: expected people no model here was trained on, found {example.people[0]} with the "
                    f"picture of {known[image.sha256]}. Name other people."
                )
