"""What may be copied into a record: numbers and plain settings; never ids, private words, paths or free text as it is.

Most of a record is made of numbers and of our own words. What others wrote and has to stand in it (a policy's name and
reasons, the commands that were run, the names of settings) passes through here. Values are let through by their shape,
not thrown out by a list of bad ones: an option nobody thought of is withheld, not copied.
"""

import re
import shlex
from collections.abc import Iterable
from typing import Any

WITHHELD = "[withheld]"
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")
_COMMAND_WORDS = 2  # `finetune vanilla`, `data make`: what follows them is a place or a person

# Options and settings whose values are people, places or free text.
_PRIVATE = frozenset({
    "forget", "person", "people", "system-prompt", "instruction", "chat-template", "run", "runs", "data", "model",
    "output", "looks", "controls", "pool", "policy", "config", "processor", "cache", "cache-dir", "vanilla", "revision",
    "data-revision", "published", "image", "name", "report-to", "gibberish", "gibberish-revision", "remote", "ray",
})  # fmt: skip


class Withhold:
    """Takes a person's words, and the ids of others, out of texts that others wrote."""

    def __init__(self, words: Iterable[str]) -> None:
        """Take words to be withheld: ids and private words."""
        longest = sorted({word.strip() for word in words if word.strip()}, key=lambda word: (-len(word), word))
        choices = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest)
        # Digits are no id inside a decimal fraction.
        whole = rf"(?<!\w)(?<!\d\.)(?:{choices})(?!\w)(?!\.\d)"
        self._pattern = re.compile(whole, re.IGNORECASE) if longest else None

    def text(self, value: str) -> str:
        """Return a text without them."""
        return value if self._pattern is None else self._pattern.sub(WITHHELD, value)

    def hits(self, value: str) -> bool:
        """Tell whether a text holds one of them."""
        return self._pattern is not None and self._pattern.search(value) is not None

    def setting(self, name: str, value: Any) -> Any:
        """Return an option's value as it may be copied; whether a withheld one was given stays visible."""
        if name.replace("_", "-") in _PRIVATE:
            return WITHHELD if value else None
        return self._plain(value)

    def command(self, command: str) -> str:
        """Return a command line with its options, and of values only numbers and plain names."""
        try:
            words = shlex.split(command)
        except ValueError:
            return WITHHELD
        told, is_private, leading = words[:1], False, 0
        for word in words[1:]:
            if word.startswith("--"):
                option, equals, value = word.partition("=")
                is_private = option[2:] in _PRIVATE
                told.append(option + (equals and f"={self._value(value, is_private)}"))
                continue
            follows_option = told[-1].startswith("--") and "=" not in told[-1]
            leading += not follows_option
            told.append(self._value(word, is_private if follows_option else leading > _COMMAND_WORDS))
        return " ".join(told)

    def _value(self, value: str, is_private: bool) -> str:
        return WITHHELD if is_private else str(self._plain(value))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            return WITHHELD if not _PLAIN.fullmatch(value) or self.hits(value) else value
        return value if isinstance(value, str | int | float | bool | None) else WITHHELD
