"""A cache for those who train with something else: open it, and ask for the rows of an example, as numpy arrays.

`rows` takes what `viker.encode` gives (ids alone decide the rows of most teachers, and reading them needs neither torch
nor transformers), or an example as it is, where a model was named whose tokenizer makes ids of it. What tells tokens
apart is checked, so rows of other tokens are never handed out.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..data.example import DataError, Example
from ..data.kinds import SHOWS_OWN_IMAGE
from .cache import CacheMismatch, Rows, TeacherCache, row_key, token_hash
from .local import find_path

if TYPE_CHECKING:
    from ..models.encode import Encoder


_TOLD_APART_BY_PICTURE = (*SHOWS_OWN_IMAGE, "noise")  # noise takes the picture's size


class Tokenized(Protocol):
    """An example in unexpanded ids: one placeholder an image."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Ids of the prompt."""

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Ids of the answer."""


class OpenedCache:
    """A checked cache that is asked by example; `cache` is what is behind it."""

    def __init__(self, cache: TeacherCache, model: str | None) -> None:
        self.cache = cache
        self._model = model

    def __len__(self) -> int:
        return self.cache.num_samples

    def rows(self, example: Example | Tokenized) -> Rows:
        """Return the rows of an example's answer tokens, in their order.

        Raises:
            CacheMismatch: there are none for these tokens.
            DataError: an example is not tokenized and no model is named, or the rows are told apart by pictures.
        """
        ids, digest = self._tokenized(example)
        index = self.cache.find_row(row_key(ids.prompt_ids, ids.answer_ids, digest))
        hashed = token_hash(self.cache.lineage, ids.prompt_ids, ids.answer_ids)
        if index is None or int(self.cache.token_hash[index]) != hashed:
            raise CacheMismatch(
                f"{self.cache.root}: expected rows for these {len(ids.answer_ids)} answer tokens, found none. "
                "The cache is of other examples, or of another tokenizer or rendering."
            )
        return self.cache.rows_of(index)

    def _tokenized(self, example: Example | Tokenized) -> tuple[Tokenized, str | None]:
        kind = self.cache.fingerprint["intervention"]["kind"]
        if not isinstance(example, Example):
            if kind in _TOLD_APART_BY_PICTURE:
                raise DataError(
                    f"{self.cache.root}: expected an Example, since {kind} rows are told apart by pictures, found "
                    "ids. Give the example, and open the cache with model=."
                )
            return example, None
        if self._model is None:
            raise DataError(
                "rows: expected an example in ids (viker.encode), or a cache opened with model=, found an Example and "
                "no model."
            )
        from ..models.interventions import pixels_digest

        digest = pixels_digest(example, kind)
        return self._encoder.encode(example), digest

    @cached_property
    def _encoder(self) -> "Encoder":
        from .example_rows import open_encoder

        settings = dict.fromkeys(("revision", "processor", "chat_template", "system_prompt", "score_end_token"))
        return open_encoder(self.cache, {**settings, "model": self._model, "trust_remote_code": False})


def open_cache(where: str | Path, *, model: str | None = None) -> OpenedCache:
    """Open a cache by its folder or the beginning of its key, checked.

    Args:
        where: a directory, or the beginning of a key in the cache home.
        model: the student's directory or hub id, to ask by example; only its tokenizer and rendering are read.

    Raises:
        CacheError: it is incomplete, damaged or hostile.
        DataError: there is no such cache.
    """
    return OpenedCache(TeacherCache.open(find_path(str(where))), model)
