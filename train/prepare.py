"""All that a run is made of before its first step: the student with its LoRA weights, its examples, their rows.

What can be said about them is said here: rows that do not fit, a weight that turns the loss around, a stop that cannot
fire. Steps, and everything behind them, are `unlearn.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.inputs import other_commits
from ..data.source import Source
from ..data.sources import open_source
from ..models.identity import teacher_identity
from ..models.load import Loaded, resolve
from .batches import Item, stack_rows
from .caches import check_named
from .diagnose import Diagnosis, private_words
from .guards import sign_warning
from .loop import Optimization, check_items
from .method import Method
from .online import naive_passes, online_intervention, online_rows
from .open_student import load_student, with_lora
from .reading import Reader
from .saliency import saliency_mask
from .spot_check import intervention_of, spot_check
from .steps import RowsOf, cached_rows

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run before its first step."""

    options: Mapping[str, Any]
    method: Method
    source: Source
    loaded: Loaded
    reader: Reader
    forget: Sequence[Item]
    retain: Sequence[Item]
    model: Any

    @property
    def rows_of(self) -> RowsOf | None:
        """What runs the teacher in every step, where that is asked for and the method reads rows at all."""
        if self.options["teacher_from"] == "cache" or self.method.reads is None:
            return None
        intervention = online_intervention(self.options, self.method.reads, self.source)
        return online_rows(self.model, self.loaded.encoder, intervention, naive_passes)

    @property
    def optimization(self) -> Optimization:
        """How steps are taken."""
        return Optimization(**{name: self.options[name] for name in Optimization.__dataclass_fields__})

    def diagnosis(self, output: Path | None) -> Diagnosis:
        """Return what looks at the student before and after, and writes into `output` where that is given."""
        return Diagnosis(
            self.model, self.loaded.encoder, self.forget, self.method, output,
            rows_of=self.rows_of or cached_rows(self.options["top_k"]), key_entropy=self.options["key_entropy"],
            facts=private_words(self.source), seed=self.options["seed"],
            num_examples=self.options["diagnose_examples"],
        )  # fmt: skip

    def mask(self) -> dict[str, Tensor]:
        """Compute which weights forgetting may move, by name."""
        mask = saliency_mask(self.model, self.loaded.encoder, self.forget, self.retain, self.method)
        return {name: value.cpu() for name, value in mask.items()}


def prepare(
    options: Mapping[str, Any], method: Method, *, device: str, fetch: Callable[[str, str, Announce], bool],
    announce: Announce,
) -> Prepared:  # fmt: skip
    """Load the student and find its rows.

    Raises:
        DataError, CacheMismatch: something that the method reads is missing, or does not fit.
    """
    source = open_source(
        options["data"], ratio=options["ratio"], forget=options["forget"], revision=options["data_revision"]
    )
    checkpoint = resolve(options["model"], revision=options["revision"], processor=options["processor"])
    loaded = load_student(options, checkpoint, device)
    for line in other_commits(options["run"], "model_commit", checkpoint.commit):
        announce(f"train: WARNING: {line}")
    identity = teacher_identity(checkpoint, loaded.encoder, quantization=options["quantization"])
    reader = Reader(
        options=options, source=source, encoder=loaded.encoder, identity=identity, fetch=fetch, announce=announce
    )
    forget, retain = reader.forget(method), reader.retain(method)
    check_named(options["cache"], reader.caches, announce)
    check_items(forget, retain, method, reads_cache=options["teacher_from"] == "cache")
    _warn(options, method, forget, announce)
    model = with_lora(options, loaded)
    if options["spot_check"]:
        _spot_check(options, model, reader, forget, announce)
    return Prepared(
        options=options, method=method, source=source, loaded=loaded, reader=reader, forget=forget, retain=retain,
        model=model,
    )  # fmt: skip


def _warn(options: Mapping[str, Any], method: Method, forget: Sequence[Item], announce: Announce) -> None:
    """Warn where a weight or a stop cannot do what it is for on these rows."""
    lambda_, climbs = method.settings.get("lambda", 0.0), any(term.of == "climb" for term in method.forget)
    rows = [item.rows for item in forget if item.rows is not None]
    if rows and lambda_ and climbs:
        answer_ids = [token for item in forget for token in item.answer_ids]
        warning = sign_warning(stack_rows(rows, answer_ids), lambda_, options["key_entropy"])
        if warning is not None:
            announce(f"train: WARNING: {warning}")
    keyless = not any(
        item.log_rows is not None and (item.log_rows.entropy_N > options["key_entropy"]).any() for item in forget
    )
    if options["stop"] and keyless:
        announce(
            "train: WARNING: --stop: expected key tokens in rows of irrelevant images, found none, so the stop cannot "
            "fire. Run `viker precompute` with a pool for this run, or bound it by --min-retain."
        )


def _spot_check(
    options: Mapping[str, Any], model: Any, reader: Reader, forget: Sequence[Item], announce: Announce
) -> None:
    """Compare a few cached rows with the teacher, whose weights the adapter has not changed yet."""
    cache = reader.caches.get("forget") or reader.caches.get("log")
    if cache is None:
        announce("train: WARNING: --spot-check: expected cached rows of forget examples, found that none are read")
        return
    items = [item if "forget" in reader.caches else replace(item, rows=item.log_rows) for item in forget]
    intervention = intervention_of(cache, options, reader.source)
    worst = spot_check(model, reader.encoder, items, cache, intervention, options["spot_check"])
    announce(f"train: --spot-check: {options['spot_check']} examples, largest total variation {worst:.2g}")
