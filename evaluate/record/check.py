"""Compare a record with what is there now: is it as it was made, and is what it speaks of still what it speaks of?

Nothing about people is needed for most of it: the record's own digest, its page, and the files of the run by theirs.
The key, where it is at hand, adds the seal and the files that name people; naming the person adds the rest: that the
pseudonym is theirs, and that every number, derived anew, is the one in the record. What cannot be compared is listed as
not checked, with the reason: an auditor has to know what a check did not cover. A person who was purged since leaves
replies and scores that differ: the record of that purge holds the same digests as they were before it, as `before`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...data.artefact import CHECKPOINT_CONFIG, ArtefactMismatch, read_config, read_json
from ...data.example import DataError, canonical_json
from ..report.run import Run, read_run
from .content import SCHEMA, build_record, code_version, gather, record_digest
from .keys import FOLDER, KEYS, SUFFIX, PersonKey, keyed_digest, normalized, read_secret
from .made_of import digested
from .page import render_page
from .weights import EXPORT_SCHEMA, find_merged, read_weights

Status = Literal["same", "differs", "gone", "not checked"]
_SECTIONS = ("subject", "request", "examples", "weights", "summary", "numbers", "attacks", "policy")
_MAX_BYTES = 64 * 2**20
_NO_KEY = "the person's key is not at hand (--key)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One comparison: of what, how it came out, and the two values or the reason behind it."""

    what: str
    status: Status
    told: str = ""


def read_record(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return where a record is, and its content; a directory is looked into.

    Raises:
        DataError: it is none, or of another schema.
    """
    file = path / "record.json" if path.is_dir() else path
    if file.is_file() and file.stat().st_size > _MAX_BYTES:
        raise DataError(f"--check {file}: expected a record of at most {_MAX_BYTES} bytes, found a larger file.")
    record = read_json(file)
    if record.get("schema") != SCHEMA or not isinstance(record.get("subject"), dict):
        raise DataError(
            f"--check {file}: expected a deletion record ({SCHEMA}), found schema {record.get('schema')!r}. Name the "
            "record.json that `viker record` wrote."
        )
    return file, record


def find_secret(run: Path, record: Mapping[str, Any], named: Path | None) -> bytes | None:
    """Return the key of a record: the one that is named, else the run's; None where there is none."""
    kept = run / FOLDER / KEYS / f"{record['subject'].get('pseudonym')}{SUFFIX}"
    path = named or kept
    return read_secret(path) if named is not None or kept.is_file() else None


def check_record(
    file: Path, record: Mapping[str, Any], run: Path, *, secret: bytes | None, person: str | None, merged: Path | None
) -> list[Item]:
    """Compare everything that can be compared.

    Args:
        file: where the record is; its page is looked for beside it.
        record: its content.
        run: the run it was made of.
        secret: the person's key, where it is at hand.
        person: whom it is said to be about, where that is told.
        merged: where the merged model is, if not in the run.

    Raises:
        DataError: the record lacks something that every record has.
    """
    try:
        items = [_own_digest(record), _seal(record, secret), _page(file, record)]
        items += [_file(entry, run, secret) for entry in record["provenance"]["files"]]
        items += _merged(record, run, merged)
        return items + _of_person(record, run, secret, person, merged)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: expected a whole deletion record, found one without {error}. Restore it.") from error


def _own_digest(record: Mapping[str, Any]) -> Item:
    return _compared("record.json, its own digest", str(record.get("record_sha256")), record_digest(record))


def _seal(record: Mapping[str, Any], secret: bytes | None) -> Item:
    what = "record.json, its seal"
    if secret is None:
        return Item(what=what, status="not checked", told=_NO_KEY)
    content = {name: value for name, value in record.items() if name not in ("seal", "record_sha256")}
    return _compared(what, str(record.get("seal")), keyed_digest(secret, "seal", canonical_json(content)))


def _page(file: Path, record: Mapping[str, Any]) -> Item:
    """Compare the page beside a record with the one it makes, which only the same version is known to make."""
    page = file.with_name("record.html")
    if not page.is_file():
        return Item(what="record.html", status="gone", told="no page lies beside the record")
    if record["code_version"] != code_version():
        told = f"made by viker {record['code_version']}, this is {code_version()}"
        return Item(what="record.html", status="not checked", told=told)
    import jinja2

    try:
        is_same = page.read_bytes() == render_page(record).encode()
    except jinja2.UndefinedError as error:
        raise KeyError(str(error)) from error
    told = "" if is_same else "the page is not the one that this record makes"
    return Item(what="record.html", status="same" if is_same else "differs", told=told)


def _file(entry: Mapping[str, str], run: Path, secret: bytes | None) -> Item:
    path = run / entry["path"]
    if not path.resolve().is_relative_to(run.resolve()):
        return Item(what=entry["path"], status="differs", told="a place outside the run")
    if not path.is_file():
        return Item(what=entry["path"], status="gone", told="no such file in the run")
    if "keyed" in entry and secret is None:
        return Item(what=entry["path"], status="not checked", told=_NO_KEY)
    found = digested(path, run, secret or b"")
    kind = "keyed" if "keyed" in entry else "sha256"
    return _compared(entry["path"], entry[kind], found.get(kind, "another kind of digest"))


def _merged(record: Mapping[str, Any], run: Path, named: Path | None) -> list[Item]:
    """Compare the bytes of the merged model, where the record speaks of one."""
    known = record["weights"]["merged"]
    if known is None:
        return []
    directory = named or next((path for path in _exports(run) if _has_files(path, known["files"])), None)
    if directory is None:
        return [Item(what="merged model", status="not checked", told="it is not in the run: name it with --merged")]
    return [_compared("merged model", known["weights"], read_weights(directory).tensors)]


def _exports(run: Path) -> list[Path]:
    configs = sorted([*run.glob(f"*/{CHECKPOINT_CONFIG}"), *run.glob(f"*/*/{CHECKPOINT_CONFIG}")])
    return [path.parent for path in configs if read_config(path.parent).get("schema") == EXPORT_SCHEMA]


def _has_files(directory: Path, files: Iterable[Mapping[str, Any]]) -> bool:
    return all((directory / one["name"]).is_file() for one in files)


def _of_person(
    record: Mapping[str, Any], run: Path, secret: bytes | None, person: str | None, merged: Path | None
) -> list[Item]:
    """Compare what only the person's id opens: the pseudonym, and the record made anew from the run."""
    if person is None:
        return [Item(what="whom it is about", status="not checked", told="nobody was named (--person)")]
    if secret is None:
        return [Item(what="whom it is about", status="not checked", told=_NO_KEY)]
    key = PersonKey(normalized(person), secret)
    items = [_compared("whom it is about", record["subject"]["pseudonym"], key.pseudonym)]
    if items[0].status != "same":
        return items
    try:
        found = _again(read_run(run), record, key, merged)
    except ArtefactMismatch as error:
        return [*items, Item(what="the record made anew", status="differs", told=str(error))]
    except DataError as error:
        return [*items, Item(what="the record made anew", status="not checked", told=str(error))]
    return items + [
        Item(what=f"{section}, made anew", status="same" if record[section] == found[section] else "differs")
        for section in _SECTIONS
    ]


def _again(run: Run, record: Mapping[str, Any], key: PersonKey, merged: Path | None) -> dict[str, Any]:
    """Return the record as it would be made now.

    Raises:
        DataError: what it was made from is not at hand.
    """
    name = record["request"]["adapter"]
    adapters = run.under("adapters")
    if name not in adapters:
        raise DataError(f"{run.path}: expected the adapter {name}, found none.")
    if record["weights"]["merged"] is not None:
        merged = merged or find_merged(run.path, adapters[name])
        if merged is None:
            raise DataError(f"{run.path}: expected the merged model, found none. Name it with --merged.")
    else:
        merged = None
    return build_record(gather(run, adapters[name], merged, key), ())


def _compared(what: str, expected: str, found: str) -> Item:
    if expected == found:
        return Item(what=what, status="same")
    return Item(what=what, status="differs", told=f"expected {expected[:16]}, found {found[:16]}")
