"""CLEAR's questions: a name asked openly and by options, captions, and the pictureless form the official code scores.

Sources: CLEAR `mm/eval.py` and `mm/dataset.py` (reference/benchmarks.md, sections 2.2 and 2.3) for captions and open
recognition, whose prompts are in the examples already; MMUnlearner `CLEAR_eval.py` (section 2.4) for options. A row
with wrong names becomes a question with options here, by a seed, so that every model is asked the same letters.
Such a question keeps its own bare words: a tiny model, which never saw an instruction, is scored by the likelihood of
each name behind them (`../questions.py: option_examples`). `official_prompt` is MMUnlearner's wording of it.
Two ways to read a letter: `official_letter` is the published one, `stated_letter` is ours (`clear_corrections.py` says
why). Which rows there are is `data/clear.py`'s business, numbers are `clear_metrics.py`'s.
"""

import hashlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from ...data.clear_rows import NAME_QUESTION
from ...data.example import IMAGE_MARKER, DataError, Example, Message
from ..questions import Style, plain_prompt
from .metrics import in_words

OPTION_QUESTION = "What is the name of the person in the image?"
OPTION_SUFFIX, BLIND_SUFFIX = "/options", "/no-picture"  # what they add to an example's id

# A letter that stands alone at the start, or in front of a mark: "B", "(b)", "B. Bruno", "Option C:"; not "Bruno".
_LONE_LETTER = re.compile(r"[^\w]*(?:option\s+)?([a-z])(?=\s*$|\s*[.):,;\]\n])", re.IGNORECASE)


def option_question(example: Example, seed: int) -> Example:
    """Return a recognition or real-world question with options: its wrong names and, at a seeded place, the right one.

    The place is a function of the seed and the example's id (MMUnlearner: of one random stream over all rows). The
    words asked stay the example's own; the answer becomes a letter, the task `classification`.

    Raises:
        DataError: there is no wrong name, or more names than letters.
    """
    names = [name for name in example.wrong if _folded(name) != _folded(example.answer)]
    if not 1 <= len(names) < len(string.ascii_uppercase):
        raise DataError(
            f"{example.id}: expected 1 to {len(string.ascii_uppercase) - 1} wrong names for a question with options, "
            f"found {len(names)}. Ask this row without options, or correct the source."
        )
    digest = hashlib.sha256(f"viker/clear-option/{seed}/{example.id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") % (len(names) + 1)
    options = tuple(zip(string.ascii_uppercase, (*names[:place], example.answer, *names[place:]), strict=False))
    return replace(
        example, id=f"{example.id}{OPTION_SUFFIX}", task="classification", options=options,
        answer=string.ascii_uppercase[place], paraphrase="", wrong=(),
    )  # fmt: skip


def option_questions(examples: Iterable[Example], seed: int) -> tuple[list[Example], dict[str, int]]:
    """Return a question with options for every row that shows a picture and asks for a name or a real-world answer.

    The second value counts, by reason, rows that have no wrong name and wrong names that repeat the right one.
    """
    asked: list[Example] = []
    left_out: Counter[str] = Counter()
    for example in examples:
        if example.task not in ("recognition", "generation") or not example.images:
            continue
        repeats = sum(_folded(name) == _folded(example.answer) for name in example.wrong)
        if repeats:
            left_out["wrong names that repeat the right one"] += repeats
        if repeats == len(example.wrong):
            left_out["rows without a wrong name"] += 1
        else:
            asked.append(option_question(example, seed))
    return asked, dict(left_out)


def official_prompt(example: Example) -> Example:
    """Return the example as MMUnlearner asks it: `A. name` lines behind the question; without options, as it is.

    Where the row has no question of its own (faces), the question is `OPTION_QUESTION`.
    """
    if not example.options:
        return example
    content = example.messages[-1].content
    question = OPTION_QUESTION if example.question == NAME_QUESTION.strip() else example.question
    lines = "\n".join(f"{letter}. {name}" for letter, name in example.options)
    asked = Message("user", f"{IMAGE_MARKER}\n" * content.count(IMAGE_MARKER) + f"{question}\n{lines}\n")
    return replace(example, messages=(*example.messages[:-1], asked))


PROMPTS: Mapping[Style, Callable[[Example], Example]] = {"official": official_prompt, "plain": plain_prompt}


def option_prompt(example: Example, seed: int) -> Example:
    """Return a recognition or real-world example as MMUnlearner asks it by options, in one step."""
    return official_prompt(option_question(example, seed))


def without_picture(example: Example) -> Example:
    """Return the question with its picture taken away, as CLEAR's official code generates the replies it scores.

    The official code decodes the prompt to text and tokenizes it again, so no pixel is shown (section 2.3, b). Beside
    the reply to the picture it says what text alone gives away.
    """
    messages = tuple(
        Message(turn.role, turn.content.replace(IMAGE_MARKER, "").lstrip()) if IMAGE_MARKER in turn.content else turn
        for turn in example.messages
    )
    return replace(example, id=f"{example.id}{BLIND_SUFFIX}", images=(), messages=messages)


def official_letter(reply: str, letters: Collection[str]) -> str | None:
    """Return the letter MMUnlearner reads: the first of a-z, A-Z and 0-9, upper-cased, if that is an option."""
    first = re.sub(r"[^a-zA-Z0-9]", "", reply)[:1].upper()
    return first if first and first in letters else None


def stated_letter(reply: str, options: Sequence[tuple[str, str]]) -> str | None:
    """Return the option a reply states: a letter that stands alone, else the one option whose name is in the reply."""
    found = _LONE_LETTER.match(reply)
    if found and found.group(1).upper() in dict(options):
        return found.group(1).upper()
    named = [letter for letter, name in options if name_recalled(name, reply)]
    return named[0] if len(named) == 1 else None


def name_recalled(expected: str, reply: str) -> bool:
    """Tell whether a reply holds a name as whole words, in any case, spacing or accents; an empty name never is held.

    Our best reading of ViKeR's recall of "Identity Recognition" on CLEAR (reference/benchmarks.md, section 2.5): the
    paper's own rule was not found. A part of a name is not the name; a name told with other accents is told.
    """
    return in_words(_unaccented(expected), _unaccented(reply))


def _unaccented(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    return unicodedata.normalize("NFKC", "".join(mark for mark in letters if not unicodedata.combining(mark)))


def _folded(text: str) -> str:
    return " ".join(_unaccented(text).casefold().split())
