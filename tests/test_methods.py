"""Methods are records that hold what they say: terms that exist, rows that are read and can be made, and their options.

What terms compute is `test_losses.py`'s; how methods train, `test_train_loop.py`'s.
"""

# M answer tokens, D hidden

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import viker
from command_line import call, succeed
from loss_cases import Case, D, M, exact_rows, one_hot, random_case, scored
from viker.data.example import DataError
from viker.data.kinds import KINDS, rows_name
from viker.precompute.commands import command as precompute
from viker.precompute.commands import settle
from viker.precompute.row_options import SPLITS
from viker.train import terms
from viker.train.batches import no_rows
from viker.train.choose_method import choose_method, find_method
from viker.train.method import BUILT_IN, Method, Needs, Reads, Term
from viker.train.methods import METHODS
from viker.train.rows import TeacherRows, cut_rows

if TYPE_CHECKING:
    from torch import Tensor
    from viker.train.scored import Scored

NAMES = [
    "recommended", "viker", "ga", "gd", "kl-min", "npo", "simnpo", "idkpo", "po", "wga", "satimp", "undial", "rmu",
    "vgid", "pubg", "mmunlearner",
]  # fmt: skip
SETTINGS = {"beta": 0.5, "beta1": 2.0, "beta2": 0.5, "delta": 0.2, "gamma": 3.0, "coefficient": 2.0}
LENGTHS = (3, 4)
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_term = pytest.mark.parametrize(("name", "needs"), BUILT_IN.items(), ids=BUILT_IN)


def rows_read(case: Case, rows: str) -> TeacherRows:
    """The rows of a case as far as they are read; whatever is not is NaN."""
    if rows == "none":
        return no_rows(case.answers_M.tolist())
    return case.rows if rows == "kept" else replace(cut_rows(case.rows, 0), sum_squares_M=torch.full((M,), math.nan))


def given_to(needs: Needs, seed: int = 0) -> Scored:
    """Two examples as a term with these needs sees them, and nothing beside."""
    both = [random_case(place) for place in (seed, seed + 1)]
    own, refused = (scored(case._replace(rows=rows_read(case, needs.rows)), LENGTHS) for case in both)
    states_MD, frozen_MD = torch.randn(2, M, D, generator=torch.Generator().manual_seed(seed)).unbind()
    return replace(
        own, refusal=refused if needs.refusals else None, states_MD=states_MD if needs.layer else None,
        frozen_states_MD=frozen_MD if needs.layer else None,
    )  # fmt: skip


def leaves_of(given: Scored) -> list[Tensor]:
    """What a term may send its gradient to: the student's numbers of every part."""
    parts = (given.student_MC, given.states_MD, None if given.refusal is None else given.refusal.student_MC)
    return [part.requires_grad_() for part in parts if part is not None]


def part_of(given: Scored, example: int) -> Scored:
    """One example of a micro-batch, as a micro-batch."""
    is_its_M = given.example_M == example

    def cut(part: Any) -> Any:
        return part[is_its_M] if isinstance(part, torch.Tensor) else part

    return replace(
        given, student_MC=cut(given.student_MC), states_MD=cut(given.states_MD),
        frozen_states_MD=cut(given.frozen_states_MD),
        rows=TeacherRows(*(cut(getattr(given.rows, part.name)) for part in fields(given.rows))),
        example_M=torch.zeros(int(is_its_M.sum()), dtype=torch.long), num_examples=1,
        refusal=None if given.refusal is None else part_of(given.refusal, example),
    )  # fmt: skip


def needs_of(method: Method, reads: Reads | None) -> Needs:
    """What a method hands to its terms."""
    rows = "none" if reads is None else "kept" if reads.kept else "scalars"
    return Needs(rows, refusals=method.refusals, layer=method.layer)


# ---- Terms ----------------------------------------------------------------------------------------------------------


def test_the_table_of_needs_names_every_term_and_no_other():
    public = {name for name, found in vars(terms).items() if getattr(found, "__module__", "") == terms.__name__}
    assert {name for name in public if not name.startswith("_")} == BUILT_IN.keys()


@each_term
def test_a_term_reads_what_it_says_and_nothing_beside(name, needs):
    given = given_to(needs)
    leaves = leaves_of(given)
    value = getattr(terms, name)(given, {setting: SETTINGS[setting] for setting in needs.settings})
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    assert value.shape == ()
    assert torch.isfinite(value)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    assert any(gradient.abs().max() > 0 for gradient in found)


@each_term
def test_a_term_that_reads_rows_does_not_go_without(name, needs):
    if needs.rows == "none":
        needs = needs._replace(rows="scalars")
        value = getattr(terms, name)(given_to(needs), SETTINGS)
        assert torch.equal(value, getattr(terms, name)(given_to(needs._replace(rows="none")), SETTINGS))
    elif name == "follow_kept_cosine":
        with pytest.raises(DataError, match="expected rows with kept tokens, found scalars only"):
            terms.follow_kept_cosine(given_to(needs._replace(rows="scalars")), {})
    else:
        assert torch.isnan(getattr(terms, name)(given_to(needs._replace(rows="none")), SETTINGS))


@each_term
def test_a_term_of_a_micro_batch_is_the_sum_of_its_examples(name, needs):
    given, term = given_to(needs), getattr(terms, name)
    whole = term(given, SETTINGS)
    torch.testing.assert_close(whole, term(part_of(given, 0), SETTINGS) + term(part_of(given, 1), SETTINGS))


# ---- The table ------------------------------------------------------------------------------------------------------


def test_methods_are_listed_from_ours_to_the_fields():
    assert list(METHODS) == NAMES
    assert [method.name for method in METHODS.values()] == NAMES


@each_method
def test_a_method_says_what_it_is_and_where_it_is_from(method):
    assert method.summary
    assert method.summary[0].islower()
    assert method.fidelity in ("official", "paper", "ours")
    assert (method.paper == "-") == (method.name == "recommended")
    assert method.paper == "-" or re.fullmatch(r"arXiv \d{4}\.\d{5}", method.paper)
    assert method.differences or method.fidelity == "ours"
    assert method.source_digest is None


@each_method
def test_a_method_has_what_its_terms_need(method):
    assert method.forget
    for term in method.all_terms:
        needs = BUILT_IN[term.of]
        assert set(needs.settings) <= method.settings.keys()
        assert method.refusals or not needs.refusals
        assert method.layer or not needs.layer
        assert not isinstance(term.weight, str) or term.weight in method.settings
        reads = method.retain_reads if term == method.retain else method.reads
        assert reads is not None or needs.rows == "none"
        assert reads is None or reads.kept or needs.rows != "kept"
    assert not method.layer or "depth" in method.settings
    assert not method.masked or "threshold" in method.settings
    assert "retain" in method.settings


@each_method
def test_every_setting_is_a_weight_or_read(method):
    read = {setting for term in method.all_terms for setting in BUILT_IN[term.of].settings}
    weights = {term.weight for term in method.all_terms if isinstance(term.weight, str)}
    of_loop = {name for name, is_read in (("depth", method.layer), ("threshold", method.masked)) if is_read}
    assert method.settings.keys() == read | weights | of_loop | {"retain"}


@each_method
@pytest.mark.parametrize("retain", [None, 1.0])
def test_every_loss_is_finite_on_the_rows_it_reads_alone(method, retain):
    chosen = choose_method(method.name, retain=retain)
    phases = [(chosen.forget, chosen.reads)]
    if chosen.needs_retain:
        phases.append(((chosen.retain,), chosen.retain_reads))
    for of_phase, reads in phases:
        given = given_to(needs_of(chosen, reads))
        leaves = leaves_of(given)
        loss = sum(chosen.weight(term) * getattr(terms, term.of)(given, chosen.settings) for term in of_phase)
        gradients = [part for part in torch.autograd.grad(loss, leaves, allow_unused=True) if part is not None]
        assert torch.isfinite(loss)
        assert all(torch.isfinite(part).all() for part in gradients)
        assert any(part.abs().max() > 0 for part in gradients)


def test_the_loss_of_viker_is_the_papers():
    case, method = random_case(), METHODS["viker"]
    given = scored(case, LENGTHS)
    loss = sum(method.weight(term) * getattr(terms, term.of)(given, method.settings) for term in method.forget)
    expected = 0.0
    for row, answer in enumerate(case.answers_M.tolist()):
        named = case.named(row)
        expected += math.log(float(case.student_MV[row, answer]))
        sides = [[float(p_V[token]) for token in named] for p_V in (case.teacher_MV[row], case.student_MV[row])]
        pairs = [*zip(*sides, strict=True), tuple(1 - math.fsum(side) for side in sides)]
        expected += 0.5 * math.fsum(r * math.log(r / q) for r, q in pairs)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_with_an_entropy_lambda_of_one_a_normal_token_feels_nothing():
    case = random_case()
    certain = case._replace(rows=exact_rows(one_hot(case.answers_M), case.answers_M, 4))
    method = choose_method("viker", lambda_=1.0, token_lambda="entropy")

    def loss(logits_MV: Tensor) -> Tensor:
        given = scored(certain._replace(logits_MV=logits_MV), LENGTHS)
        return sum(method.weight(term) * getattr(terms, term.of)(given, method.settings) for term in method.forget)

    leaf_MV = case.logits_MV.clone().requires_grad_()
    (found_MV,) = torch.autograd.grad(loss(leaf_MV), leaf_MV)
    assert found_MV.abs().max() < 1e-12


@each_method
def test_the_rows_a_method_reads_can_be_made(method):
    chosen = choose_method(method.name, retain=1.0)
    made = []
    for words in chosen.precomputes:
        asked = precompute.make_context("precompute", [*words, "--data", "mini", "--model", "m", "--pool", "p"]).params
        settle(asked, "precompute")
        assert asked["teacher"] in KINDS
        assert asked["split"] in SPLITS
        made.append(rows_name(*(asked[name] for name in ("teacher", "split", "answers", "top_k"))))
        if asked["answers"] == "own" and asked["split"] == "forget":
            assert asked["top_k"] == (64 if chosen.reads.kept else 0)
    assert tuple(made) == chosen.stored_rows


def test_methods_read_the_rows_they_are_known_for():
    assert {name: method.stored_rows for name, method in METHODS.items()} == {
        "recommended": ("reference-forget", "self-retain-seen"),
        "viker": ("reference-forget",),
        "ga": (), "gd": (), "po": (), "wga": (), "satimp": (), "simnpo": (), "rmu": (), "mmunlearner": (),
        "kl-min": ("self-retain-seen",),
        "npo": ("self-forget-scalars",),
        "idkpo": ("self-forget-scalars", "self-forget-refusal-scalars"),
        "undial": ("self-forget",),
        "vgid": ("noise-forget", "self-retain-seen"),
        "pubg": ("prompt-forget",),
    }  # fmt: skip


@each_method
def test_a_method_can_be_told_as_json(method):
    told = json.loads(json.dumps(method.describe(), allow_nan=False))
    assert told.keys() == {part.name for part in fields(Method)}
    assert told["settings"] == dict(method.settings)
    assert [term["name"] for term in told["forget"]] == [term.name for term in method.forget]


# ---- Choosing -------------------------------------------------------------------------------------------------------


@each_method
def test_a_method_without_options_is_that_of_the_table(method):
    assert choose_method(method.name) == method


def functions(method: Method) -> list[str]:
    return [term.of for term in method.forget]


def test_numbers_of_the_user_replace_those_of_the_method():
    chosen = choose_method("viker", lambda_=0.2, retain=3.0)
    assert chosen.settings == {"lambda": 0.2, "retain": 3.0}
    assert chosen.needs_retain
    assert choose_method("npo", settings={"beta": 0.4}).settings["beta"] == 0.4
    assert choose_method("viker", settings={"lambda": 0.3}).settings["lambda"] == 0.3


def test_lambda_reaches_methods_that_have_one():
    assert choose_method("ga", lambda_=0.2) == METHODS["ga"]
    assert choose_method("pubg", lambda_=0.2).settings["lambda"] == 0.2


def test_a_weight_of_zero_leaves_the_term_and_its_rows_out():
    chosen = choose_method("viker", lambda_=0.0)
    assert functions(chosen) == ["climb"]
    assert chosen.reads is None
    assert not choose_method("gd", retain=0.0).needs_retain
    assert choose_method("recommended", retain=0.0).stored_rows == ("reference-forget",)


@pytest.mark.parametrize(
    ("name", "options", "left", "reads"),
    [
        ("viker", {"ascent": "none"}, ["follow"], Reads("reference")),
        ("viker", {"ascent": "adaptive"}, ["climb_adaptively", "follow"], Reads("reference")),
        ("viker", {"regularizer": "none"}, ["climb"], None),
        ("viker", {"regularizer": "jsd"}, ["climb", "follow_jensen_shannon"], Reads("reference")),
        ("viker", {"regularizer": "cosine"}, ["climb", "follow_kept_cosine"], Reads("reference")),
        ("viker", {"token_lambda": "entropy"}, ["climb", "follow_by_entropy"], Reads("reference")),
        ("viker", {"teacher": "self"}, ["climb", "follow"], Reads("self")),
        ("recommended", {"ascent": "uniform"}, ["climb", "follow"], Reads("reference")),
        ("recommended", {"regularizer": "none"}, ["climb_adaptively"], Reads("reference", kept=False)),
        ("recommended", {"teacher": "noise"}, ["climb_adaptively", "follow"], Reads("noise")),
        ("ga", {"ascent": "adaptive"}, ["climb_adaptively"], Reads("reference", kept=False)),
        ("ga", {"ascent": "adaptive", "teacher": "text"}, ["climb_adaptively"], Reads("text", kept=False)),
        ("recommended", {"ascent": "none", "regularizer": "none"}, [], None),  # a retain term is left
        ("npo", {"ascent": "none", "regularizer": "none"}, ["prefer_anything"], Reads("self", kept=False)),
        ("vgid", {"regularizer": "jsd"}, ["follow"], Reads("noise")),  # its weight is no lambda
    ],
)
def test_terms_can_be_replaced_or_left_out(name, options, left, reads):
    chosen = choose_method(name, **options)
    assert functions(chosen) == left
    assert chosen.reads == reads


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "--method: expected one of recommended, viker, .*, or FILE.py:NAME, found 'magic'"),
        ("npo", {"settings": {"bta": 1.0}}, r"--hp bta: expected a setting of npo \(beta, retain\), found none"),
        ("viker", {"ascent": "none", "regularizer": "none"}, "--method viker with what was left out: expected"),
        ("ga", {"ascent": "none"}, "expected at least one term in the loss, found none. Keep the ascent"),
        ("viker", {"regularizer": "jsd", "token_lambda": "entropy"}, "--regularizer jsd: expected --token-lambda"),
        ("viker", {"regularizer": "none", "token_lambda": "entropy"}, "--regularizer none: expected --token-lambda"),
        ("viker", {"lambda_": -0.5}, "--lambda -0.5: expected a weight of at least 0 for viker"),
        ("ga", {"retain": -1.0}, "--retain -1: expected a weight of at least 0 for ga"),
        ("vgid", {"settings": {"alpha": -1.0}}, "--hp alpha -1: expected a weight of at least 0 for vgid"),
        ("viker", {"lambda_": math.nan}, "--lambda nan: expected a finite number for viker"),
        ("satimp", {"settings": {"beta1": math.inf}}, "--hp beta1 inf: expected a finite number for satimp"),
        ("npo", {"settings": {"beta": 0.0}}, "--hp beta 0: expected a number above 0 for npo"),
        ("simnpo", {"settings": {"beta": -1.0}}, "--hp beta -1: expected a number above 0 for simnpo"),
        ("idkpo", {"settings": {"beta": 0.0}}, "--hp beta 0: expected a number above 0 for idkpo"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(DataError, match=message):
        choose_method(name, **options)


def test_a_beta_of_zero_is_gradient_ascent_where_nothing_divides_by_it():
    assert choose_method("wga", settings={"beta": 0.0}).settings["beta"] == 0


# ---- A method of the user's own -------------------------------------------------------------------------------------

OWN = """
from __future__ import annotations

from dataclasses import dataclass

from viker.train.method import Method, Reads, Term

@dataclass
class Halves:
    by: float

def half(scored, settings):
    return scored.answer_logprob_M.sum() * settings["share"]

push = Method(
    name="half", summary="half the ascent", paper="-", fidelity="ours",
    forget=(Term("ascent", half), Term("kl", "follow", "lambda")), reads=Reads("noise"),
    settings={"share": 0.5, "lambda": 1.0},
)
rowless = Method(
    name="rowless", summary="none", paper="-", fidelity="ours", forget=(Term("ascent", half),), settings={"share": 0.5},
)
number = 3
"""
RECORD = """
from functools import partial
from viker.train.method import Method, Reads, Term

plain = {{"name": "own", "summary": "own", "paper": "-", "fidelity": "ours", "settings": {{}}}}
found = Method(**(plain | {{"forget": (Term("ascent", "climb"),)}} | {changed}))
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_a_users_own_method_is_one(own_file):
    chosen = choose_method(f"{own_file}:push", lambda_=2.0, settings={"share": 0.25})
    assert chosen.settings == {"share": 0.25, "lambda": 2.0}
    assert chosen.reads == Reads("noise")
    given = scored(random_case(), LENGTHS)
    assert float(chosen.forget[0].of(given, chosen.settings)) == pytest.approx(0.25 * float(terms.climb(given, {})))
    assert json.loads(json.dumps(chosen.describe()))["forget"][0] == {"name": "ascent", "of": "half", "weight": 1.0}


def test_the_example_of_the_page_is_one(tmp_path):
    page = (Path(viker.__file__).parent / "docs" / "methods.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    chosen = choose_method(f"{tmp_path / 'mine.py'}:mine")
    case = random_case()
    is_key_M = torch.special.entr(case.teacher_MV).sum(1) > chosen.settings["epsilon"]
    found = chosen.forget[0].of(scored(case, LENGTHS), chosen.settings)
    assert chosen.reads == Reads("reference", kept=False)
    assert float(found) == pytest.approx(float(case.student_MC[is_key_M, -2].sum()), rel=1e-6)


def test_rows_of_ones_own_method_are_those_it_declares(own_file):
    assert choose_method(f"{own_file}:rowless").reads is None
    assert choose_method(f"{own_file}:push", lambda_=0.0).reads == Reads("noise")
    assert choose_method(f"{own_file}:push", teacher="self").reads == Reads("self")


def test_the_digest_of_ones_own_method_is_that_of_its_file(own_file):
    first = find_method(f"{own_file}:push").source_digest
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert find_method(f"{own_file}:rowless").source_digest == first
    own_file.write_text(OWN.replace("answer_logprob_M.sum()", "answer_logprob_M.mean()"))
    changed = find_method(f"{own_file}:push")
    assert changed.source_digest != first
    given = scored(random_case(), LENGTHS)
    assert float(changed.forget[0].of(given, {"share": 7.0})) == pytest.approx(float(terms.climb(given, {})))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/none.py:push", "none.py:push: expected a Python file, found none. Check the path"),
        ("{folder}/mine.py:number", "expected `number` to be a viker.train.method.Method, found int"),
        ("{folder}/mine.py:nothing", "expected `nothing` to be a viker.train.method.Method, found NoneType"),
        ("{folder}/mine.py", "--method: expected one of .* FILE.py:NAME, found '.*mine.py'"),
    ],
)
def test_a_method_that_is_not_there_is_refused(own_file, name, message):
    with pytest.raises(DataError, match=message):
        choose_method(name.format(folder=own_file.parent))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ('{"forget": ()}', "expected at least one term in the loss, found none"),
        ('{"forget": (), "retain": Term("r", "learn", "retain"), "settings": {"retain": 0}}', "at least one term"),
        ('{"name": "../up"}', "name: expected letters, digits, dots and dashes, found '../up'"),
        ('{"forget": (Term("a", "clim"),)}', "term a: expected one of climb, .*, or a function, found 'clim'"),
        ('{"forget": (Term("a", partial(max)),)}', "term a: expected a function, found functools.partial"),
        ('{"forget": (Term("a", "climb", "alpha"),)}', "term a: expected its weight 'alpha' among the settings"),
        ('{"forget": (Term("a", "prefer_anything"),)}', "term a: prefer_anything reads the setting 'beta', found none"),
        ('{"forget": (Term("a", "learn_refusals"),)}', "learn_refusals reads refusals: expected refusals=True"),
        ('{"retain": Term("r", "keep_states"), "settings": {"retain": 1}}', "keep_states reads a decoder layer"),
        ('{"retain": Term("r", "learn")}', "settings: expected `retain`, the weight of its retain term, found none"),
        ('{"retain": Term("r", "follow"), "settings": {"retain": 1}}', 'follow reads rows: expected retain_reads'),
        ('{"layer": True}', "layer: expected the setting 'depth', found none"),
        ('{"masked": True}', "masked: expected the setting 'threshold', found none"),
        ('{"settings": {"share": "half"}}', "settings: expected a number as 'share', found 'half'"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_train_is_refused(tmp_path, changed, message):
    path = tmp_path / "mine.py"
    path.write_text(RECORD.format(changed=changed))
    with pytest.raises(DataError, match=message):
        choose_method(f"{path}:found")


def test_all_that_is_wrong_with_a_record_is_said_at_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECORD.format(changed='{"name": "", "layer": True, "masked": True}'))
    with pytest.raises(DataError) as refused:
        choose_method(f"{path}:found")
    assert [line.split(": ")[1] for line in str(refused.value).splitlines()] == ["name", "layer", "masked"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\nfrom viker.train import nothing\n", "found ImportError at line 2: cannot import name 'nothing'"),
        ("x = 1\n\ny = 1 / 0\n", "found ZeroDivisionError at line 3: division by zero. Mend it"),
        ("x = 1\n\n\ndef :\n", "found SyntaxError at line 4: invalid syntax"),
    ],
)
def test_a_file_that_does_not_run_is_refused_with_its_line(tmp_path, code, message):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(DataError, match=message):
        choose_method(f"{path}:found")


# ---- The command line -----------------------------------------------------------------------------------------------


def test_methods_are_listed_as_text():
    listed = succeed("train", "--list-methods").out
    assert [line.split(":")[0] for line in listed.splitlines() if not line.startswith(" ")] == NAMES
    assert "settings: lambda 0.5, retain 0" in listed
    assert "rows: --teacher self --split forget --top-k 0, --teacher self --split forget --answers refusal" in listed


def test_methods_are_listed_as_json():
    listed = json.loads(succeed("train", "--list-methods", "--json").out)
    assert re.fullmatch(r"viker/methods/\d+", listed["schema"])
    assert [method["name"] for method in listed["methods"]] == NAMES
    assert listed["methods"] == [json.loads(json.dumps(METHODS[name].describe())) for name in NAMES]


def refused(*options: object, **more: Any) -> str:
    outcome = call("train", "--data", "nowhere", "--model", "nowhere", "--run", "nowhere", "--dry-run", *options)
    assert outcome.code == more.get("code", 1)
    return outcome.message


def test_a_wrong_method_is_said_before_anything_is_loaded(own_file):
    assert "--method: expected one of recommended, viker" in refused("--method", "magic")
    assert "expected a Python file, found none" in refused("--method", f"{own_file.parent}/none.py:push")
    assert "--hp bta: expected a setting of npo (beta, retain)" in refused("--method", "npo", "--hp", "bta=1")
    assert "--hp beta 0: expected a number above 0 for npo" in refused("--method", "npo", "--hp", "beta=0")
    assert "--retain -1: expected a weight of at least 0" in refused("--method", "gd", "--retain", "-1")
    assert "expected NAME=NUMBER, found 'beta'" in refused("--method", "npo", "--hp", "beta", code=2)


def test_a_term_may_be_a_function():
    method = replace(METHODS["ga"], forget=(Term("ascent", terms.climb),))
    assert method.describe()["forget"] == [{"name": "ascent", "of": "climb", "weight": 1.0}]
