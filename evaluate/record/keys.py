"""A key for each person: who holds it can show whom a record is about, and nobody else can even test a guess.

Ids are short (`001`, a first name), so a plain digest of one is no pseudonym: a list of all ids is tried in a second.
What stands for the person in a record is a digest under a random key, which lies in the run, never in the record:

    RUN/record/keys/<pseudonym>.key     32 random bytes in hex, readable by their owner alone

One key is one person's: making a record again gives the same pseudonym, and taking one person's key away leaves the
records of all others as provable as they were. Files are named by pseudonyms, so a folder of keys names nobody either.

`viker purge PERSON` keeps records, which hold pseudonyms alone, and with them the key, which is what makes a record
evidence: without it nobody can say whose it is. It lists the key, and with `--include-record-keys` shows it once and
removes it; the record can then be proven by whoever was given the key, and from this machine by nobody. Anybody with
the key can do so without viker: `hashlib.blake2b(b"PERSON", key=bytes.fromhex("KEY"), digest_size=16).hexdigest()`.
"""

import hashlib
import os
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ...data.example import DataError

FOLDER = "record"  # inside a run
KEYS = "keys"
SUFFIX = ".key"
_KEY_BYTES = 32
_DIGEST_BYTES = 16
_MOST_BYTES = 1024  # of a file that could hold a key


@dataclass(frozen=True, slots=True)
class PersonKey:
    """A person's id and the key that it is digested under."""

    person: str = field(repr=False)
    secret: bytes = field(repr=False)

    @property
    def pseudonym(self) -> str:
        """What stands for the person: blake2b of the id under the key, 32 hex digits."""
        return _pseudonym(self.person, self.secret)

    def digest(self, purpose: str, content: bytes) -> str:
        """Return the digest of something under the key, 32 hex digits; purposes (16 bytes at most) keep kinds apart."""
        return keyed_digest(self.secret, purpose, content)


def new_key(person: str) -> PersonKey:
    """Return a fresh key for a person; `save_key` keeps it."""
    return PersonKey(normalized(person), secrets.token_bytes(_KEY_BYTES))


def find_key(run: Path, person: str) -> PersonKey | None:
    """Return a person's key of a run, None where there is none.

    Raises:
        DataError: a file of keys holds something else.
    """
    path = find_key_file(run / FOLDER / KEYS, person)
    return None if path is None else PersonKey(normalized(person), read_secret(path))


def find_key_file(folder: Path, person: str) -> Path | None:
    """Return the file of a person's key in a folder of keys: the one whose key turns the id into the file's name.

    Raises:
        DataError: a file of keys holds something else, so that nobody knows whose it is.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if _pseudonym(normalized(person), read_secret(path)) == path.stem:
            return path
    return None


def read_secret(path: Path) -> bytes:
    """Return the key a file holds.

    Raises:
        DataError: it holds none.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
        if len(secret) != _KEY_BYTES:
            raise ValueError(f"{len(secret)} bytes")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected a key of {_KEY_BYTES} bytes in hex, found something else ({error}). Put back a copy, or "
            "remove it: the record it belongs to is then proven by nobody."
        ) from error
    return secret


def save_key(run: Path, key: PersonKey) -> None:
    """Keep a key in a run, durably and readable by its owner alone; one that is there already stays."""
    folder = run / FOLDER / KEYS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{key.pseudonym}{SUFFIX}"
    if path.exists():
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(key.secret.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def keyed_digest(secret: bytes, purpose: str, content: bytes) -> str:
    """Return blake2b of something under a key; `purpose` is its personalization."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES, key=secret, person=purpose.encode()).hexdigest()


def normalized(person: str) -> str:
    """Return an id as sources have it: without space around it, in Unicode's composed form."""
    return unicodedata.normalize("NFC", person.strip())


def _pseudonym(person: str, secret: bytes) -> str:
    return hashlib.blake2b(person.encode(), digest_size=_DIGEST_BYTES, key=secret).hexdigest()
