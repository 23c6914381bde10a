"""The shape of the code: which folder may import which, what stays free of torch, and how long things may be.

The arrows are those of section 2 of the design. Every import counts, inside functions and under `TYPE_CHECKING` too.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import viker

ROOT = Path(viker.__file__).parent
STAGES = ("data", "models", "precompute", "train", "evaluate")
ACROSS = ("purge", "bench", "plan", "sweep")  # folders that, like root modules, may import every stage

# What a folder may import of the package, as prefixes of module paths; root modules may import everything.
ARROWS: dict[str, tuple[str, ...]] = {
    "data": ("data",),
    "models": ("models", "data"),
    "precompute": ("precompute", "models", "data"),
    "train": ("train", "models", "data", "precompute.cache", "precompute.topk"),
    "evaluate": ("evaluate", "models", "data", "precompute.cache", "train.finetune"),
}
HEAVY = {"torch", "transformers", "tokenizers", "peft", "accelerate", "vllm", "safetensors", "torchvision"}
SEAM = "precompute.cache"
MAX_LINES, MAX_FUNCTION_LINES = 350, 80
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "tools"}


class Import(NamedTuple):
    """One import: where it stands, and the module it names (`data.example` inside the package, else as written)."""

    place: str
    module: str
    is_ours: bool


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


@functools.cache
def sources(root: Path = ROOT) -> tuple[Path, ...]:
    """The package's own files: root modules and folders."""
    folders = (*STAGES, *ACROSS)
    return tuple(sorted([*root.glob("*.py"), *(path for folder in folders for path in (root / folder).rglob("*.py"))]))


def imports_of(path: Path, root: Path = ROOT) -> list[Import]:
    folder = list(path.relative_to(root).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            found += [named(place, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [named(place, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] + (node.module or "").split(".") * bool(node.module)
            found += [Import(place, ".".join([*base, alias.name]), True) for alias in node.names]
        elif is_dynamic_import(node):
            found += [named(place, node.args[0].value)]
    return found


def named(place: str, module: str) -> Import:
    """An absolute import; one of ours may be written with the package's name, or as a bare folder."""
    parts = module.split(".")
    beside = parts[0] in STAGES and len(parts) > 1 and bool([*(ROOT / parts[0]).glob(f"{parts[1]}*")])
    ours = parts[0] == "viker" or beside
    return Import(place, ".".join(parts[1:]) if parts[0] == "viker" else module, ours)


def is_dynamic_import(node: ast.AST) -> bool:
    """Whether a call is `import_module("...")` or `__import__("...")` with a literal name."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def strays(path: Path, root: Path = ROOT) -> list[str]:
    """One line for each import of a stage file that no arrow allows."""
    folder = path.relative_to(root).parts[0]
    if folder not in ARROWS:
        return []
    allowed = ARROWS[folder]
    return [
        f"{found.place} imports {found.module}; {folder}/ may import {', '.join(allowed)}"
        for found in imports_of(path, root)
        if found.is_ours and not any(f"{found.module}.".startswith(f"{prefix}.") for prefix in allowed)
    ]


def reached_from(module: str) -> set[str]:
    """The modules of the package that importing one of them loads (itself and the package included)."""
    known = {module_name(path): path for path in sources()}
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in known and name not in reached:
            reached.add(name)
            for found in imports_of(known[name]):
                waiting += [found.module, found.module.rpartition(".")[0]] * found.is_ours
    return reached


def heavy_imports(modules: set[str]) -> list[str]:
    known = {module_name(path): path for path in sources()}
    found = [found for name in sorted(modules) for found in imports_of(known[name]) if not found.is_ours]
    return [f"{one.place} imports {one.module}" for one in found if one.module.split(".")[0] in HEAVY]


def plant(root: Path, name: str, code: str) -> list[str]:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return strays(path, root)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_follow_the_arrows(path):
    assert strays(path) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("data/a.py", "from ..models.encode import Encoder\n"),
        ("data/a.py", "def f():\n    from viker.models import encode\n"),
        ("models/a.py", "from ..precompute import cache\n"),
        ("models/a.py", "import viker.train.losses\n"),
        (
            "precompute/a.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from ..train.loop import unlearn\n",
        ),
        ("precompute/engines/a.py", "from ...train.losses import bucket\n"),
        ("train/a.py", "from ..precompute.run import make_request\n"),
        ("train/a.py", "from ..precompute import store\n"),
        ("train/a.py", "from ..evaluate.score import score\n"),
        ("train/a.py", "from evaluate.score import score\n"),
        ("evaluate/a.py", "from ..train.loop import unlearn\n"),
        ("evaluate/a.py", "from .. import cli\n"),
        ("evaluate/a.py", "from importlib import import_module\nimport_module('viker.train.loop')\n"),
    ],
)
def test_a_planted_stray_is_found(tmp_path, name, code):
    found = plant(tmp_path, name, code)
    assert len(found) == 1
    folder = name.split("/")[0]
    assert found[0].startswith(f"{name}:")
    assert f"{folder}/ may import {', '.join(ARROWS[folder])}" in found[0]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("data/a.py", "from .example import Example\nimport datasets\n"),
        (
            "precompute/engines/a.py",
            "from ...models.encode import Encoder\nfrom ..cache import Rows\n",
        ),
        ("train/a.py", "from ..precompute.cache import Rows\nfrom ..precompute.topk import rows_from_probabilities\n"),
        (
            "evaluate/a.py",
            "from ..train.finetune import finetune\nimport evaluate\n",
        ),
        ("cli.py", "from .train.loop import unlearn\n"),
    ],
)
def test_an_import_along_an_arrow_is_no_stray(tmp_path, name, code):
    assert plant(tmp_path, name, code) == []


def test_data_imports_no_torch():
    assert heavy_imports({module_name(path) for path in sources() if path.parent == ROOT / "data"}) == []


def test_the_seam_imports_neither_torch_nor_transformers():
    reached = reached_from(SEAM)
    assert {"precompute.cache", "precompute.reading.layout", "precompute.reading.rows", "data.example"} <= reached
    assert heavy_imports(reached) == []


def test_stage_folders_are_no_packages():
    assert [path for stage in STAGES for path in (ROOT / stage).rglob("__init__.py")] == []


def test_no_file_has_a_name_that_says_nothing():
    assert [path for path in sources() if path.stem in VAGUE_NAMES] == []


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_files_and_functions_fit_in_a_head(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


def test_public_names_can_be_imported():
    assert all(getattr(viker, name) is not None for name in viker.__all__)
    with pytest.raises(AttributeError, match="load_model"):
        viker.nothing  # noqa: B018


def heavy_modules_after(code: str) -> str:
    """The heavy libraries that a fresh interpreter has loaded after running some code."""
    show = f"print('loaded:', sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_importing_the_command_line_loads_no_torch():
    assert heavy_modules_after("import viker, viker.cli") == "loaded: []"


def test_help_loads_no_torch():
    code = "import viker.cli\nviker.cli.viker.main(['--help'], standalone_mode=False)"
    assert heavy_modules_after(code) == "loaded: []"


def test_reading_a_cache_loads_no_torch():
    assert heavy_modules_after("from viker import TeacherCache, open_source, Example") == "loaded: []"


def test_the_folders_of_the_design_are_those_that_exist():
    assert {path.parent.relative_to(ROOT).parts[0] for path in sources() if path.parent != ROOT} == {
        *ARROWS,
        *ACROSS,
    }
