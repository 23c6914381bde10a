"""The comparisons that have a name: a question a part, the grids that answer it, and which worlds decide.

A grid is tried at every learning rate on development worlds, and what wins is reported on unseen ones; a grid that
follows another contender takes its rate instead, where what is varied (a pool, a number of references) is no method of
its own and a rate chosen for each would hide what it does. What needs no training is an analysis (`analyses/`). Grids
of several parts that say the same are trained once. What is said on the command line wins.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ..train.methods import METHODS

Analysis = str  # a name that `analyze.py` knows
DIAGNOSED = "gradient-weights"  # the analysis that reads what `viker train --diagnose` wrote


class Grid(NamedTuple):
    """Methods, and axes of their own by the name of the sweep's option; `rate_of` is whose learning rate they take."""

    methods: tuple[str, ...]
    axes: Mapping[str, str] = {}
    rate_of: str | None = None


class Part(NamedTuple):
    """One question: the grids that answer it, the first one's first method compared with all others.

    `names` are what contenders are called in the literature.
    """

    title: str
    question: str
    grids: tuple[Grid, ...]
    names: Mapping[str, str] = {}


class Study(NamedTuple):
    """Parts, analyses, and the worlds; seeds of worlds are words, as they name directories."""

    parts: tuple[Part, ...]
    dev: str = "1,2"
    worlds: str = "11,12,13,14,15,16"
    learning_rates: str = "1.4e-3,2.8e-3,5.6e-3"
    num_train_epochs: float = 10.0
    analyses: tuple[Analysis, ...] = ()


_VIKER = Grid(("viker",))
_METHODS = Part(
    "Methods",
    "Does regularizing ascent by answers under irrelevant images keep more than ascent, NPO and IdkPO, where all have "
    "forgotten as much?",
    (_VIKER, Grid(("ga", "npo", "idkpo"))),
    {"viker": "ViKeR", "ga": "GA", "npo": "NPO", "idkpo": "IdkPO"},
)
_ABLATIONS = Part(
    "Ablations",
    "What does each part of ViKeR do: the regularizer (Reg), the ascent (GA), the irrelevant images (Vis)?",
    (_VIKER, Grid(("ga",)), Grid(("viker",), {"ascents": "none"}), Grid(("viker",), {"teachers": "self"})),
    {"viker": "ViKeR", "ga": "w/o Reg", "viker ascent=none": "w/o GA", "viker teacher=self": "w/o Vis"},
)
_POOLS = Part(
    "Reference pools",
    "Which images serve best as irrelevant ones: people, the very people to forget or retain, pets, scenes, patterns, "
    "noise?",
    (Grid(("viker",), {"pools": "people,forget,retain,pets,scenes,patterns,noise"}, rate_of="viker"),),
    {f"viker pool={name}": name
     for name in ("people", "forget", "retain", "pets", "scenes", "patterns", "noise")},
)  # fmt: skip
_CHOSEN = Part("ViKeR", "At which rate?", (_VIKER,), {"viker": "ViKeR"})  # what the parts below take their rate from
_KNOBS = (
    Part("References an answer", "How many images need to be averaged (k)?",
         (Grid(("viker",), {"num_references": "1,2,4,8,16"}, rate_of="viker"),)),
    Part("Weight of the regularizer", "What does lambda trade?",
         (Grid(("viker",), {"lambdas": "0.05,0.3,0.5,0.7,0.95"}, rate_of="viker"),)),
    Part("Tokens kept a row", "How many tokens must a row keep (K)?",
         (Grid(("viker",), {"top_ks": "1,2,4,16,64"}, rate_of="viker"),)),
)  # fmt: skip
_DISTANCES = Part(
    "Distances",
    "Does it matter how the student is held to the teacher's rows: forward KL, Jensen-Shannon, cosine?",
    (_VIKER, Grid(("viker",), {"regularizers": "jsd,cosine"})),
    {"viker": "KL", "viker regularizer=jsd": "JSD", "viker regularizer=cosine": "cosine"},
)
_TOKEN_LAMBDA = Part(
    "Lambda a token",
    "Is a lambda better that falls with the entropy of a token's row?",
    (_VIKER, Grid(("viker",), {"token_lambdas": "entropy"})),
    {"viker": "one lambda", "viker token_lambda=entropy": "lambda exp(-H)"},
)
_VGID = Part(
    "VGID",
    "Distillation from a teacher under noise, beside ViKeR and what a retain term adds to it",
    (Grid(("vgid",)), Grid(("viker", "recommended", "kl-min"))),
    {"vgid": "VGID", "viker": "ViKeR", "recommended": "ours", "kl-min": "KL-Min"},
)

STUDIES = {
    "paper-mini": Study((_METHODS, _ABLATIONS, _POOLS),
                        analyses=("thresholds", DIAGNOSED, "reference-ranking")),
    "ablations": Study((_ABLATIONS,)),
    "pools": Study((_CHOSEN, _POOLS), analyses=("reference-ranking",)),
    "thresholds": Study((), dev="", analyses=("thresholds",)),
    "gradient-weights": Study((_CHOSEN,), analyses=(DIAGNOSED,)),
    "knobs": Study((_CHOSEN, *_KNOBS)),
    "distances": Study((_DISTANCES,)),
    "token-lambda": Study((_TOKEN_LAMBDA,)),
    "vgid": Study((_VGID,)),
    "matched": Study((Part("Methods", "", (Grid(("ga", "viker", "recommended")),)),),
                     worlds="11,12,13", learning_rates="7e-4,1e-3,2e-3,3e-3"),
    "methods": Study((Part("Methods", "", (Grid(tuple(METHODS)),)),), worlds="11,12,13"),
}  # fmt: skip
