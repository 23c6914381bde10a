"""What a method is: a small record of the rows it reads, the terms of its loss, and where it is from.

A loss is a sum of terms, each a weight times a sum over answer tokens (or examples) divided by the number of examples.
What differs between methods is data, so that all of them run in one loop on the same caches, masks, batches and budget.
Imports no torch, so that a stage can be skipped without it: built-in terms are named, and found when training starts;
what each of them needs is here. The methods themselves are in `methods.py`; how options become a record,
`choose_method.py`'s, and a user's own file, `own_method.py`'s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..data.kinds import Kind, rows_name

Fidelity = Literal["official", "paper", "ours"]
Rows = Literal["none", "scalars", "kept"]


class Reads(NamedTuple):
    """Rows a method reads: the teacher's kind, and whether kept tokens or scalars alone are needed."""

    kind: Kind
    kept: bool = True


class Term(NamedTuple):
    """One term of a loss: a name for the log, its function, and its weight.

    `of` names a function of `terms.py`, or is one, `(scored, settings) -> Tensor`. A weight is a number, or the name of
    a setting.
    """

    name: str
    of: str | Callable[..., Any]
    weight: float | str = 1.0


class Needs(NamedTuple):
    """What a built-in term reads: of its examples' rows, and beside them."""

    rows: Rows = "none"
    settings: tuple[str, ...] = ()
    refusals: bool = False
    layer: bool = False


BUILT_IN: dict[str, Needs] = {
    "climb": Needs(),
    "climb_adaptively": Needs("scalars"),
    "climb_confident": Needs(settings=("beta",)),
    "climb_saturated": Needs(settings=("beta1", "beta2")),
    "follow": Needs("kept"),
    "follow_by_entropy": Needs("kept"),
    "follow_jensen_shannon": Needs("kept"),
    "follow_kept_cosine": Needs("kept"),
    "follow_on_average": Needs("kept"),
    "follow_lowered": Needs("kept", ("gamma",)),
    "learn": Needs(),
    "learn_refusals": Needs(refusals=True),
    "prefer_anything": Needs("scalars", ("beta",)),
    "prefer_anything_simply": Needs(settings=("beta", "delta")),
    "prefer_refusals": Needs("scalars", ("beta",), refusals=True),
    "misdirect": Needs(settings=("coefficient",), layer=True),
    "keep_states": Needs(layer=True),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One method: its terms, what they read, default settings, its source, and how closely it follows it.

    Attributes:
        forget: terms over forget examples.
        retain: the term over retain examples; it is there where the setting `retain` is above 0.
        reads: rows of the forget examples that its terms read, if any.
        retain_reads: rows of the retain examples that its term reads, if any.
        refusals: whether forget examples are run with a refusal for an answer too; with rows of them, if `reads`.
        layer: whether its terms read the states of a decoder layer.
        masked: whether the forget gradient is masked by saliency.
        settings: names and defaults of its numbers; `lambda` and `retain` have options of their own.
        differences: where it differs from official code, and why.
        source_digest: of a user's own file.
    """

    name: str
    summary: str
    paper: str
    fidelity: Fidelity
    forget: tuple[Term, ...]
    retain: Term | None = None
    reads: Reads | None = None
    retain_reads: Reads | None = None
    refusals: bool = False
    layer: bool = False
    masked: bool = False
    settings: Mapping[str, float]
    differences: str = ""
    source_digest: str | None = None

    @property
    def needs_retain(self) -> bool:
        """Whether it trains on retain examples."""
        return self.retain is not None and self.settings.get("retain", 0.0) > 0

    @property
    def reads_retain_rows(self) -> bool:
        """Whether it needs rows of retain people."""
        return self.needs_retain and self.retain_reads is not None

    @property
    def refusal_reads(self) -> Reads | None:
        """Return which rows of the refusals it reads, if any."""
        return self.reads if self.refusals else None

    @property
    def stored_rows(self) -> tuple[str, ...]:
        """Return the names under which a run stores the keys of the rows it reads."""
        names = []
        if self.reads is not None:
            names.append(rows_name(self.reads.kind, "forget", "own", int(self.reads.kept)))
        if self.refusal_reads is not None:
            names.append(rows_name(self.refusal_reads.kind, "forget", "refusal", 0))
        if self.reads_retain_rows and self.retain_reads is not None:
            names.append(rows_name(self.retain_reads.kind, "retain-seen", "own", 1))
        return tuple(names)

    @property
    def precomputes(self) -> tuple[tuple[str, ...], ...]:
        """Return the options of `viker precompute` that make the rows it reads, one tuple a cache."""
        made = []
        if self.reads is not None:
            made.append((*_asking(self.reads), "--split", "forget", *_keeping(self.reads)))
        if self.refusal_reads is not None:
            made.append((*_asking(self.refusal_reads), "--split", "forget", "--answers", "refusal", "--top-k", "0"))
        if self.reads_retain_rows and self.retain_reads is not None:
            made.append((*_asking(self.retain_reads), "--split", "retain-seen"))
        return tuple(made)

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """Return the terms over forget and retain examples, whether or not they have a weight."""
        return (*self.forget, *(() if self.retain is None else (self.retain,)))

    def weight(self, term: Term) -> float:
        """Return a term's weight under this method's settings."""
        return self.settings[term.weight] if isinstance(term.weight, str) else term.weight

    def describe(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {
            "name": self.name, "summary": self.summary, "paper": self.paper, "fidelity": self.fidelity,
            "forget": [_plain(term) for term in self.forget],
            "retain": None if self.retain is None else _plain(self.retain),
            "reads": None if self.reads is None else self.reads._asdict(),
            "retain_reads": None if self.retain_reads is None else self.retain_reads._asdict(),
            "refusals": self.refusals, "layer": self.layer, "masked": self.masked,
            "settings": dict(self.settings), "differences": self.differences, "source_digest": self.source_digest,
        }  # fmt: skip


def _plain(term: Term) -> dict[str, Any]:
    of = term.of if isinstance(term.of, str) else term.of.__name__
    return {"name": term.name, "of": of, "weight": term.weight}


def _asking(reads: Reads) -> tuple[str, ...]:
    """Return the options that name a kind of teacher; VGID shows one noise where references are averaged."""
    return ("--teacher", reads.kind, *(("--num-references", "1") if reads.kind == "noise" else ()))


def _keeping(reads: Reads) -> tuple[str, ...]:
    """Return how many tokens of the forget people's own rows are kept, where that is not precompute's to choose."""
    if not reads.kept:
        return ("--top-k", "0")
    return ("--top-k", "64") if reads.kind == "self" else ()
