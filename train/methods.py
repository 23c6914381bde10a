"""Every method that `viker train` knows, from the field's baselines to ours.

Formulas are in `losses.py`; defaults are those of official code where it has them (open-unlearning d3d7cf9 unless a
record says another). All methods mask everything but answer tokens, draw the same batches, and divide sums over answer
tokens by the number of examples; where official code does otherwise, the record says so.
"""

from .method import Method, Reads, Term

_CLIMB = Term("ascent", "climb")
_SELF_KL = Term("retain", "follow", "retain")
_NLL = Term("retain", "learn", "retain")
_SELF, _SELF_SCALARS = Reads("self"), Reads("self", kept=False)
_SUMS = "official code averages over all tokens of a batch, here answer tokens are summed and divided by examples"

_OURS = (
    Method(
        name="recommended", paper="-", fidelity="ours",
        summary="ascent weighted by 1 - R(y), and a retain term from cached rows of the vanilla model",
        forget=(Term("ascent", "climb_adaptively"), Term("kl", "follow", "lambda")), reads=Reads("reference"),
        retain=_SELF_KL, retain_reads=_SELF, settings={"lambda": 1.0, "retain": 4.0},
    ),
    Method(
        name="viker", paper="arXiv 2601.22020", fidelity="paper",
        summary="gradient ascent regularized towards answers under irrelevant images",
        forget=(_CLIMB, Term("kl", "follow", "lambda")), reads=Reads("reference"),
        retain=_SELF_KL, retain_reads=_SELF, settings={"lambda": 0.5, "retain": 0.0},
        differences="no code is published; both terms are sums over answer tokens, which the paper's reweighting needs",
    ),
)  # fmt: skip

_GRADIENTS = (
    Method(
        name="ga", paper="arXiv 2310.10683", fidelity="paper", summary="gradient ascent on the answers",
        forget=(_CLIMB,), retain=_SELF_KL, retain_reads=_SELF, settings={"retain": 0.0},
        differences="MLLMU-Bench's code masks only padding, so it unlearns questions too",
    ),
    Method(
        name="gd", paper="arXiv 2203.12817", fidelity="paper",
        summary="gradient ascent on forget answers, descent on retain answers",
        forget=(_CLIMB,), retain=_NLL, settings={"retain": 1.0},
        differences="MLLMU-Bench runs a whole forget epoch, then a whole retain epoch; here every step has both",
    ),
    Method(
        name="kl-min", paper="arXiv 2401.06121", fidelity="paper",
        summary="gradient ascent, and KL to the vanilla model on retain answers (mean over tokens)",
        forget=(_CLIMB,), retain=Term("retain", "follow_on_average", "retain"), retain_reads=_SELF,
        settings={"retain": 1.0},
        differences="official codes hold a second model and average over padding; MLLMU-Bench adds cross-entropy",
    ),
    Method(
        name="wga", paper="arXiv 2502.19301", fidelity="official", summary="ascent weighted by p^beta",
        forget=(Term("ascent", "climb_confident"),), retain=_NLL, settings={"beta": 1.0, "retain": 0.0},
        differences=f"{_SUMS}; open-unlearning adds a retain term of 1 (--retain 1)",
    ),
    Method(
        name="satimp", paper="arXiv 2505.11953", fidelity="official",
        summary="ascent weighted by p^beta1 (1 - p)^beta2",
        forget=(Term("ascent", "climb_saturated"),), retain=_NLL,
        settings={"beta1": 5.0, "beta2": 1.0, "retain": 0.0},
        differences=f"{_SUMS}; open-unlearning weighs the forget term by .1 beside a retain term of 1 (--retain 10 is "
        "their ratio)",
    ),
    Method(
        name="mmunlearner", paper="arXiv 2502.11051", fidelity="ours",
        summary="gradient ascent on salient weights only, descent on retain answers",
        forget=(_CLIMB,), retain=_NLL, masked=True, settings={"threshold": 1.0, "retain": 1.0},
        differences="saliency is taken of the LoRA weights at their start, where A has no gradient yet, so forgetting "
        "moves B alone; official code takes forget and retain steps in turn, catches and drops every exception of the "
        "former, and masks after clipping",
    ),
)  # fmt: skip

_PREFERENCES = (
    Method(
        name="npo", paper="arXiv 2404.05868", fidelity="official",
        summary="negative preference optimization against cached log p0(y)",
        forget=(Term("npo", "prefer_anything"),), reads=_SELF_SCALARS, retain=_NLL,
        settings={"beta": 0.1, "retain": 0.0},
        differences="the reference is the vanilla model, from cached scalars; MLLMU-Bench's is a retain-tuned model, "
        "its ratio one of batch means, its beta .4; open-unlearning adds a retain term of 1 (--retain 1)",
    ),
    Method(
        name="simnpo", paper="arXiv 2410.07163", fidelity="official",
        summary="negative preference optimization by mean log-probability, without a reference",
        forget=(Term("simnpo", "prefer_anything_simply"),), retain=_NLL,
        settings={"beta": 4.5, "delta": 0.0, "retain": 0.0},
        differences="delta is outside of beta as in the paper, official code has beta times it; open-unlearning weighs "
        "the forget term by .125 beside a retain term of 1 (--retain 8 is their ratio)",
    ),
    Method(
        name="idkpo", paper="arXiv 2401.06121", fidelity="official",
        summary="preference for refusals over the answers, against cached log p0 of both",
        forget=(Term("idkpo", "prefer_refusals"),), reads=_SELF_SCALARS, refusals=True, retain=_NLL,
        settings={"beta": 0.1, "retain": 0.0},
        differences="open-unlearning adds a retain term of 1 (--retain 1); CLEAR's code overwrites this loss by the "
        "refusals' likelihood; refusals are our own list",
    ),
    Method(
        name="po", paper="arXiv 2401.06121", fidelity="paper",
        summary="likelihood of refusals, and of retain answers",
        forget=(Term("refusal", "learn_refusals"),), refusals=True, retain=_NLL, settings={"retain": 1.0},
        differences="refusals are our own list",
    ),
)  # fmt: skip

_TEACHERS = (
    Method(
        name="undial", paper="arXiv 2402.10052", fidelity="paper",
        summary="distillation from the vanilla model with the answer's logit lowered",
        forget=(Term("undial", "follow_lowered"),), reads=_SELF, retain=_NLL, settings={"gamma": 10.0, "retain": 0.0},
        differences="open-unlearning has no label mask (label -100 lowers the logit of id V - 100), calls gamma beta",
    ),
    Method(
        name="rmu", paper="arXiv 2403.03218", fidelity="official",
        summary="forget states of a layer driven to a random direction, retain states kept",
        forget=(Term("rmu", "misdirect"),), retain=Term("retain", "keep_states", "retain"), layer=True,
        settings={"coefficient": 2.0, "depth": 0.4375, "retain": 1.0},
        differences="LoRA weights up to the layer move, in open-unlearning all weights, in the paper's code three MLP "
        "matrices; it averages over answer tokens, at them and not where they are predicted; the frozen states are the "
        "model's with its adapter off, one more forward pass on retain examples; depth is layer 7 of 16",
    ),
    Method(
        name="vgid", paper="arXiv 2606.00105", fidelity="paper",
        summary="distillation from the vanilla model under noise for an image, and from itself on retain answers",
        forget=(Term("kl", "follow", "alpha"),), reads=Reads("noise"), retain=_SELF_KL, retain_reads=_SELF,
        settings={"alpha": 1.0, "retain": 1.0},
        differences="the released code sums KL over every position, padding included, draws new noise each step, "
        "alternates forget and retain steps, and its in-context text is empty",
    ),
    Method(
        name="pubg", paper="arXiv 2506.02541", fidelity="paper",
        summary="gradient ascent regularized towards answers under a privacy instruction",
        forget=(_CLIMB, Term("kl", "follow", "lambda")), reads=Reads("prompt"), retain=_SELF_KL, retain_reads=_SELF,
        settings={"lambda": 1.0, "retain": 0.0},
        differences="coefficients are not published; the instruction is our wording",
    ),
)  # fmt: skip

_ORDER = (
    "recommended", "viker", "ga", "gd", "kl-min", "npo", "simnpo", "idkpo", "po", "wga", "satimp", "undial", "rmu",
    "vgid", "pubg", "mmunlearner",
)  # fmt: skip
_BY_NAME = {method.name: method for method in (*_OURS, *_GRADIENTS, *_PREFERENCES, *_TEACHERS)}
METHODS: dict[str, Method] = {name: _BY_NAME[name] for name in _ORDER}
