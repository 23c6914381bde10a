"""Reads CLEAR as it is published: a folder a config, a row a picture with its caption, or a text question of TOFU's.

Which configs a word means follows CLEAR's own use. Captions with their pictures are what is unlearned, so
`training("forget")` is `forgetNN`, pictures all of it, and the text questions about the same people (`forgetNN+tofu`)
are only asked. A model is made from captions and text questions together: `training("all")` is `full+tofu` and
`training("retain")` is `retainNN+tofu`, so that a retain-only model is vanilla's recipe without the forget people.
Where a tree lacks those, the plain configs stand in. People named one by one divide `full` and `full+tofu` instead.
Nothing assumes that published parts add up (they do not: retain99 and forget01 together hold two more than full).
One row's questions are `clear_rows.py`'s, who an unnamed row is about `clear_people.py`'s, the tree `sources.py`'s.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from .clear_people import UNNAMED, Roster, is_question, names_in
from .clear_rows import COLUMNS, CONFIGS, REPOSITORY, Row, check_columns, folder_of, row_examples
from .example import DataError, Example
from .parquet import opened, parquet_files, wanted_cells

log = logging.getLogger(__name__)

# Whether rows about these people are read: yes, no, or the reason why they are left out, which is counted.
Keep = Callable[[tuple[str, ...]], bool | str]
_NOT_TO_RETAIN = "about a person to forget"
_NOT_SAFE = "about nobody known, who may be a person to forget"


@dataclass(frozen=True, slots=True)
class _Share:
    """Which rows of a config are read: about whom, and of a `+tofu` config whether only one of its two kinds."""

    config: str
    keep: Keep = lambda _: True
    only: Literal["captions", "questions"] | None = None


@dataclass(kw_only=True)
class ClearSource:
    """CLEAR in a local directory, divided by `forget<ratio>`, or in `full` by the people named in `forget`."""

    location: Path
    commit: str | None = None
    ratio: int = 10
    forget: frozenset[str] = frozenset()
    allow_no_retain: bool = False
    question_seed: int = 0
    _skipped: dict[str, Counter[str]] = field(default_factory=dict, init=False)

    def splits(self) -> tuple[str, ...]:
        """Name the published configs that are here."""
        return tuple(config for config in CONFIGS if any((self.location / folder_of(config)).glob("*.parquet")))

    def people(self) -> frozenset[str]:
        """Name everyone who can be forgotten here."""
        return self._roster.names or names_in(self._files(self._first_of("full", "default")[0].config))

    def forget_people(self) -> frozenset[str]:
        """Name the people to forget."""
        return self._forget_people

    def skipped(self) -> dict[str, dict[str, int]]:
        """Count what the latest read of each split left out, by reason."""
        return {label: dict(reasons) for label, reasons in self._skipped.items() if reasons}

    def read(self, split: str) -> Iterator[Example]:
        """Yield what a config holds, or the questions of forget, retain, test (CLEAR publishes none) or real.

        Forget and retain are captions and names of the perturbed configs, and the text questions of `+tofu`.
        """
        if split in CONFIGS:
            return self._examples(split, [_Share(split)])
        match split:
            case "forget" if not self.forget:
                shares = self._first_of(f"{self._part('forget')}_perturbed", self._part("forget"))
                shares += self._text_questions(self._part("forget"))
            case "retain" if not self.forget:
                shares = self._first_of("retain_perturbed", self._part("retain"), keep=self._is_not_forgotten)
                shares += self._text_questions(self._part("retain"))
            case "forget" | "retain":
                keep = self._is_forgotten if split == "forget" else self._is_safely_retained
                shares = [*self._first_of("full", "default", keep=keep), *self._text_questions("full", keep)]
            case "test":
                shares = []
            case "real":
                shares = [_Share(config) for config in ("real_faces", "real_world") if config in self.splits()]
                shares = shares or self._first_of("real_faces", "real_world")
            case _:
                known = ", ".join(("forget", "retain", "test", "real", *CONFIGS))
                raise DataError(f"split: expected one of {known}, found {split!r}.")
        return self._examples(split, shares)

    def training(self, part: Literal["all", "forget", "retain"]) -> Iterator[Example]:
        """Yield captions and text questions about everyone or those to retain; captions of the people to forget.

        Where there are no `+tofu` configs, captions alone; the text questions about the people to forget are never
        unlearned, as in CLEAR's own scripts, and their number is logged.
        """
        if part != "all":
            self._check_retained()
        if part == "forget":
            shares = self._captions_to_forget()
        elif part == "retain" and self.forget:
            shares = self._first_of("full+tofu", "full", "default", keep=self._is_safely_retained)
        elif part == "retain":
            shares = self._first_of(f"{self._part('retain')}+tofu", self._part("retain"))
        elif {"full+tofu", "full", "default"} & set(self.splits()):
            shares = self._first_of("full+tofu", "full", "default")
        else:
            parts = (self._part("forget"), self._part("retain"))
            shares = [share for name in parts for share in self._first_of(f"{name}+tofu", name)]
        trained = self._examples(f"training {part}", shares)
        return (replace(example, task="training") for example in trained)

    def _captions_to_forget(self) -> list[_Share]:
        keep: Keep = self._is_forgotten if self.forget else lambda _: True
        configs = ("full", "default", "full+tofu") if self.forget else (part := self._part("forget"), f"{part}+tofu")
        chosen = self._first_of(*configs, keep=keep)[0]
        texts = self._text_questions("full" if self.forget else self._part("forget"), keep)
        num_texts = sum(1 for share in texts for _ in self._rows(share, Counter()))
        log.info("%s: %d text questions about the people to forget are asked, not unlearned", self.location, num_texts)
        return [replace(chosen, only="captions" if CONFIGS[chosen.config] == "tofu" else None)]

    def _check_retained(self) -> None:
        if self.allow_no_retain:
            return
        if not self.forget:
            self._first_of(f"{self._part('retain')}+tofu", self._part("retain"))
        elif not self.people() - self.forget:
            raise DataError(f"{self.location}: nobody is left to retain. Forget fewer, or --allow-no-retain.")

    def _part(self, side: Literal["forget", "retain"]) -> str:
        return f"forget{self.ratio:02d}" if side == "forget" else f"retain{100 - self.ratio}"

    def _first_of(self, *configs: str, keep: Keep = lambda _: True) -> list[_Share]:
        """Return the first of these configs that is here."""
        present = self.splits()
        if chosen := next((config for config in configs if config in present), None):
            return [_Share(chosen, keep)]
        wanted = " or ".join(f"{folder_of(config)}/*.parquet" for config in configs)
        found = ", ".join(present) or "no published config"
        raise DataError(f"{self.location}: expected {wanted}, found {found}. Download {REPOSITORY}.")

    def _text_questions(self, part: str, keep: Keep = lambda _: True) -> list[_Share]:
        return [_Share(f"{part}+tofu", keep, "questions")] if f"{part}+tofu" in self.splits() else []

    def _is_forgotten(self, people: tuple[str, ...]) -> bool | str:
        return not self.forget_people().isdisjoint(people)

    def _is_not_forgotten(self, people: tuple[str, ...]) -> bool | str:
        return self.forget_people().isdisjoint(people) or _NOT_TO_RETAIN

    def _is_safely_retained(self, people: tuple[str, ...]) -> bool | str:
        return self.forget_people().isdisjoint(people) and (people != (UNNAMED,) or _NOT_SAFE)

    @cached_property
    def _forget_people(self) -> frozenset[str]:
        part = self._part("forget")
        return self.forget or names_in(self._files(self._first_of(part, f"{part}_perturbed")[0].config))

    @cached_property
    def _roster(self) -> Roster:
        """Everyone in a config with everybody's names, or in all that hold some."""
        present = [config for config in self.splits() if CONFIGS[config] in ("plain", "perturbed")]
        whole = [config for config in ("full", "default") if config in present]
        return Roster([path for config in whole[:1] or present for path in self._files(config)])

    def _files(self, config: str) -> list[Path]:
        (share,) = self._first_of(config)
        return parquet_files(self.location / folder_of(share.config))

    def _examples(self, label: str, shares: Sequence[_Share]) -> Iterator[Example]:
        skipped = self._skipped[label] = Counter()
        unnamed = 0
        for share in shares:
            for row in self._rows(share, skipped):
                for made in row_examples(row, CONFIGS[share.config], self.question_seed):
                    if isinstance(made, Example):
                        unnamed += row.people == (UNNAMED,)
                        yield made
                    else:
                        skipped[made] += 1
        if unnamed:
            log.warning(
                "%s, %s: %d questions name nobody known; read as about %r", self.location, label, unnamed, UNNAMED
            )
        if skipped:
            log.warning("%s, %s: skipped %s", self.location, label, dict(skipped))

    def _rows(self, share: _Share, skipped: Counter[str]) -> Iterator[Row]:
        """Yield the rows of a share, a few in memory at a time; numbers go on from shard to shard."""
        layout, first = CONFIGS[share.config], 0
        for path in self._files(share.config):
            with opened(path) as file:
                check_columns(path, file, layout)
                ids = [f"{share.config}/{first + number:05d}" for number in range(file.metadata.num_rows)]
                whose = self._roster.whose(path, file, layout, ids)
                verdicts = [share.keep(people) for people in whose]
                if share.only is not None:
                    wanted_kind = share.only == "questions"
                    of_kind = [asked == wanted_kind for asked in is_question(file)]
                    verdicts = [ok and verdict for verdict, ok in zip(verdicts, of_kind, strict=True)]
                skipped.update(verdict for verdict in verdicts if isinstance(verdict, str))
                wanted = [verdict is True for verdict in verdicts]
                for number, cells in wanted_cells(file, COLUMNS[layout], wanted):
                    yield Row(f"{path}: row {number}", cells, ids[number], whose[number])
                first += len(ids)
