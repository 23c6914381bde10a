"""Turn token ids into text for a report: by a tokenizer that lies beside one of the run's models, without transformers.

A tokenizer is taken only if it says what the evaluations say of their own tokens. Where none lies here (a hub model, or
one without a `tokenizer.json`), tokens that some evaluation kept have its text, others are shown as their number.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..token_lines import TokenLine, text_behind
from .run import Run

MAX_BYTES = 64 * 2**20  # twice the largest of the supported families
_CHECKED = 4  # answers that a tokenizer must read as they are


class Texts:
    """The text of a token behind another one, each worked out once."""

    def __init__(self, tokenizer: Any | None, known: dict[int, str]) -> None:
        self._tokenizer = tokenizer
        self._known = known
        self._found: dict[tuple[int | None, int], str] = {}
        self._unknown: set[int] = set()

    def behind(self, before: int | None, token: int) -> str:
        """Return what a token adds to the text behind another one (None: at the beginning)."""
        if (before, token) not in self._found:
            self._found[before, token] = self._text(before, token)
        return self._found[before, token]

    @property
    def notes(self) -> list[str]:
        """What could not be told, in words."""
        if not self._unknown:
            return []
        return [
            f"No tokenizer of these answers lies beside the run's models: {len(self._unknown)} of the teacher's tokens "
            "are shown as their numbers."
        ]

    def _text(self, before: int | None, token: int) -> str:
        if self._tokenizer is not None:
            return text_behind(lambda ids: _decode(self._tokenizer, ids), before, token)
        if token not in self._known:
            self._unknown.add(token)
        return self._known.get(token, f"#{token}")


def texts_of(run: Run, lines: Sequence[TokenLine]) -> Texts:
    """Return how the tokens of some answers are written."""
    known = {id_: text for line in lines for token in line.tokens for id_, text, _ in reversed(token.candidates)}
    return Texts(next(_tokenizers(run, lines[:_CHECKED]), None), known)


def _tokenizers(run: Run, lines: Sequence[TokenLine]) -> Iterator[Tokenizer]:
    """Yield the tokenizers beside the run's models that read answers as the evaluations did."""
    for folder in dict.fromkeys(_folders(run)):
        path = folder / "tokenizer.json"
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            continue
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception:  # the library raises nothing narrower; another folder may have one
            tokenizer = None
        if tokenizer is not None and all(_is_read_by(tokenizer, line) for line in lines):
            yield tokenizer


def _folders(run: Run) -> Iterator[Path]:
    yield run.path / "vanilla"
    for stage in run.under("evaluations").values():
        yield from (Path(str(stage.options[name])) for name in ("processor", "model") if stage.options.get(name))
    yield from (stage.path for stage in run.under("adapters").values())


def _is_read_by(tokenizer: Tokenizer, line: TokenLine) -> bool:
    """Tell whether a tokenizer decodes a line's tokens to its answer; transformers may tidy up spaces."""
    said = tokenizer.decode([token.id for token in line.tokens], skip_special_tokens=True)
    return said.split() == line.answer.split() or "".join(said.split()) == "".join(line.answer.split())


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text
