"""Find what holds a person on this machine: teacher caches, the artefacts of runs, and files that name them.

A run is known by what its stages wrote about themselves, wherever it lies below a searched folder. Links are never
followed. Whatever could not be searched (a cache that is damaged or unfinished, a file that does not parse) is a
finding too, with the reason: a purge that leaves something out in silence is worse than none. What an artefact holds
of a person is `purge/runs.py`'s, acting on it `purge/act.py`'s.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.artefact import CHECKPOINT_CONFIG, CONFIG, is_complete, read_config, read_json
from ..data.example import DataError
from ..evaluate.record.keys import FOLDER as RECORDS
from ..evaluate.record.keys import KEYS, find_key_file
from ..precompute.cache import CacheError, TeacherCache, person_digest
from ..precompute.writing.derive import holds_person
from .trained import KnownCaches, locate

Kind = Literal[
    "cache", "damaged cache", "remote cache", "remnant", "stored key", "answers", "diagnosis", "report", "adapter",
    "model", "record key", "source", "mention", "unreadable",
]  # fmt: skip

PURGED = ".purged"  # what a directory is called while it is being removed
REPLACING = ".replacing"  # where `precompute/writing/derive.py` makes a cache that replaces one of the same key
REGISTRY = ".runs"  # what runs there are, by name alone
DATA_SCHEMA = "viker/data/1"
DIAGNOSIS = "diagnose.jsonl"  # of an adapter: answers word by word
TOKENS = "tokens.jsonl"  # of an evaluation: training answers token by token
_TEXT = frozenset({".json", ".jsonl", ".md", ".html", ".txt", ".csv", ".log", ".toml", ".yaml"})
_OF_STAGES = frozenset({
    CONFIG, CHECKPOINT_CONFIG, "provenance.json", "training_log.jsonl", "trajectory.jsonl", "answers.jsonl",
    "scores.json", "report.json", "report.md", "report.html", "source.json", "README.md", DIAGNOSIS, TOKENS,
})  # fmt: skip
_BY_LINE = frozenset({"answers.jsonl", DIAGNOSIS, TOKENS})  # whose lines about the person are findings of their own


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One place that holds a person or, where `problem` says why, that could not be searched.

    `place` and `told` are for the user alone: they may name people. `before` holds digests of what is there, `remote`
    the address as it was given, with whatever credentials are in it: it is never shown.
    """

    kind: Kind
    place: Path | str
    told: str
    problem: str | None = None
    before: Mapping[str, str] = field(default_factory=dict)
    remote: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefact:
    """A directory that a stage wrote, complete or not."""

    path: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def schema(self) -> str:
        """What kind of stage wrote it, such as `viker/adapter/1`."""
        return str(self.config.get("schema"))

    @property
    def options(self) -> Mapping[str, Any]:
        """The options it was made with."""
        found = self.config.get("options", self.config)
        return found if isinstance(found, dict) else {}


def find_in_caches(home: Path, elsewhere: Sequence[Path], person: str) -> tuple[list[Finding], KnownCaches]:
    """Search a folder of caches, and caches that lie elsewhere; return what was found and which keys were searched."""
    findings: list[Finding] = []
    searched: set[str] = set()
    holding: set[str] = set()
    for path in [*_entries(home), *elsewhere]:
        if _is_remnant(path):
            findings.append(Finding(kind="remnant", place=path, told="left over from what was interrupted"))
            continue
        try:
            cache = open_plain(path)
            holds = holds_person(cache, person)
        except (CacheError, OSError) as error:
            findings.append(_unsearched_cache(path, error))
            continue
        searched.add(cache.key)
        if holds:
            holding.add(cache.key)
            findings.append(_held_cache(cache, person))
    return findings, KnownCaches(frozenset(searched), frozenset(holding))


def open_plain(path: Path) -> TeacherCache:
    """Open a cache that is no link.

    Raises:
        CacheError: it is a link, unfinished or damaged.
    """
    if path.is_symlink():
        raise CacheError(f"{path}: expected a directory, found a link, which is not followed. Purge where it points.")
    if not re.fullmatch("[0-9a-f]{16}", path.name) and not (path / "manifest.json").is_file():
        raise CacheError(
            f"{path}: expected a finished cache, found one that is being made, fetched or was interrupted; it does not "
            "say whose its rows are. Finish it by the command that began it and purge again, or remove it."
        )
    return TeacherCache.open(path)


def find_artefacts(roots: Sequence[Path]) -> tuple[list[Artefact], list[Finding]]:
    """Return every artefact below some folders; links, remnants and what cannot be read come back as findings."""
    artefacts: list[Artefact] = []
    findings: list[Finding] = []
    for root in roots:
        for folder, subfolders, _ in _walk(root):
            findings += [finding for path in subfolders for finding in _of_name(path, roots)]
            try:
                artefact = _read_artefact(folder)
            except DataError as error:
                findings.append(Finding(kind="unreadable", place=folder, told="an artefact", problem=str(error)))
            else:
                artefacts += [artefact] if artefact else []
    return artefacts, findings


def caches_elsewhere(artefacts: Sequence[Artefact], home: Path) -> list[Path]:
    """Return the caches outside the home that adapters were told to read."""
    named = (
        Path(locate(str(spec), artefact.path))
        for artefact in artefacts
        for stamp, spec in artefact.config.get("inputs", {}).items()
        if stamp.startswith("cache ")
    )
    return sorted({path.resolve() for path in named if path.is_dir() and path.resolve().parent != home.resolve()})


def find_record_keys(roots: Sequence[Path], person: str) -> list[Finding]:
    """Return the keys that show which deletion records below some folders are about a person: records name nobody."""
    findings = []
    for folder in (folder for root in roots for folder, _, _ in _walk(root)):
        if (folder.parent.name, folder.name) != (RECORDS, KEYS):
            continue
        try:
            path = find_key_file(folder, person)
        except DataError as error:
            findings.append(Finding(kind="unreadable", place=folder, told="keys of records", problem=str(error)))
            continue
        if path is not None:
            told = f"shows that deletion records of {path.stem[:16]} are about them; those name nobody, and stay"
            findings.append(Finding(kind="record key", place=path, told=told, before={"pseudonym": path.stem}))
    return findings


def find_mentions(
    roots: Sequence[Path], artefacts: Sequence[Artefact], person: str, covered: Collection[Path]
) -> list[Finding]:
    """Return the files below some folders that name a person otherwise: options, commands, notes.

    Args:
        roots: the folders; data folders below them are not read.
        artefacts: those below them, of whose files only what stages write is read.
        person: the id looked for.
        covered: directories that other findings speak of.
    """
    pattern = _name_pattern(person)
    ours = {artefact.path for artefact in artefacts}
    told = "names the person, in options or a command"
    findings = []
    for root in roots:
        for folder, _, files in _walk(root):
            inside = any(parent in ours for parent in folder.parents)
            for path in () if inside or folder in covered else files:
                readable = path.suffix in _TEXT and (folder not in ours or path.name in _OF_STAGES)
                if readable and not path.is_symlink() and pattern.search(_text_about_others(path, person)):
                    findings.append(Finding(kind="mention", place=path, told=told if folder in ours else "names them"))
    return findings


def is_about(record: Any, person: str) -> bool:
    """Tell whether a record of answers.jsonl, tokens.jsonl, a diagnosis or a report is about a person."""
    if not isinstance(record, dict):
        return False
    people = record["people"] if isinstance(record.get("people"), list) else [record.get("person")]
    return person in [unicodedata.normalize("NFC", str(name)) for name in people]


def file_digest(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(root: Path) -> str:
    """Return the hex sha256 over the sorted lines "sha256  path" of the plain files below a folder."""
    files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    lines = [f"{file_digest(path)}  {path.relative_to(root)}\n" for path in files if not path.is_symlink()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _entries(home: Path) -> list[Path]:
    """Return what lies in a folder of caches: directories that hold anything, but for the registry of runs."""
    folders = [path for path in sorted(home.iterdir()) if path.is_dir()] if home.is_dir() else []
    return [path for path in folders if path.name != REGISTRY and any(path.iterdir())]


def _is_remnant(path: Path) -> bool:
    """Whether nobody needs a directory any more: a purge was at it, or the cache it was to become is there."""
    if path.name.endswith((PURGED, ".removed")) or path.name == REPLACING:
        return True
    key16, dot, _ = path.name.partition(".")
    return bool(dot) and (path.parent / key16 / "manifest.json").is_file()


def _held_cache(cache: TeacherCache, person: str) -> Finding:
    digest = person_digest(cache.lineage, person)
    held = sum(pair[16:] == digest for pair in cache.sample_keys)
    return Finding(
        kind="cache", place=cache.root, told=f"{held} of {cache.num_samples} samples are about them",
        before={"key": cache.key, "root": cache.root_digest},
    )  # fmt: skip


def _unsearched_cache(path: Path, error: Exception) -> Finding:
    told = "an unfinished cache" if "." in path.name else "a damaged cache"
    return Finding(kind="damaged cache", place=path, told=told, problem=str(error))


def _walk(root: Path) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Yield folders with their subfolders and files; links, remnants and data folders are not entered."""
    for place, names, files in os.walk(root):
        folder = Path(place)
        subfolders = [folder / name for name in sorted(names)]
        yield folder, subfolders, [folder / name for name in sorted(files)]
        names[:] = [path.name for path in subfolders if not path.name.endswith(PURGED)]
        if _schema(folder) == DATA_SCHEMA:
            names.clear()


def _of_name(path: Path, roots: Sequence[Path]) -> list[Finding]:
    """Return a finding for a link that leads out of what is searched, and for what an interrupted purge left."""
    if path.is_symlink():
        target = path.resolve()
        if _schema(target) == DATA_SCHEMA or any(target.is_relative_to(root) for root in roots):
            return []
        problem = f"{path}: a link to {target}, which is not followed. Name its target with --runs."
        return [Finding(kind="unreadable", place=path, told="a link", problem=problem)]
    if path.name.endswith(PURGED):
        return [Finding(kind="remnant", place=path, told="left over from an interrupted purge")]
    return []


def _schema(folder: Path) -> str | None:
    """Return which stage wrote a directory, None where none did or nobody can tell."""
    for name in (CHECKPOINT_CONFIG, CONFIG):
        try:
            return str(json.loads((folder / name).read_text(encoding="utf-8"))["schema"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _read_artefact(folder: Path) -> Artefact | None:
    """Return the artefact a directory is, None where no stage wrote it.

    Raises:
        DataError: a stage wrote it, and what it wrote does not parse.
    """
    if not (_schema(folder) or "").startswith("viker/"):
        if is_complete(folder) and (folder / "provenance.json").is_file():
            raise DataError(f"{folder}: expected the options of a finished stage, found none that can be read.")
        return None
    provenance = folder / "provenance.json"
    return Artefact(
        path=folder, config=read_config(folder), provenance=read_json(provenance) if provenance.is_file() else {}
    )


def _name_pattern(person: str) -> re.Pattern[str]:
    """Return what finds an id in a text: as a JSON string or as an option's value; as a word too if it has a letter."""
    quoted = [re.escape(json.dumps(person, ensure_ascii=ascii_only)) for ascii_only in (True, False)]
    asked = rf"--forget[ =]['\"]?{re.escape(person)}(?!\w)"
    word = [rf"(?<!\w){re.escape(person)}(?!\w)"] if re.search(r"[^\W\d_]", person) else []
    return re.compile("|".join([*quoted, asked, *word]))


def _text_about_others(path: Path, person: str) -> str:
    """Return a file's text; of answers and diagnoses only the lines about others."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.name not in _BY_LINE:
        return text
    return "\n".join(line for line in text.splitlines() if not _line_is_about(line, person))


def _line_is_about(line: str, person: str) -> bool:
    try:
        return is_about(json.loads(line), person)
    except ValueError:
        return False
