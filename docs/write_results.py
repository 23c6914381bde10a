"""Write what is shown of stored results: the page and figures beside each results file, and the README's table.

Results files in docs/results/ are what `viker sweep` wrote; words around the markers of a page are nobody's but its
author's. The README's table takes its rows from the studies that report them, all on the same unseen worlds.
"""

import json
import re
from pathlib import Path

from viker.sweep.figure import draw_all
from viker.sweep.page import means_table, put_into, render
from viker.sweep.results import SCHEMA, read_result

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
SHOWN_IN_README = {
    "ga": "GA", "npo": "NPO", "idkpo": "IdkPO", "viker": "ViKeR", "vgid": "VGID (retain data)",
    "recommended": "ours (retain data)",
}  # fmt: skip
STUDIES_OF_README = ("paper-mini", "vgid")


def stored() -> list[Path]:
    """Return the results files of sweeps."""
    files = sorted(RESULTS.glob("*.json"))
    return [path for path in files if json.loads(path.read_text(encoding="utf-8")).get("schema") == SCHEMA]


def write_pages(folder: Path) -> None:
    """Write the page and the figures of every results file into a folder."""
    for path in stored():
        result = read_result(path)
        text = render(result, draw_all(folder / path.name, result))
        if not put_into(folder / path.with_suffix(".md").name, text, f"Sweep: {path.stem}"):
            raise SystemExit(f"{path.with_suffix('.md')}: expected sweep markers, found none. Put them where it goes.")


def readme_with_table(readme: str) -> str:
    """Return the README with the table of the stored results between its markers."""
    table = means_table([read_result(RESULTS / f"{name}.json") for name in STUDIES_OF_README], SHOWN_IN_README)
    new, count = re.subn(
        r"(<!-- results:table -->\n).*?(<!-- results:end -->)", lambda found: f"{found[1]}{table}\n{found[2]}", readme,
        flags=re.DOTALL,
    )  # fmt: skip
    assert count == 1, f"README.md: expected one <!-- results:table --> ... <!-- results:end -->, found {count}"
    return new


if __name__ == "__main__":
    write_pages(RESULTS)
    page = ROOT / "README.md"
    page.write_text(readme_with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {RESULTS} and the table of {page}")  # noqa: T201
