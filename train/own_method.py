"""A method of a user's own file: run the file, take the record it names, and check it before anything heavy is loaded.

What is checked is what would otherwise end a run late or train something else: names of terms and settings, and that
what the built-in terms read is asked for. The digest of the file names the adapter, so an edited file is another
method. What it computes is the user's; the file may import what it likes.
"""

import hashlib
import importlib.util
import re
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.example import DataError
from .method import BUILT_IN, Method, Term


def own_method(path: Path, attribute: str) -> Method:
    """Return the method that a Python file calls `attribute`, with the file's digest.

    Raises:
        DataError: no such file, one that does not run, or no usable method in it.
    """
    if not path.is_file():
        raise DataError(f"--method {path}:{attribute}: expected a Python file, found none. Check the path.")
    found = getattr(_run(path), attribute, None)
    if not isinstance(found, Method):
        raise DataError(
            f"{path}: expected `{attribute}` to be a viker.train.method.Method, found {type(found).__name__}. "
            "See docs/methods.md for a method of your own."
        )
    if problems := _problems(found):
        raise DataError("\n".join(f"{path}:{attribute}: {problem}" for problem in problems))
    return replace(found, source_digest=hashlib.sha256(path.read_bytes()).hexdigest())


def _run(path: Path) -> Any:
    """Return the file as a module."""
    spec = importlib.util.spec_from_file_location(f"viker_method_{path.stem}", path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise DataError(
            f"{path}: expected a Python file that runs, found {type(error).__name__} at line {line}: {error}. Mend it."
        ) from error
    return module


def _problems(method: Method) -> list[str]:
    """Return what is wrong with a record, a line each."""
    found = []
    if not re.fullmatch(r"[\w.-]+", method.name):
        found.append(f"name: expected letters, digits, dots and dashes, found {method.name!r}. It names a folder.")
    if not method.forget and not method.needs_retain:
        found.append("expected at least one term in the loss, found none.")
    if method.retain is not None and "retain" not in method.settings:
        found.append("settings: expected `retain`, the weight of its retain term, found none.")
    for name, value in method.settings.items():
        if not isinstance(value, int | float):
            found.append(f"settings: expected a number as {name!r}, found {value!r}.")
    for term in method.all_terms:
        if isinstance(term.weight, str) and term.weight not in method.settings:
            found.append(f"term {term.name}: expected its weight {term.weight!r} among the settings, found none.")
        found += _problems_of_term(method, term)
    expected = [("layer", "depth")] * method.layer + [("masked", "threshold")] * method.masked
    return found + [
        f"{what}: expected the setting {name!r}, found none." for what, name in expected if name not in method.settings
    ]


def _problems_of_term(method: Method, term: Term) -> list[str]:
    if not isinstance(term.of, str):
        return [] if hasattr(term.of, "__name__") else [f"term {term.name}: expected a function, found {term.of!r}."]
    if term.of not in BUILT_IN:
        return [f"term {term.name}: expected one of {', '.join(BUILT_IN)}, or a function, found {term.of!r}."]
    needs = BUILT_IN[term.of]
    asks = f"term {term.name}: {term.of} reads"
    found = [f"{asks} the setting {name!r}, found none." for name in needs.settings if name not in method.settings]
    if needs.refusals and not method.refusals:
        found.append(f"{asks} refusals: expected refusals=True.")
    if needs.layer and not method.layer:
        found.append(f"{asks} a decoder layer's states: expected layer=True.")
    if term == method.retain and needs.rows != "none" and method.retain_reads is None:
        found.append(f'{asks} rows: expected retain_reads=Reads("self").')
    return found
