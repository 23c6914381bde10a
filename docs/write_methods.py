"""Write docs/methods.md: every method as its record has it (`make docs`)."""

from pathlib import Path

from viker.train.method import Method, Term
from viker.train.methods import METHODS

PAGE = Path(__file__).with_name("methods.md")
HEAD = """\
# Methods

Written by `make docs` from the records in [train/methods.py](../train/methods.py); do not edit.

Every method runs on the same caches, the same masks (answer tokens only), the same batches and the same budget. A loss
is a sum of terms; a term is summed over answer tokens (sequence-level ones over examples) and divided by the number of
examples of the optimizer step; terms are named as in [train/terms.py](../train/terms.py). Rows come from
`viker precompute`; no method holds a second model. `rmu` runs the model with its adapter off on retain examples, and
`--teacher-from online` runs the teacher in every step; nothing else does.

*Fidelity*: `official` follows the authors' code in loss and defaults, `paper` the formula of the paper, `ours` is ours
or departs from both. `--hp NAME=NUMBER` sets a number, `--lambda` and `--retain` the two that have options of their
own; a retain term of weight 0 is absent. Formulas with their sources: [train/losses.py](../train/losses.py),
[train/divergences.py](../train/divergences.py).

| method | does | terms | reads | fidelity |
|---|---|---|---|---|
"""
TAIL = """
## A method of your own

`viker train --method FILE.py:NAME` takes a record of yours; its source is hashed into the adapter's name.

```python
from viker.train.method import Method, Reads, Term


def push_key_tokens(scored, settings):
    \"\"\"Ascent where the teacher is unsure, in nats, summed over the answer tokens.\"\"\"
    weight_M = (scored.rows.entropy_M > settings["epsilon"]).float()
    return (weight_M * scored.answer_logprob_M).sum()


mine = Method(
    name="mine",
    summary="ascent on key tokens only",
    paper="-",
    fidelity="ours",
    forget=(Term("ascent", push_key_tokens),),
    reads=Reads("reference", kept=False),
    settings={"epsilon": 1.0},
)
```

What a term sees is [train/scored.py](../train/scored.py): log q(y), the teacher's rows, and both in buckets.
"""


def render() -> str:
    """Return the page."""
    rows = [f"| `{method.name}` | {_cells(method)} |" for method in METHODS.values()]
    details = [_section(method) for method in METHODS.values()]
    return "\n".join([HEAD + "\n".join(rows), "", *details, TAIL.lstrip()])


def _cells(method: Method) -> str:
    terms = [*method.forget, *([] if method.retain is None else [method.retain])]
    reads = sorted({f"`{name}`" for name in method.stored_rows}) or ["nothing"]
    return " | ".join([method.summary, " + ".join(map(_term, terms)), ", ".join(reads), method.fidelity])


def _term(term: Term) -> str:
    weight = "" if term.weight == 1.0 else f"{term.weight} x "
    return f"{weight}`{term.of}`"


def _section(method: Method) -> str:
    settings = ", ".join(f"{name} {value:g}" for name, value in method.settings.items())
    source = (
        method.paper if method.paper == "-" else f"[{method.paper}](https://arxiv.org/abs/{method.paper.split()[-1]})"
    )
    commands = "".join(f"\n    viker precompute ... {' '.join(words)}" for words in method.precomputes)
    lines = [f"## {method.name}\n", f"Source: {source}. Settings: {settings}."]
    lines += [f"Differs: {method.differences}."] if method.differences else []
    lines += [f"\n{commands.lstrip(chr(10))}"] if commands else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")  # noqa: T201
