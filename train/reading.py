"""What a run trains on: the examples of its method, joined with rows from the caches that fit.

A method says which rows it reads (`method.py`); here they are found, or the command that makes them is printed. A
method that reads no rows of irrelevant images still gets their scalars where the run has them, so that every log and
every stop can speak of key tokens. Finding one cache by the rules is `caches.py`'s.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.example import Example
from ..data.halves import training_questions
from ..data.inputs import complete_rows
from ..data.kinds import REPLACES_IMAGES, TAKES_INSTRUCTION, Answers, Kind, rows_name
from ..data.refusals import refuse
from ..data.source import Source
from ..models.encode import Encoder
from ..models.interventions import require_images
from ..precompute.cache import TeacherCache
from .batches import Item, read_items
from .caches import find_cache
from .method import Method

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads the items of a run; `caches` fills up with what was read, by the name of the rows."""

    options: Mapping[str, Any]
    source: Source
    encoder: Encoder
    identity: Mapping[str, Any]
    fetch: Callable[[str, str, Announce], bool]
    announce: Announce
    caches: dict[str, TeacherCache] = field(default_factory=dict)

    def forget(self, method: Method) -> list[Item]:
        """Return the forget examples with the rows the method reads (not where a live teacher gives them)."""
        kind: Kind = "reference" if method.reads is None else method.reads.kind
        examples = self._forget_examples(kind)
        if method.reads is None and self.options["cache"]:  # named by hand: for the log
            self.caches["forget"] = self._find("forget", "reference", "forget", examples, 0)
        elif method.reads is not None and self.options["teacher_from"] == "cache":
            self.caches["forget"] = self._find("forget", kind, "forget", examples, self._top_k(method.reads.kept))
        items = read_items(self.encoder, examples, self.caches.get("forget"), kind)
        items = self._with_log_rows(items, examples, kind)
        return self._with_refusals(items, examples, method) if method.refusals else items

    def retain(self, method: Method) -> list[Item]:
        """Return the retain examples that a retain term may use, with rows if it reads any."""
        if not method.needs_retain:
            return []
        examples = training_questions(self.source, "retain-seen")
        if method.retain_reads is None:
            return read_items(self.encoder, examples, None, "self")
        kind: Kind = method.retain_reads.kind
        top_k = self._top_k(method.retain_reads.kept)
        self.caches["retain"] = self._find("retain", kind, "retain-seen", examples, top_k)
        return read_items(self.encoder, examples, self.caches["retain"], kind)

    def _top_k(self, kept: bool) -> int:
        return int(self.options["top_k"]) if kept else 0

    def _with_log_rows(self, items: list[Item], examples: Sequence[Example], kind: Kind) -> list[Item]:
        """Return items with the rows the log and the stop speak of: irrelevant images', else those that are read."""
        if kind == "reference" and items[0].rows is not None:
            return [replace(item, log_rows=item.rows) for item in items]
        stored = complete_rows(self.options["run"], rows_name("reference", "forget", "own", 0))
        if stored is None or not all(example.images for example in examples):
            return [replace(item, log_rows=item.rows) for item in items]
        self.caches["log"] = self._find("log", "reference", "forget", examples, 0)
        known = read_items(self.encoder, examples, self.caches["log"], "reference")
        return [replace(item, log_rows=other.rows) for item, other in zip(items, known, strict=True)]

    def _with_refusals(self, items: list[Item], examples: Sequence[Example], method: Method) -> list[Item]:
        refusals = [refuse(example) for example in examples]
        kind: Kind = "self" if method.refusal_reads is None else method.refusal_reads.kind
        if method.refusal_reads is not None:
            self.caches["refusal"] = self._find("refusal", kind, "forget", refusals, 0)
        refused = read_items(self.encoder, refusals, self.caches.get("refusal"), kind)
        return [replace(item, refusal=other) for item, other in zip(items, refused, strict=True)]

    def _find(self, rows: str, kind: Kind, split: str, examples: Sequence[Example], top_k: int) -> TeacherCache:
        answers: Answers = "refusal" if rows == "refusal" else "own"
        stored = complete_rows(self.options["run"], rows_name(kind, split, answers, top_k))
        return find_cache(
            examples, self.encoder, self.identity, kind, answers=answers,
            instruction=self.options["instruction"] if kind in TAKES_INSTRUCTION else None, top_k=top_k,
            named=self.options["cache"], run_artefact=stored, announce=self.announce,
            fetch=lambda key, root: self.fetch(key, root, self.announce),
            command=precompute_command(self.options, kind, split, answers, top_k),
            extend=[*asked(self.options), "--split", split], overridden=self.options["override"],
        )  # fmt: skip

    def _forget_examples(self, kind: Kind) -> list[Example]:
        """Return the forget people's training questions; where images are replaced, those without have no rows."""
        examples = list(self.source.training("forget"))[: self.options["limit"]]
        if kind not in REPLACES_IMAGES:
            return examples
        if not self.options["skip_text"]:
            require_images(examples)
            return examples
        shown = [example for example in examples if example.images]
        self.announce(f"train: left out {len(examples) - len(shown)} examples without an image (--skip-text)")
        return shown


def precompute_command(options: Mapping[str, Any], kind: str, split: str, answers: str, top_k: int) -> str:
    """Return the command that makes rows of exactly these examples for exactly this model and rendering."""
    words = ["viker", "precompute", *asked(options)]
    if options["bf16"] or options["dtype"] != "float32":
        words += ["--dtype", "bfloat16" if options["bf16"] else options["dtype"]]
    words += ["--teacher", kind, "--split", split, "--top-k", str(top_k)]
    if answers != "own":
        words += ["--answers", answers]
    if kind in TAKES_INSTRUCTION and options["instruction"] is not None:
        words += ["--instruction", options["instruction"]]
    return shlex.join(words) + (" --pool DIR" if kind == "reference" else "")


def asked(options: Mapping[str, Any]) -> list[str]:
    """Return the options that name source, model, rendering and run."""
    words: list[str] = []
    named = (
        "data", "ratio", "data_revision", "model", "processor", "revision", "chat_template", "system_prompt", "run",
    )  # fmt: skip
    for name in named:
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    for person in options["forget"]:
        words += ["--forget", person]
    if options["score_end_token"] is not None:
        words.append("--score-end-token" if options["score_end_token"] else "--no-score-end-token")
    return [*words, "--skip-text"] if options["skip_text"] else words
