"""Take a person out of what was found: rewrite caches and replies without them, remove what is derived from them.

Every act can be repeated and may be cut off anywhere: what is new is written and checked before what is old goes; what
goes loses its marker first, so that nobody takes it for whole, and then its name, by which the next purge knows it.
Links are never followed. Which findings are acted upon is decided in `purge/commands.py`.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.artefact import MARKER, cache_home, read_config, read_json, write_json
from ..data.example import DataError
from ..evaluate.record.keys import read_secret
from ..precompute.cache import CacheError, TeacherCache
from ..precompute.reading.verify import verify
from ..precompute.sharing.pointer import making_path, read_making, record_making
from ..precompute.writing.blocks import sync
from ..precompute.writing.derive import finish_replacements, holds_person, without_person
from .find import PURGED, REPLACING, TOKENS, Finding, file_digest, is_about, open_plain
from .runs import read_lines
from .trained import locate, open_recorded

Digests = dict[str, str]

# What is computed from kept replies and may count, or name, the person; `viker evaluate` writes it again.
_DERIVED = ("verdict.json", "published.json", "attacks/attacks.json", "../attacks.json")


def act_on(finding: Finding, person: str) -> tuple[Digests, str]:
    """Act on one finding; return the digests of what stands there now, and what was done in words.

    Raises:
        DataError, CacheError, OSError: it could not be done; what was there is still there, or is known as a remnant.
    """
    path = Path(finding.place)
    match finding.kind:
        case "cache":
            return _rewrite_cache(path, person)
        case "stored key":
            return _store_new_key(path, person)
        case "answers":
            return _rewrite_answers(path, person)
        case "diagnosis":
            return _rewrite_diagnosis(path, person)
        case "record key":
            return _hand_over_key(path)
        case "remnant" if path.name == REPLACING or path.name.endswith(".removed"):
            finish_replacements(path.parent)
            if path.exists():
                remove_directory(path)
        case _:
            remove_directory(path)
    return {}, "removed"


def _hand_over_key(path: Path) -> tuple[Digests, str]:
    """Remove the key of a person's deletion records, which stay, and tell it: who is given it can still prove them."""
    secret = read_secret(path)
    path.unlink()
    sync(path.parent)
    return {}, f"removed; it was {secret.hex()}, shown once: it proves whom the records are about. Keep it elsewhere"


def remove_directory(path: Path) -> None:
    """Remove a directory: its marker first, then its name, then what is in it; links in it are removed as links.

    A cache keeps its manifest until it is called `*.purged`: without either nobody could tell whose its rows are.

    Raises:
        DataError: it is a link itself.
        OSError: something in it cannot be removed; it is called `*.purged` then.
    """
    if path.is_symlink():
        raise DataError(f"{path}: expected a directory, found a link, which is not followed. Remove it by hand.")
    (path / MARKER).unlink(missing_ok=True)
    doomed = path
    if not path.name.endswith(PURGED):
        doomed = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PURGED}")
        path.rename(doomed)
        sync(path.parent)
    (doomed / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(doomed)
    sync(path.parent)


def _store_new_key(artefact: Path, person: str) -> tuple[Digests, str]:
    """Let a run name the cache without the person in place of the one with them, and unfinish the stage that stored it.

    The new cache is made here, before the old one goes: afterwards nobody would know which one followed. The stage is
    unfinished because it was asked for the person's rows too; the name stays, so that `viker cache gc` keeps the cache.
    """
    provenance = read_json(artefact / "provenance.json")
    (artefact / MARKER).unlink(missing_ok=True)
    root = cache_home() / str(provenance["cache"]["key"])[:16]
    rest = without_person(open_plain(root), person, root.parent) if root.is_dir() else None
    if rest is None:
        remove_directory(artefact)
        return {}, "removed: nothing is left of its cache"
    _require_sound(rest.root, person)
    after = {"key": rest.key, "root": rest.root_digest}
    write_json(artefact / "provenance.json", provenance | {"cache": after})
    return after, "names the rewritten cache now, and is unfinished: `viker precompute` looks again"


def _rewrite_cache(root: Path, person: str) -> tuple[Digests, str]:
    """Make the cache without a person's rows, check every byte of it, and only then remove the old one."""
    cache = open_plain(root)
    rest = without_person(cache, person, root.parent) if holds_person(cache, person) else cache
    if rest is not None:
        _require_sound(rest.root, person)
    if rest is None or rest.root != root:
        _hand_on_making(cache, rest)
        remove_directory(root)
    if rest is None:
        return {}, "removed: nobody else was in it"
    return {"key": rest.key, "root": rest.root_digest}, f"rewritten without them: {rest.root}"


def _hand_on_making(cache: TeacherCache, rest: TeacherCache | None) -> None:
    """Move the note of when a cache was made, and at what cost, to the one that takes its place."""
    making = read_making(cache)
    if rest is not None and making.made is not None:
        record_making(rest, making.seconds, making.made)
    making_path(cache.root).unlink(missing_ok=True)


def _require_sound(root: Path, person: str) -> None:
    problems = verify(root, "full")
    if problems or holds_person(TeacherCache.open(root), person):
        found = problems[0].detail if problems else "the person's rows"
        raise CacheError(f"{root}: expected a sound cache without the person's rows, found {found}. The old one stays.")


def _rewrite_answers(evaluation: Path, person: str) -> tuple[Digests, str]:
    """Keep the replies about others, byte for byte, and score them again; scores first, so that a kill is repaired."""
    path, scores, tokens = evaluation / "answers.jsonl", evaluation / "scores.json", evaluation / TOKENS
    told = _without_tokens(tokens, person)
    lines = read_lines(path) if path.is_file() else []
    kept = [line for line, record in lines if not is_about(record, person)]
    if lines and not kept:
        remove_directory(evaluation)
        return {}, "removed: every reply was about them"
    if len(kept) < len(lines):
        scored = _score_again(evaluation, kept) if scores.is_file() else ""
        for derived in _DERIVED:
            (evaluation / derived).unlink(missing_ok=True)
        _replace_file(path, b"".join(line + b"\n" for line in kept))
        told = [f"{len(lines) - len(kept)} replies removed{scored}", *told]
    after = {"answers": path, "scores": scores, "tokens": tokens}
    return {name: file_digest(place) for name, place in after.items() if place.is_file()}, "; ".join(told)


def _without_tokens(path: Path, person: str) -> list[str]:
    """Keep the answers about others, byte for byte, of those kept token by token; say what was done."""
    lines = read_lines(path) if path.is_file() else []
    kept = [line for line, record in lines if not is_about(record, person)]
    if len(kept) == len(lines):
        return []
    _replace_file(path, b"".join(line + b"\n" for line in kept))
    return [f"{len(lines) - len(kept)} answers removed from {path.name}"]


def _rewrite_diagnosis(path: Path, person: str) -> tuple[Digests, str]:
    """Keep the lines about others, byte for byte; numbers over all examples go with the last example."""
    lines = read_lines(path)
    kept = [(line, record) for line, record in lines if not is_about(record, person)]
    if not any(isinstance(record, dict) and record.get("people") for _, record in kept):
        path.unlink()
        sync(path.parent)
        return {}, "removed: every example was about them"
    _replace_file(path, b"".join(line + b"\n" for line, _ in kept))
    return {"diagnosis": file_digest(path)}, f"{len(lines) - len(kept)} lines removed"


def _score_again(evaluation: Path, kept: Sequence[bytes]) -> str:
    """Write the scores of the replies that stay, or unfinish the evaluation where that cannot be done."""
    try:
        records, told = _scores(evaluation, [line.decode() for line in kept])
    except (DataError, ValueError) as error:
        (evaluation / MARKER).unlink(missing_ok=True)
        (evaluation / "scores.json").unlink()
        return f"; it could not be scored again ({error}), and is unfinished now: `viker evaluate` asks anew"
    write_json(evaluation / "scores.json", records)
    return told


def _scores(evaluation: Path, kept: Sequence[str]) -> tuple[dict[str, Any], str]:
    from ..data.sidecar import read_sidecar
    from ..evaluate.answers import parse_answers
    from ..evaluate.protocols.every import CORRECTIONS
    from ..evaluate.score import person_scores, score_answers, scores_json

    options = read_config(evaluation)["options"]
    try:
        source = open_recorded(options, locate(str(options["data"]), evaluation))
        sidecar = source.location / "sidecar.json"
        facts = read_sidecar(sidecar) if sidecar.is_file() else None
    except (DataError, OSError):
        facts = None
    answers, published = parse_answers(kept), frozenset(options.get("as_published") or ())
    if options.get("protocol") == "official":
        published = frozenset(CORRECTIONS)
    records = score_answers(answers, facts, options["seed"], published)
    people = person_scores(answers, facts, published)
    without = "" if facts else " (without fact recall: the list of private words is not at hand)"
    label = read_json(evaluation / "scores.json").get("label")
    return scores_json(records, people) | {"label": label}, f", scored again{without}"


def _replace_file(path: Path, content: bytes) -> None:
    """Replace a file durably by way of one temporary name, which an interrupted attempt leaves for the next."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync(path.parent)
