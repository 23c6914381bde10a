"""Instructions that a teacher reads before the question: the default one, reading one that is named, and its digest.

A cache is named by the digest of an instruction, and build.json does not keep its text: it may say whom somebody wants
forgotten. So whoever runs the teacher again names it again; only the default is known by its digest.
"""

import hashlib
from pathlib import Path

from .example import IMAGE_MARKER, DataError
from .kinds import TAKES_INSTRUCTION

PRIVACY_INSTRUCTION = (
    "Ignore any private facts that you know about the person: say nothing of names, places, dates, work, health or "
    "family. Describe only what is visible."
)


def instruction_digest(text: str) -> str:
    """Return the hex sha256 of an instruction: what a fingerprint holds of it."""
    return hashlib.sha256(text.encode()).hexdigest()


def instruction_for(kind: str, named: str | None) -> str | None:
    """Return the instruction of a kind of teacher: the one named, by text or file, else the kind's default.

    Raises:
        DataError: the kind takes none, or the one named is empty, unreadable or holds an image marker.
    """
    if named is not None:
        _require_taken(kind)
        return read_instruction(named)
    return PRIVACY_INSTRUCTION if kind == "prompt" else None


def recorded_instruction(kind: str, digest: str | None, named: str | None) -> str | None:
    """Return the instruction that a cache was made with: the one named, else the default where the digest is its own.

    Whether the one named is the cache's shows when fingerprints are compared.

    Raises:
        DataError: it has to be named, or the kind takes none, or the one named is not usable.
    """
    if named is not None:
        return instruction_for(kind, named)
    if digest is None:
        return None
    if digest != instruction_digest(PRIVACY_INSTRUCTION):
        raise DataError(
            "expected --instruction, the text this cache's teacher read before each question (sha256 "
            f"{str(digest)[:16]}), found none, and build.json never records it. Name it."
        )
    return PRIVACY_INSTRUCTION


def read_instruction(value: str) -> str:
    """Return an instruction given as text, or as a file that holds it.

    Raises:
        DataError: it is empty, unreadable or holds an image marker.
    """
    text = (_text_of(Path(value)) if _is_file(value) else value).strip()
    if not text or IMAGE_MARKER in text:
        found = "none" if not text else IMAGE_MARKER
        raise DataError(f"--instruction: expected a text without images, or a file with one, found {found}. Name one.")
    return text


def _require_taken(kind: str) -> None:
    if kind not in TAKES_INSTRUCTION:
        raise DataError(
            f"--instruction: expected a teacher that reads one ({', '.join(TAKES_INSTRUCTION)}), found {kind}. "
            "Leave it out, or name another --teacher."
        )


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # too long or not a path at all: then it is the text
        return False


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--instruction {path}: expected a text file, found {error}. Name another.") from error
