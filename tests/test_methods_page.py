"""The page of methods is what the records say, and its example is a method that runs."""

import re
import runpy
from pathlib import Path

import viker
from viker.train.choose_method import choose_method

ROOT = Path(viker.__file__).parent


def test_the_page_is_what_the_records_say():
    page = runpy.run_path(str(ROOT / "docs" / "write_methods.py"))["render"]()
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == page, "docs/methods.md is old: run `make docs`"


def test_the_pages_own_method_is_one(tmp_path):
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "my_file.py").write_text(code, encoding="utf-8")
    method = choose_method(f"{tmp_path / 'my_file.py'}:mine", settings={"epsilon": 0.5})
    assert method.settings == {"epsilon": 0.5}
    assert method.stored_rows == ("reference-forget-scalars",)
