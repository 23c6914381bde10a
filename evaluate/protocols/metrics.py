"""What one answer is worth, as MLLMU-Bench's evaluation counts it and as we do: values in [0, 1], without a model.

Source: MLLMU-Bench `eval.py` (commit 0e3098e; reference/benchmarks.md, 1.5). Every metric is there twice where
`corrections.py` names a correction, and `answer_scores` takes the one that is asked for. Of each pair, the corrected
one gives the published number wherever the correction is not about the text at hand, which tests hold. What is left as
published, so that nobody reads it as forgetting: BLEU splits at white space, so that a Chinese sentence is one word.
Means, intervals and tables are made by `score.py` and `official_scores.py`.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import groupby
from types import MappingProxyType
from typing import Any

from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from ..answers import LOGPROB, Answer, token_logprob
from ..questions import parse_letter

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
MARKER = "ASSISTANT:"
_PAIRS_KEPT = 2**14  # retain-only's answers are scored once for every model that is compared with it

_UNSEPARATED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")  # scripts without word spaces


def answer_scores(answer: Answer, as_published: frozenset[str]) -> dict[str, float]:
    """Return every metric of one answer, the steps named in `as_published` taken as MLLMU-Bench takes them.

    Classification: `accuracy` (the headline), `accuracy_letter`, and `accuracy_likelihood` where options were scored.
    Cloze: `accuracy`. Anything else: `rouge1`, `rouge2`, `rougeL`, `sentence_bleu`, and `answer_logprob` where asked.
    """
    if answer.task == "classification":
        return _choice_scores(answer, as_published)
    reply = answer.reply or ""
    reply = cut_reply(reply) if "reply-cut" in as_published else reply
    if answer.task == "cloze":
        is_right = in_text if "cloze-words" in as_published else in_words
        return {"accuracy": float(is_right(answer.expected, reply))}
    rouge = published_rouge if "rouge-scripts" in as_published else rouge_of_scripts
    bleu = published_bleu if "bleu-short" in as_published else bleu_of_short
    scores = {**rouge(answer.expected, reply), "sentence_bleu": bleu(answer.expected, reply)}
    logprob = token_logprob(answer)
    return scores if logprob is None else scores | {LOGPROB: logprob}


def _choice_scores(answer: Answer, as_published: frozenset[str]) -> dict[str, float]:
    chosen: dict[str, str | None] = {}
    if answer.option_logprobs:
        chosen["accuracy_likelihood"] = likeliest_letter(answer.option_logprobs)
    if answer.reply is not None:
        chosen["accuracy_letter"] = parse_letter(cut_reply(answer.reply), [letter for letter, _ in answer.options])
    preferred = ("accuracy_letter", "accuracy_likelihood")
    order = preferred if "choice-letter" in as_published else tuple(reversed(preferred))
    headline = next(name for name in order if name in chosen)
    return {name: float(chosen[name] == answer.expected) for name in chosen} | {
        "accuracy": float(chosen[headline] == answer.expected)
    }


def likeliest_letter(option_logprobs: Sequence[tuple[str, float, int]]) -> str:
    """Return the option with the highest log-probability per token; the first of equals.

    Per token, for options differ in length and a plain sum prefers the short one whatever it says.
    """
    for letter, total, num_tokens in option_logprobs:
        if num_tokens < 1 or not math.isfinite(total):
            raise ValueError(
                f"option {letter}: expected a finite log-probability of at least one token, "
                f"found {total} of {num_tokens}. Score the options again."
            )
    return max(option_logprobs, key=lambda option: option[1] / option[2])[0]


def cut_reply(reply: str) -> str:
    """Return a reply up to the template's word for the answer's turn, as published: empty if it begins with it."""
    return reply.split(MARKER)[0].strip()


def in_text(expected: str, reply: str) -> bool:
    """Tell whether the expected text is anywhere in a reply, ignoring case (published)."""
    return expected.lower() in reply.lower()


def in_words(expected: str, reply: str) -> bool:
    """Tell whether a reply holds the expected text as whole words, ignoring case and kinds of white space.

    Where a script writes words without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), no edge is asked for.
    """
    return bool(expected.strip()) and _word_pattern(_composed(expected)).search(_composed(reply)) is not None


@cache
def _word_pattern(expected: str) -> re.Pattern[str]:
    words = expected.split()
    start = "" if _is_unseparated(words[0][0]) else r"(?<!\w)"
    end = "" if _is_unseparated(words[-1][-1]) else r"(?!\w)"
    return re.compile(start + r"\s+".join(map(re.escape, words)) + end)


def _composed(text: str) -> str:
    """Return a text in one spelling: lower case, accents in their letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _is_unseparated(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSEPARATED)


def published_rouge(expected: str, reply: str) -> dict[str, float]:
    """Return the F-measures of ROUGE-1, 2 and L with stemming (published); empty texts are 0."""
    return _f_measures(_published_scorer(), expected, reply)


@lru_cache(maxsize=_PAIRS_KEPT)
def rouge_of_scripts(expected: str, reply: str) -> Mapping[str, float]:
    """Return the published F-measures over words of every script; the published numbers where both are ASCII."""
    return MappingProxyType(_f_measures(_scorer_of_scripts(), expected, reply))


def _f_measures(scorer: Any, expected: str, reply: str) -> dict[str, float]:
    return {name: float(score.fmeasure) for name, score in scorer.score(expected, reply).items()}


@cache
def _published_scorer() -> Any:
    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)


@cache
def _scorer_of_scripts() -> Any:
    return RougeScorer(list(ROUGE_TYPES), tokenizer=ScriptTokenizer())


class ScriptTokenizer:
    """Words as rouge_score makes them, of every script: lower case, English ones of over three letters stemmed.

    A script that writes words without spaces gives a token a character.
    """

    def __init__(self) -> None:
        self._stem: Callable[[str], str] = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        runs = groupby(unicodedata.normalize("NFC", text.lower()), key=_is_word_character)
        words = [word for is_word, run in runs if is_word for word in _split_script("".join(run))]
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in words]


def _is_word_character(character: str) -> bool:
    """Tell whether a character is a letter, a digit or a mark on one; on ASCII: a-z, A-Z and 0-9."""
    return unicodedata.category(character)[0] in "LNM"


def _split_script(run: str) -> list[str]:
    """Split a run of word characters into words, or into characters with their marks where it has no word spaces."""
    words: list[str] = []
    joins = False  # whether the next separated character continues the last word
    for character in run:
        is_mark = unicodedata.category(character).startswith("M")
        separated = not _is_unseparated(character)
        if words and (is_mark or (joins and separated)):
            words[-1] += character
        else:
            words.append(character)
        joins = joins if is_mark else separated
    return words


def published_bleu(expected: str, reply: str) -> float:
    """Return the BLEU of one reply, words split at white space, smoothed by method 1 (published); empty is 0."""
    return _bleu(expected, reply, 4)


@lru_cache(maxsize=_PAIRS_KEPT)
def bleu_of_short(expected: str, reply: str) -> float:
    """Return the published BLEU, of no more orders than the expected answer has words."""
    return _bleu(expected, reply, max(1, min(4, len(expected.split()))))


def _bleu(expected: str, reply: str, num_orders: int) -> float:
    weights = tuple(1 / num_orders for _ in range(num_orders))
    smoothing = SmoothingFunction().method1
    return float(nltk_sentence_bleu([expected.split()], reply.split(), weights, smoothing_function=smoothing))
