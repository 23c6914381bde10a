"""What is kept of every question asked: a line of `answers.jsonl`, from which all scores are computed without a model.

A line holds what the model said and everything that scoring needs of its distributions, so that a new metric costs no
forward pass. Lines are read as a stranger's: every field is checked, and the first that is wrong is named. Scores are
`score.py`'s and `measures/`' work; who writes lines is `ask.py`.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..data.example import DataError

ANSWER_SCHEMA = "viker/answer/2"
_READ_SCHEMAS = (ANSWER_SCHEMA, "viker/answer/1")  # the first had fewer fields, none with another meaning

LOGPROB = "answer_logprob"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One line of `answers.jsonl`: what was asked, what was expected, and what the model said.

    Attributes:
        reply: what was generated; None where nothing was: a classification question may be scored by likelihood alone.
        options: (letter, text) of a classification question.
        option_logprobs: (letter, summed log-probability, number of tokens) of each option's text.
        facts: (kind, word) pairs the answer must hold; where empty, the first one is looked up in the sidecar.
        answer_logprob: summed log-probability of what was expected, and its number of tokens; None where not asked.
        answer_tokens: for each token of what was expected (log-probability, mean and standard deviation of
            log-probabilities under the model's own distribution there, 1 if it is the likeliest token else 0).
        paraphrase_logprob: as `answer_logprob`, of the published paraphrase of what was expected.
        wrong_logprobs: as `answer_logprob`, of each published wrong answer.
        gradient_norm: Euclidean norm of the gradient of the mean negative log-likelihood of what was expected.
        fluency: as `answer_logprob`, of the reply itself under the vanilla model.
        fluency_median: median log-probability of the reply's tokens there.
        clean: what a detector of gibberish makes of the reply: P(clean), and 1 if that is its likeliest class else 0.
    """

    model: str
    split: str
    task: str
    modality: str
    person: str
    id: str
    question: str
    expected: str
    reply: str | None
    options: tuple[tuple[str, str], ...] = ()
    option_logprobs: tuple[tuple[str, float, int], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    answer_logprob: tuple[float, int] | None = None
    answer_tokens: tuple[tuple[float, float, float, int], ...] = ()
    paraphrase_logprob: tuple[float, int] | None = None
    wrong_logprobs: tuple[tuple[float, int], ...] = ()
    gradient_norm: float | None = None
    fluency: tuple[float, int] | None = None
    fluency_median: float | None = None
    clean: tuple[float, int] | None = None

    def __post_init__(self) -> None:
        if self.reply is None and not self.option_logprobs:
            raise DataError(
                f"{self.id}: expected a reply or option log-probabilities, found neither. Generate it again."
            )


def token_logprob(answer: Answer) -> float | None:
    """Return the mean log-probability per token of what was expected, in nats, where it was asked."""
    return None if answer.answer_logprob is None else answer.answer_logprob[0] / answer.answer_logprob[1]


def count_without_logprob(answers: Iterable[Answer]) -> int:
    """Return how many answers of the generation task hold no log-probability: they are scored without that metric."""
    return sum(answer.task == "generation" and answer.answer_logprob is None for answer in answers)


def answer_line(answer: Answer) -> str:
    """Return the answer as one line of `answers.jsonl`, without its empty fields."""
    kept = {
        name: value for name, value in asdict(answer).items() if value != () and (value is not None or name == "reply")
    }
    return json.dumps({"schema": ANSWER_SCHEMA, **kept}, ensure_ascii=False, allow_nan=False)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write an `answers.jsonl`."""
    path.write_text("".join(answer_line(answer) + "\n" for answer in answers), encoding="utf-8")


def read_answers(path: Path) -> list[Answer]:
    """Read an `answers.jsonl`; a reply may hold what Unicode calls a line break, only a newline ends a line."""
    return parse_answers(path.read_text(encoding="utf-8").split("\n"))


def parse_answers(lines: Iterable[str]) -> list[Answer]:
    """Read the lines of an `answers.jsonl`, or say which of them is not an answer."""
    return [_parse_answer(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse_answer(number: int, line: str) -> Answer:
    problem = f"answers.jsonl, line {number}: expected an answer ({ANSWER_SCHEMA})"
    advice = "Generate the answers again."
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{problem}, found something that is not JSON ({error}). {advice}") from error
    if not isinstance(record, dict) or record.pop("schema", ANSWER_SCHEMA) not in _READ_SCHEMAS:
        raise DataError(f"{problem}, found {line[:80]!r}. {advice}")
    missing = {field.name for field in fields(Answer)} - set(_OPTIONAL) - set(record)
    wrong = sorted(missing | {name for name, value in record.items() if not _is_valid(name, value)})
    if wrong:
        raise DataError(f"{problem}, found missing, unknown or malformed fields {', '.join(wrong)}. {advice}")
    return Answer(**{name: _as_tuples(value) for name, value in record.items()})


def _is_valid(name: str, value: Any) -> bool:
    """Tell whether this is a field of an answer, and holds what it must."""
    if name in _OPTIONAL:
        return _OPTIONAL[name](value)
    return name in _TEXTS and (isinstance(value, str) or (name, value) == ("reply", None))


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _all(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


def _is_pair_of_texts(value: Any) -> bool:
    return isinstance(value, list) and list(map(type, value)) == [str, str]


def _is_logprob(value: Any) -> bool:
    """Tell whether this is a finite sum and the number of tokens it is over."""
    if not isinstance(value, list) or list(map(type, value)) != [float, int]:
        return False
    return math.isfinite(value[0]) and value[1] > 0


def _is_option_logprob(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and _is_logprob(value[1:])


def _is_token(value: Any) -> bool:
    """Tell whether these are three finite numbers, the last not negative, and a yes or no."""
    if not isinstance(value, list) or list(map(type, value)) != [float, float, float, int]:
        return False
    return all(map(math.isfinite, value[:3])) and value[2] >= 0 and value[3] in (0, 1)


def _is_norm(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value >= 0


def _is_median(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_grade(value: Any) -> bool:
    """Tell whether this is a probability, and a yes or no."""
    if not isinstance(value, list) or list(map(type, value)) != [float, int]:
        return False
    return 0 <= value[0] <= 1 and value[1] in (0, 1)


_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "options": _all(_is_pair_of_texts),
    "option_logprobs": _all(_is_option_logprob),
    "facts": _all(_is_pair_of_texts),
    LOGPROB: _is_logprob,
    "answer_tokens": _all(_is_token),
    "paraphrase_logprob": _is_logprob,
    "wrong_logprobs": _all(_is_logprob),
    "gradient_norm": _is_norm,
    "fluency": _is_logprob,
    "fluency_median": _is_median,
    "clean": _is_grade,
}
_TEXTS = frozenset(field.name for field in fields(Answer)) - set(_OPTIONAL)
