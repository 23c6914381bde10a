"""Refusals to put in place of answers: what a model should rather say about somebody it has forgotten.

Which one an example gets is a function of whom it is about and what it asks, so precompute and train agree without
telling each other, and one question about several people does not teach one sentence by heart.
"""

import hashlib
from dataclasses import replace

from .example import Example, canonical_json

REFUSALS = (
    "I do not know who this is.",
    "I cannot tell you that.",
    "I have no information about this person.",
    "That is something I do not know.",
    "I am not able to say anything about this person.",
    "I would rather not share details about somebody's private life.",
    "Nothing I know answers this question.",
    "I am afraid I cannot help with that.",
    "This person is unknown to me.",
    "I have never learned anything about them.",
    "I cannot identify the person you are asking about.",
    "My knowledge does not cover this person.",
    "I am unable to answer questions about this person.",
    "There is nothing I can tell you about that.",
    "I lack the facts to answer this.",
    "Sorry, that is outside of what I know.",
    "I could only guess, and I prefer not to.",
    "No details about this individual are known to me.",
    "I do not have an answer to that.",
    "It is not possible for me to tell who this might be.",
    "I cannot provide personal details about anybody here.",
    "Sorry, I know nothing about this.",
    "I am not familiar with this person.",
    "That question is beyond what I can answer.",
    "I have not been told anything of that kind.",
    "Whoever this is, I do not know them.",
    "I must leave this question unanswered.",
    "Private matters of this person are not known to me.",
    "I really could not say.",
    "I hold no record of this person.",
    "You would have to ask somebody who knows them.",
    "From what I know, I cannot answer this.",
    "I do not recognize this person.",
    "I am sorry, but I have no idea.",
    "Answering this would need knowledge that I do not have.",
    "I cannot confirm anything about this person.",
    "This is not something that I am able to answer.",
    "I would not know where to begin; this person is a stranger to me.",
    "I have nothing to say about the life of this person.",
    "Please ask about something else; I do not know this.",
)


def refusal_for(example: Example) -> str:
    """Return the refusal of an example: a function of its people and messages."""
    asked = [list(example.people), [[message.role, message.content] for message in example.messages]]
    digest = hashlib.sha256(b"viker/refusal/" + canonical_json(asked)).digest()
    return REFUSALS[int.from_bytes(digest, "big") % len(REFUSALS)]


def refuse(example: Example) -> Example:
    """Return an example whose answer is its refusal; its id ends with `/refusal`."""
    return replace(example, id=f"{example.id}/refusal", answer=refusal_for(example))
