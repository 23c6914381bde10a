"""Write the lists of docs/protocols.md that are records in the code: corrections, and what is not switched."""

import re
from pathlib import Path

from viker.evaluate.protocols.corrections import CORRECTIONS, NOT_SWITCHED

PAGE = Path(__file__).with_name("protocols.md")


def render(page: str) -> str:
    """Return the page with both lists as the records have them."""
    rows = [
        f"| `{one.name}` | {one.step} | {one.published} (`{one.where}`) | {one.ours} | {one.why} |"
        for one in CORRECTIONS.values()
    ]
    head = "| correction | step | published | ours | why |\n|---|---|---|---|---|\n"
    kept = [f"- **{title[0].upper()}{title[1:]}.** {text}" for title, text in NOT_SWITCHED]
    return _between(_between(page, "corrections", head + "\n".join(rows)), "not-switched", "\n".join(kept))


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    new, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)
    assert count == 1, f"{PAGE}: expected one {begin} ... {end}, found {count}"
    return new


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")  # noqa: T201
