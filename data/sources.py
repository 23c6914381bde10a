"""Finds the data a user names and opens it as one `Source`, whatever its layout: the only door into `data/`.

A spec is a local directory (MLLMU-Bench's folders, CLEAR's, or your own people), a Viker data artefact whose
`source.json` says where its data is, or a hub id, fetched once and pinned by the commit it resolved to. Which people
are forgotten is decided here too, so that a misspelt id or a request that leaves nobody to retain fails before anything
is computed.
Reading rows belongs to `mllmu.py`, `clear.py` and `own.py`; nothing is downloaded before `open_source` is called.
"""

import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .artefact import read_json
from .clear import ClearSource
from .clear_rows import CONFIGS, DEFAULT_FOLDER, folder_of
from .clear_rows import RATIOS as CLEAR_RATIOS
from .example import DataError
from .limited import FirstPeople
from .mllmu import FOLDERS, RATIOS, TRAINING_REPOSITORY, MllmuSource
from .own import LINES_FILE, OwnSource, conversation_files
from .source import Source

log = logging.getLogger(__name__)

POINTER_FILE = "source.json"
POINTER_SCHEMA = "viker/source/1"
DEFAULT_RATIO = 10


def open_source(
    spec: str,
    *,
    revision: str | None = None,
    ratio: int | str | None = None,
    forget: Sequence[str] = (),
    allow_no_retain: bool = False,
    test_image_seed: int = 0,
    local_files_only: bool = False,
) -> Source:
    """Open a directory, a data artefact or a hub dataset.

    Args:
        spec: a local directory, or a hub id such as `MLLMMU/MLLMU-Bench` or `therem/CLEAR`.
        revision: the branch, tag or commit of a hub dataset.
        ratio: which published split is forgotten, 5, 10 or 15 percent (CLEAR: 1, 5 or 10); not used where people are
            named.
        forget: people to forget by id, or files with one id a line. Without either, a data artefact's own are used;
            its limit of people always holds.
        allow_no_retain: accept that everyone is forgotten.
        test_image_seed: chooses among the several pictures of a Test_Set person, and among CLEAR's wordings.
        local_files_only: take a hub dataset from the local cache, and ask no hub.

    Raises:
        DataError: nothing usable is there, an id is unknown, or nobody is left to retain.
    """
    location, commit = _locate(spec, revision, local_files_only)
    if not forget and ratio is None:
        recorded = _recorded(Path(spec).expanduser())
        ratio, forget = recorded.get("ratio"), recorded.get("forget") or ()
    named = named_people(forget)
    source: Source
    match _layout(location):
        case "own":
            source = OwnSource(location=location, commit=commit, forget=named)
        case "clear":
            source = ClearSource(
                location=location, commit=commit, ratio=checked_ratio(ratio, CLEAR_RATIOS), forget=named,
                allow_no_retain=allow_no_retain, question_seed=test_image_seed,
            )  # fmt: skip
        case "mllmu":
            source = MllmuSource(
                location=location, commit=commit, ratio=checked_ratio(ratio, RATIOS), forget=named,
                allow_no_retain=allow_no_retain, test_image_seed=test_image_seed,
            )  # fmt: skip
    if named:
        _check_named(source, named, allow_no_retain)
    limit = _recorded(Path(spec).expanduser()).get("limit")
    return source if limit is None else FirstPeople(source, int(limit))


def named_people(items: Sequence[str]) -> frozenset[str]:
    """Return the people named by ids, or by files with one id a line."""
    people: set[str] = set()
    for item in items:
        found = _ids_in(Path(item)) if _is_file(item) else [item]
        people.update(unicodedata.normalize("NFC", person.strip()) for person in found if person.strip())
    if items and not people:
        raise DataError(f"--forget: expected at least one id, found none in {', '.join(map(repr, items))}. Name one.")
    return frozenset(people)


def _is_file(item: str) -> bool:
    try:
        return Path(item).is_file()
    except (OSError, ValueError):  # too long or not a path at all: then it is an id
        return False


def _ids_in(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--forget {path}: expected a text file with one id a line, found {error}.") from error


def _check_named(source: Source, named: frozenset[str], allow_no_retain: bool) -> None:
    known = source.people()
    if unknown := sorted(named - known):
        some = ", ".join(sorted(known)[:8]) + (" ..." if len(known) > 8 else "")
        raise DataError(
            f"--forget: expected people of {source.location}, found unknown {', '.join(unknown)}. Known are {some}"
        )
    if known == named and not allow_no_retain:
        raise DataError(
            f"--forget: expected someone left to retain, found all {len(known)} people of {source.location} named. "
            "Forget fewer, or say --allow-no-retain: unlearning without retained people damages everything else."
        )


def checked_ratio(value: int | str | None, published: Sequence[int]) -> int:
    """Return a ratio as a number, 10 by default; raise `DataError` where a layout publishes no such split."""
    ratio = str(DEFAULT_RATIO if value is None else value).lstrip("0")
    if ratio not in map(str, published):
        known = ", ".join(map(str, published))
        raise DataError(f"--ratio: expected {known}, found {value!r}. Name people with --forget.")
    return int(ratio)


def _locate(
    spec: str, revision: str | None, local_files_only: bool, seen: tuple[Path, ...] = ()
) -> tuple[Path, str | None]:
    """Return the directory that holds the data, and its commit; data artefacts are followed."""
    directory = Path(spec).expanduser()
    if not directory.is_dir():
        return _fetch(spec, revision, local_files_only)
    if (directory / POINTER_FILE).is_file() and directory.resolve() not in seen:
        source, recorded = _pointer(directory)
        if revision not in (None, recorded):
            where = directory / POINTER_FILE
            raise DataError(f"--revision: expected {recorded}, as {where} records, found {revision}. Leave it out.")
        asked = None if Path(source).is_dir() else recorded
        location, commit = _locate(source, asked, local_files_only, (*seen, directory.resolve()))
        return location, commit or recorded
    if revision:
        raise DataError(f"--revision {revision}: expected a hub id, found the directory {directory}. Leave it out.")
    return directory, None


def _pointer(directory: Path) -> tuple[str, str | None]:
    """Return what a data artefact points at: a source, by a path relative to it if there is one, and its commit."""
    path = directory / POINTER_FILE
    pointer = read_json(path)
    source, revision = pointer.get("source"), pointer.get("revision")
    if pointer.get("schema") != POINTER_SCHEMA or not isinstance(source, str) or not isinstance(revision, str | None):
        raise DataError(
            f"{path}: expected schema {POINTER_SCHEMA} with the texts source and revision, found {pointer}. "
            "Make the data again with `viker data make`."
        )
    inside = directory / source
    return (str(inside) if inside.is_dir() else source), revision


def _recorded(directory: Path) -> dict[str, Any]:
    """Return what a data artefact records of a run's split: the ratio, the people to forget, the limit of people."""
    return read_json(directory / POINTER_FILE) if (directory / POINTER_FILE).is_file() else {}


def _fetch(spec: str, revision: str | None, local_files_only: bool) -> tuple[Path, str]:
    """Download the parquet files of a hub dataset, or find them in the local cache, and pin the commit."""
    if Path(spec).is_file() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", spec, re.ASCII):
        found = "a file" if Path(spec).is_file() else "neither"
        raise DataError(f"{spec}: expected a directory or a hub id such as org/name, found {found}. Check the path.")
    from huggingface_hub import snapshot_download  # local data need not wait for this import

    # The publisher keeps the second repository among models.
    kind = "model" if spec == TRAINING_REPOSITORY else "dataset"
    try:
        snapshot = snapshot_download(
            spec, repo_type=kind, revision=revision, allow_patterns=["*.parquet"], local_files_only=local_files_only
        )
    except Exception as error:  # the hub's transport errors come from another library in each major version
        reason = " ".join(str(error).split()) or type(error).__name__
        at = f" at {revision}" if revision else ""
        raise DataError(
            f"{spec}: expected a local directory or a hub {kind}{at}, found no such directory, and the hub says: "
            f"{reason} Check the name and the connection; with HF_HUB_OFFLINE=1 it must be in the local cache."
        ) from error
    return Path(snapshot), Path(snapshot).name


def _layout(location: Path) -> Literal["mllmu", "clear", "own"]:
    published = [folder for folder in FOLDERS if (location / folder).is_dir()]
    clear = _clear_folders(location)
    lines, conversations = (location / LINES_FILE).is_file(), conversation_files(location)
    if (published and clear) or ((published or clear) and lines):
        found = [LINES_FILE] * lines + [f"{folder}/" for folder in (*published[:1], *clear[:1])]
        raise DataError(f"{location}: expected one layout, found {' and '.join(found)}. Move one away.")
    if published or clear:
        return "mllmu" if published else "clear"
    if lines and conversations:
        log.warning("%s: %s is read, %s is not", location, LINES_FILE, ", ".join(path.name for path in conversations))
    if lines or conversations:
        return "own"
    if location.name in (*FOLDERS, *map(folder_of, CONFIGS)) and any(location.glob("*.parquet")):
        raise DataError(f"{location}: expected the folder above it, found one split. Name {location.parent}.")
    found_here = ", ".join(sorted(path.name for path in location.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{location}: expected MLLMU-Bench's folders ({', '.join(FOLDERS)}), CLEAR's (full, forget10, full+tofu ...), "
        f"{LINES_FILE} or a conversation file *.json, found {found_here}. Name the directory that holds them."
    )


def _clear_folders(location: Path) -> list[str]:
    """Name CLEAR's folders that are here; any folder may be called `data`, so that one counts if it holds parquet."""
    named = [folder for folder in map(folder_of, CONFIGS) if folder != DEFAULT_FOLDER and (location / folder).is_dir()]
    return named + [DEFAULT_FOLDER] * any((location / DEFAULT_FOLDER).glob("*.parquet"))
