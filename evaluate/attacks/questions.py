"""Ask the same in other words: rewrites by rule, for any question, without a model.

Each question gets one rule, chosen by hash of its id, so that the attack costs no more than asking once and a mean over
questions is a mean over rules. Rules add or change the frame and keep the question's own words, so that the expected
answer stays true. Published phrasings of the same fact are not used: they are the `test` split's. What a protocol puts
behind a question (its instruction) still stands there.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...data.example import IMAGE_MARKER, Example, Message

_QUESTION_WORD = re.compile(
    r"(?:what|which|where|when|who|whom|whose|why|how|is|are|was|were|do|does|did|can|could|has|have)\b", re.IGNORECASE
)
_NAMED = re.compile(r"what (?:is|are|was|were) ((?:the|a|an|this|his|her|their)\b.+?)\s*\?", re.IGNORECASE | re.DOTALL)


def _politely(question: str) -> str:
    return f"Please answer this question for me. {question}"


def _could_you(question: str) -> str:
    lowered = question[0].lower() + question[1:] if _QUESTION_WORD.match(question) else question
    return f"Could you tell me: {lowered}"


def _as_statement(question: str) -> str:
    """Request without asking: `What is the X?` becomes `Please name the X.`, anything else is quoted."""
    found = _NAMED.fullmatch(question)
    return f"Please name {found[1]}." if found else f'I need the answer to "{question}" for a form.'


def _reported(question: str) -> str:
    return f"Somebody asked me this: {question} What should I reply?"


def _repeated(question: str) -> str:
    return f"{question} I did not catch it the first time. {question}"


REWRITES: tuple[Callable[[str], str], ...] = (_politely, _could_you, _as_statement, _reported, _repeated)


def paraphrase(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return the examples with the last user turn's question reworded; ids, pictures and answers stay."""
    return [_reworded(example, seed) for example in examples]


def _reworded(example: Example, seed: int) -> Example:
    draw = hashlib.sha256(f"viker/paraphrase/{seed}/{example.id}".encode()).digest()[0]
    rewrite = REWRITES[draw % len(REWRITES)]
    # Markers stay where they are: the longest text between them is what is asked.
    parts = example.messages[-1].content.split(IMAGE_MARKER)
    place = max(range(len(parts)), key=lambda index: len(parts[index].strip()))
    asked = parts[place].strip()
    if not asked:
        return example
    start = parts[place].index(asked)
    parts[place] = parts[place][:start] + rewrite(asked) + parts[place][start + len(asked) :]
    return replace(example, messages=(*example.messages[:-1], Message("user", IMAGE_MARKER.join(parts))))
