"""What the published evaluations on CLEAR do that we correct, by name; the same shape as `corrections.py` of MLLMU.

Sources: CLEAR `mm/` (somvy/multimodal_unlearning, commit bb14c96; reference/benchmarks.md, section 2.3) and MMUnlearner
`CLEAR_eval.py` (commit fa77c66; section 2.4). Names in a set `as_published` are taken as published: all of them is
`official`, none is `fixed`. Which step reads which name: `clear_metrics.py` (parsing, words), `clear_scores.py` (QA),
`clear_table.py` (the rest). What differs and has no switch stands in `NOT_SWITCHED`.
"""

from .corrections import Correction

_ALL = (
    Correction(
        name="truth-ratio-mean",
        step="metric",
        where="calculate_metrics.py: compute_model_utility, evaluate_forget_quality",
        published="the loss of wrong answers is one mean over all rows and wrong answers (`.mean()` without an axis)",
        ours="each row's truth ratio is over its own wrong answers, as the log of eval.py has it",
        why="a row is judged by other people's wrong answers; the wrong answers drop out of Forget Quality altogether, "
        "for its distance divides each vector by its sum",
    ),
    Correction(
        name="rouge-text-only",
        step="pictures",
        where="eval.py: get_all_evals",
        published="replies are generated from the prompt decoded to text without special tokens: no picture is shown",
        ours="ROUGE is of the reply to the picture; the reply without it is kept apart, as what text alone gives away",
        why="a caption of an unseen picture says nothing about what the model knows of the person in it",
    ),
    Correction(
        name="js-raw-vectors",
        step="metric",
        where="calculate_metrics.py: evaluate_forget_quality",
        published="Jensen-Shannon distance of the two vectors of truth ratios, row by row, as if each were a "
        "distribution over rows",
        ours="of the two histograms between the pooled deciles, which no increasing function of R changes",
        why="it compares which rows stand out, not how truth ratios are distributed: halving all of them changes "
        "nothing, another order of one model's rows changes it",
    ),
    Correction(
        name="js-base",
        step="metric",
        where="calculate_metrics.py: evaluate_forget_quality",
        published="natural logarithm: the distance is at most 0.83, so Forget Quality is at least 0.17",
        ours="base 2: from 0 to 1",
        why="models that share nothing score 0.17",
    ),
    Correction(
        name="first-rows",
        step="questions scored",
        where="config/mm/eval.yaml (ds_size)",
        published="at most the first 300 rows of each file",
        ours="all rows",
        why="rows are in the order of people: those at the end are never scored",
    ),
    Correction(
        name="retain-halves",
        step="questions scored",
        where="config/mm/eval.yaml (retain_perturbed)",
        published="all retain rows, whether or not a retain term trained on their people",
        ours="the held-out half; the half a retain term may train on is shown as `Retain Seen`, in no aggregate",
        why="a retain score on people the loss trained on says little",
    ),
    Correction(
        name="rouge-scripts",
        step="metric",
        where="calculate_metrics.py: eval_rouge_recall (rouge_score's tokenizer)",
        published="characters outside a-z and 0-9 are dropped: a perfect Cyrillic name scores 0",
        ours="letters, digits and marks of every script are kept; an expectation without words is not measured",
        why="names are what is to be forgotten, and many are not ASCII",
    ),
    Correction(
        name="choice-letter",
        step="metric",
        where="CLEAR_eval.py: eval_classification, eval_classification_real",
        published="`accuracy` is of the letter",
        ours="`accuracy` is of the name with the highest log-probability per token; the letter is `accuracy_letter`",
        why="a model that knows the name and not the letter game counts as having forgotten",
    ),
    Correction(
        name="letter-parsing",
        step="parsing",
        where="CLEAR_eval.py: eval_classification, eval_classification_real",
        published="the letter is the first of a-z, A-Z and 0-9 in the reply, whatever word it begins",
        ours="a letter that stands alone at the start of the reply, else the one option whose name is in it",
        why="`Bruno` is read as B, `The answer is C` as T",
    ),
    Correction(
        name="name-case",
        step="parsing",
        where="CLEAR_eval.py: eval_classification, without options",
        published="the name as spelled is looked for in the reply in lower case without spaces: no cased name matches",
        ours="`name_recall`: whole words, in any case, spacing and accents",
        why="the published number is 0 for every model",
    ),
    Correction(
        name="qa-last-reply",
        step="metric",
        where="CLEAR_eval.py: eval_generation",
        published="every text question is scored by the reply to the last captioned picture",
        ours="by its own reply",
        why="the published (QA) numbers say nothing about text questions",
    ),
)
CORRECTIONS: dict[str, Correction] = {correction.name: correction for correction in _ALL}

# What differs from the published code under both protocols, and why there is no switch.
NOT_SWITCHED: tuple[tuple[str, str], ...] = (
    (
        "wording of captions",
        "One of nine wordings is drawn for a row by a hash, and the caption, its paraphrase and the wrong captions "
        "stand behind the same one. The published code draws unseeded, anew for each of them, so that a truth ratio "
        "also compares wordings.",
    ),
    (
        "place of the right name",
        "A hash of seed and row. The published code draws from one random stream (seed 42), so that a row's letters "
        "depend on all rows in front of it.",
    ),
    (
        "text rows among pictures",
        "MMUnlearner's (VQA) loop also walks the text rows, with an image marker and no image; here a text row is "
        "asked once, as text.",
    ),
    (
        "two utilities",
        "calculate_metrics.py's Model Utility is over everything but Forget, and is the one here. build_vllm_table.py "
        "makes another, `Model utility`, which counts the Forget numbers as utility and is not printed in its table.",
    ),
    (
        "direction of the Forget metric",
        "It averages Prob., which falls as a model forgets, with min(R, 1/R), which rises: kept as published, it ranks "
        "nothing. Read its parts.",
    ),
    (
        "missing numbers",
        "A row that lacks a paraphrase or wrong answers is left out of that number and counted in the notes; an "
        "aggregate that lacks a number is not made. The published code fails on such rows.",
    ),
)
