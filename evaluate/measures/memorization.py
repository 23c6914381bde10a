"""How much of what was expected is still in the model, read off the log-probabilities kept of its tokens.

An answer counts as known to a degree here, where fact recall and ROUGE need it said: a model that no longer says a
sentence may still give it half its probability, or finish it after two words. All three measures are shares in [0, 1];
a question of which nothing is kept has None and is left out of means, never counted as zero.
Tokens are those that training saw: the end token is among them where the rendering scores it. Membership reads the
same tokens in `membership.py`; means and intervals are `comparisons.py`'s.
"""

import math

from ..answers import Answer, token_logprob


def answer_probability(answer: Answer) -> float | None:
    """Return p(a|q)^(1/|a|) of what was expected: the geometric mean of its tokens' probabilities.

    Source: TOFU's "probability" (arXiv 2401.06121, section 2.2.2).
    """
    mean = token_logprob(answer)
    if mean is None and answer.answer_tokens:
        mean = math.fsum(token[0] for token in answer.answer_tokens) / len(answer.answer_tokens)
    return None if mean is None else math.exp(mean)


def extraction_strength(answer: Answer) -> float | None:
    """Return ES = 1 - k/L: k tokens of the answer must be given before greedy decoding writes the other L - k.

    k is read off one teacher-forced pass: the shortest prefix after which every label is the likeliest token. That is
    greedy decoding, by induction: behind the first k labels it writes the likeliest token, which is label k + 1, so its
    context is again the labels', and so on; conversely, if it writes the labels, each was the likeliest in just that
    context. Source: reference/methods.md, section 5 (5). OpenUnlearning's loop gives 1/L to an answer whose last token
    is missed, for it stops one short of L; here that is 0, as the formula says. (A run of likeliest tokens at the end
    of a common sentence counts: a model that never met anybody is above 0, so look at retain-only beside it.)
    """
    if not answer.answer_tokens:
        return None
    length = len(answer.answer_tokens)
    misses = [place for place, (*_, is_likeliest) in enumerate(answer.answer_tokens, start=1) if not is_likeliest]
    return 1 - (misses[-1] if misses else 0) / length


def exact_memorization(answer: Answer) -> float | None:
    """Return the share of teacher-forced places whose likeliest token is the label (reference/methods.md, 5 (5))."""
    if not answer.answer_tokens:
        return None
    return sum(is_likeliest for *_, is_likeliest in answer.answer_tokens) / len(answer.answer_tokens)
