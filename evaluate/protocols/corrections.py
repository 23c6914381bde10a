"""What MLLMU-Bench's evaluation does that we correct: each correction by name, so that it can be reverted and measured.

`fixed` is all of them, `official` none; `--as-published NAME` reverts one. A set of names, `as_published`, says which
steps are taken as the published code takes them, and is all that `mllmu.py` (what is asked) and `metrics.py` (what an
answer is worth) read. Source: `eval.py` of MLLMU-Bench (commit 0e3098e; reference/benchmarks.md, 1.5 and 1.6), LLaVA
branch; functions are named as there. What differs and has no switch is listed as well: a protocol that hides half of
its differences is not comparable. What each correction changes on the embedded benchmark is in docs/protocols.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ...data.example import DataError

ProtocolName = Literal["fixed", "official"]
PROTOCOLS: tuple[ProtocolName, ...] = ("fixed", "official")
Step = Literal["prompts", "questions scored", "pictures", "parsing", "metric"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """One thing the published code does, what we do instead, and why; `where` is a function of its eval.py."""

    name: str
    step: Step
    where: str
    published: str
    ours: str
    why: str


_ALL = (
    Correction(
        name="few-shot-people",
        step="prompts",
        where="evaluate_classification, evaluate_fill_in_the_blank",
        published=(
            "people whose questions and answers stand in front are drawn by an unseeded random.sample from the people "
            "under evaluation, and looked up in Full_Set; celebrities are not in it, as far as is known, so their "
            "cloze questions stand alone, and a drawn person without questions gives none"
        ),
        ours="drawn by the seed from the retain people who have such questions, for celebrities' cloze questions too",
        why="answers of the forget people stand in the prompts that ask what is left of them; no two runs agree",
    ),
    Correction(
        name="few-shot-scored",
        step="questions scored",
        where="evaluate_classification, evaluate_fill_in_the_blank",
        published="the questions of the people shown in front are not scored",
        ours="everybody is scored; who would be shown their own answers is shown somebody else's",
        why="which people a score is over depends on the draw, and differs between classification and cloze",
    ),
    Correction(
        name="test-picture",
        step="pictures",
        where="all three evaluate_ functions, mode test",
        published="one picture a person and task, by an unseeded random.choice of the several in Test_Set",
        ours="one picture a question, by a hash of the question",
        why="no two runs see the same pictures, and all answers about a person hang on one draw",
    ),
    Correction(
        name="turn-spacing",
        step="prompts",
        where="all three evaluate_ functions",
        published=(
            "a line break behind `USER:` where classification and cloze show no picture, and a space behind "
            "`ASSISTANT:` of generation with a picture"
        ),
        ours="the spacing of the template that the models are trained in",
        why="Llama's tokenizer makes a token of the space, and the answer then begins where none did in training",
    ),
    Correction(
        name="reply-cut",
        step="parsing",
        where="all three evaluate_ functions",
        published="prompt and reply are split at `ASSISTANT:` and the second part kept: a reply ends where it says so",
        ours="all of the reply; only the letter of a choice is read as published",
        why="a reply that begins with the word counts as empty whatever follows: what is said is not forgotten",
    ),
    Correction(
        name="choice-letter",
        step="metric",
        where="evaluate_classification",
        published="the option that the reply's first character names, in either case; no option is a wrong answer",
        ours="`accuracy` is of the option with the highest log-probability per token; the letter is `accuracy_letter`",
        why="a model that knows the answer and not the letter game counts as having forgotten",
    ),
    Correction(
        name="cloze-words",
        step="metric",
        where="evaluate_fill_in_the_blank",
        published="right where the expected text is anywhere in the reply, ignoring case, inside other words too",
        ours="right where it stands there as whole words, across any white space",
        why="`no` is in `know`, `art` in `start`: short answers are found in replies that do not say them",
    ),
    Correction(
        name="rouge-scripts",
        step="metric",
        where="evaluate_generation (rouge_score's tokenizer)",
        published="characters outside a-z and 0-9 are dropped: a perfect Cyrillic answer scores 0, `Malmö` is `malm`",
        ours="letters, digits and marks of every script are kept; the same numbers where both texts are ASCII",
        why="names of people and places are what is to be forgotten, and many are not ASCII",
    ),
    Correction(
        name="bleu-short",
        step="metric",
        where="compute_bleu",
        published="four orders of n-grams however short the answer: a perfect answer of one word scores 0.18",
        ours="as many orders as the expected answer has words, at most four; the same numbers from four words on",
        why="a short answer given perfectly reads as forgotten",
    ),
)
CORRECTIONS: dict[str, Correction] = {correction.name: correction for correction in _ALL}

# What differs from the published code under both protocols, and why there is no switch.
NOT_SWITCHED: tuple[tuple[str, str], ...] = (
    (
        "chance",
        "The published draws are unseeded and cannot be repeated; `official` makes the same kinds of draws, each a "
        "function of seed, split, task and person. Blocks stand in the order of the people's ids (there: of Full_Set).",
    ),
    (
        "pictures of the test people",
        "`test-picture` as published draws among the pictures that a person's questions show under `fixed`: of three "
        "pictures and nine questions, one is missing for about one person in thirteen.",
    ),
    (
        "blank questions",
        "A question, answer or right option left blank is not asked, and counted; the published code fails on it, or "
        "finds an empty cloze answer in every reply. A person with empty lists (one in retain_95) is not asked there, "
        "as published.",
    ),
    (
        "celebrities' choices",
        "They are asked zero-shot by both. The published code hands over the pictures of its few-shot people all the "
        "same, and works only because it finds none of them in Full_Set.",
    ),
    (
        "retain people",
        "Reported in two halves, those that a retain term may train on and the others; the published table of "
        "`official_table` joins them.",
    ),
    (
        "no questions",
        "A mean over no answers is left out; the published code prints 0.",
    ),
    (
        "models",
        "Only the LLaVA branch is followed. Another family is asked in its own chat template, with the same words.",
    ),
)


def as_published(
    protocol: ProtocolName, reverted: Iterable[str] = (), known: Mapping[str, Correction] = CORRECTIONS
) -> frozenset[str]:
    """Return the names of the steps taken as published: all of them for `official`, the reverted ones for `fixed`.

    Args:
        protocol: which.
        reverted: corrections not to make.
        known: those there are, of one benchmark or of several.

    Raises:
        DataError: a name that is no correction, or one reverted in `official`, which reverts all.
    """
    names = frozenset(reverted)
    if unknown := sorted(names - set(known)):
        raise DataError(f"--as-published: expected some of {', '.join(known)}, found {', '.join(unknown)}.")
    if protocol == "official" and names:
        raise DataError(
            f"--as-published: expected none beside --protocol official, which takes every step as published, found "
            f"{', '.join(sorted(names))}. Leave it out, or use --protocol fixed."
        )
    return frozenset(known) if protocol == "official" else names
