"""A report in every format, whole and redacted: what is printed was measured, and outsiders read nobody's words."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from command_line import call, succeed
from hypothesis import given, settings
from hypothesis import strategies as st
from private_run import ADAPTERS, IDS, NAMES, add_adapter, make_private_run, private_words
from viker.data.artefact import read_json, write_json
from viker.data.notices import NOTICES
from viker.evaluate.report.formats import CSV_FIELDS, FORMATS, POOLED_CSV_FIELDS, as_csv, in_format
from viker.evaluate.report.latex import escaped_latex
from viker.evaluate.report.redaction import BLOCK, redacted
from viker.evaluate.report.redaction_leaves import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXAMPLES = 60
TOKENS = {
    "reason": None, "key_entropy": 1.0, "shown": 2, "of": 2, "models": ["vanilla", "viker-0a1b2c3d"],
    "notes": [f"{NAMES[0]} is left out"], "teacher": {"kind": "reference", "num_references": 8, "top_k": 64,
                                                       "key": "ef" * 32, "root": "01" * 32},
    "examples": [
        {
            "id": f"{person}/town/g", "person": person, "people": [person], "question": f"Where is {NAMES[place]}?",
            "answer": f"In {town}.",
            "tokens": [{"text": town, "entropy": 2.5, "disagreement": 0.5, "teacher": [[town, 0.25], ["Rome", 0.125]],
                        "models": {"vanilla": [[town, 0.75]], "viker-0a1b2c3d": [["krumply", 0.5]]},
                        "answer_prob": {"teacher": 0.25, "vanilla": 0.75, "viker-0a1b2c3d": 0.0}}],
            "words": [{"text": town, "first": 0, "last": 0, "entropy": 2.5, "is_key": True, "is_private": True}],
        }
        for place, (person, town) in enumerate(zip(IDS, ("Zorvale", "Quombrith"), strict=False))
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a report; tests that change it take a copy."""
    run = make_private_run(tmp_path_factory.mktemp("formats"))
    succeed("report", "--run", run)
    return run


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    """Its report, with the key-token view that a run with a cache has."""
    return read_json(run / "report" / "report.json") | {"key_tokens": TOKENS}


@pytest.fixture(scope="module")
def outside(report: dict[str, Any]) -> dict[str, Any]:
    return redacted(report)


def printed(run: Path, *arguments: object) -> str:
    return succeed("report", "--run", run, *arguments).out


def files_of(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


# ---- Formats ---------------------------------------------------------------------------------------------------------


def test_the_report_is_a_record_and_two_pages_and_each_is_printed_as_it_is_kept(run: Path) -> None:
    for form, name in (("json", "report.json"), ("md", "report.md"), ("html", "report.html")):
        assert printed(run, "--format", form).strip() == (run / "report" / name).read_text(encoding="utf-8").strip()
    assert printed(run, "--json") == printed(run, "--format", "json")
    assert "Error" in call("report", "--run", run, "--format", "pdf").err
    assert call("report", "--run", run, "--json", "--format", "md").code == 2


def test_a_complete_report_without_its_html_page_is_made_again(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "report", tmp_path / "kept")
    (run / "report" / "report.html").unlink()
    assert "complete, skipped" not in succeed("report", "--run", run).out
    assert (run / "report" / "report.html").read_bytes() == (tmp_path / "kept" / "report.html").read_bytes()
    assert "complete, skipped" in succeed("report", "--run", run).out


def test_csv_is_every_score_unrounded(run: Path, report: dict[str, Any]) -> None:
    header, *rows = csv.reader(io.StringIO(printed(run, "--format", "csv")))
    assert header == list(CSV_FIELDS)
    assert len(rows) == len(report["scores"])
    for row, record in zip(rows, report["scores"], strict=True):
        assert row[:5] == [record[name] for name in ("model", "split", "task", "modality", "metric")]
        assert (float(row[5]), int(row[6]), int(row[9])) == (record["value"], record["n"], record["seed"])
        assert row[7:9] == ["", ""] if record["ci"] is None else list(map(str, record["ci"]))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r\n="])
def test_a_spreadsheet_reads_no_formula_and_numbers_stay_numbers(report: dict[str, Any], start: str) -> None:
    score = {**report["scores"][0], "model": f"{start}HYPERLINK(1)", "value": -0.5, "ci": [-1.0, -0.25]}
    [_, row] = csv.reader(io.StringIO(as_csv({**report, "scores": [score]})))
    assert row[0] == f"'{start.strip()}HYPERLINK(1)"
    assert (row[5], row[7], row[8]) == ("-0.5", "-1.0", "-0.25")


def latex_tables(text: str) -> list[tuple[str, str, list[list[str]]]]:
    """Return (column specification, caption, rows) of every table, having checked that it is one."""
    tables = []
    for block in re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL):
        assert [block.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
        plain = re.sub(r"\\[{}]", "", block)
        assert plain.count("{") == plain.count("}")
        [columns] = re.findall(r"\\begin\{tabular\}\{(\w+)\}", block)
        [caption] = re.findall(r"\\caption\[.*?\]\{(.*)\}\n", block)
        inside = block.split(r"\toprule")[1].split(r"\bottomrule")[0]
        rows = [re.split(r"(?<!\\)&", line[:-2]) for line in inside.splitlines() if line.endswith(r"\\")]
        assert {len(row) for row in rows} == {len(columns)}
        tables.append((columns, caption, [[cell.strip() for cell in row] for row in rows]))
    assert len(re.findall(r"\\begin\{", text)) == len(re.findall(r"\\end\{", text)) == 2 * len(tables)
    return tables


def markdown_rows(text: str, title: str) -> list[list[str]]:
    section = text.split(f"\n## {title}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[:1] + lines[2:]]


def test_latex_has_the_cells_of_the_page(run: Path) -> None:
    text, page = printed(run, "--format", "latex"), printed(run, "--format", "md")
    tables = latex_tables(text)
    titles = ["Four numbers a method", "Matched forgetting", "Did it really forget?"]
    assert [caption.partition(".")[0].partition("?")[0] for _, caption, _ in tables] == [
        one.strip("?") for one in titles
    ]
    for title, (_, caption, rows) in zip(titles, tables, strict=True):
        expected = [[escaped_latex(cell) for cell in row] for row in markdown_rows(page, title)]
        assert rows[:1] == expected[:1]
        assert rows[1:] == expected[1 : len(rows)]
        assert "Mini, not comparable with published MLLMU numbers" in caption
    assert r"\usepackage{booktabs}" in text


def test_a_caption_says_which_model_is_missing_and_a_table_that_is_not_there_why(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluations" / "retain-only")
    text = printed(tmp_path / "run", "--format", "latex")
    tables = latex_tables(text)
    assert [caption.partition(")")[0] for _, caption, _ in tables] == [
        "Four numbers a method (without retain-only", "Did it really forget? (without retain-only",
    ]  # fmt: skip
    assert re.search(r"^% Matched forgetting \(without retain-only\): no table\. .*no bar", text, re.MULTILINE)


def renamed(report: dict[str, Any], name: str, other: str) -> dict[str, Any]:
    """Return a report in which something has another name wherever it has one."""
    return json.loads(json.dumps(report).replace(json.dumps(name), json.dumps(other)))


def test_latex_reads_nothing_in_a_text(report: dict[str, Any]) -> None:
    assert escaped_latex("50 % of a_b & {x} #1 $2 \\input ~^<|>\n--x") == (
        r"50 \% of a\_b \& \{x\} \#1 \$2 \textbackslash{}input \textasciitilde{}\textasciicircum{}\textless{}"
        r"\textbar{}\textgreater{} -{}-x"
    )
    hostile = renamed(report, "viker-0a1b2c3d", r"a_b & 50% \input{/etc/passwd} ~^")
    [[_, _, rows], *_] = latex_tables(in_format(hostile, "latex"))
    assert any(r"a\_b \& 50\% \textbackslash{}input\{/etc/passwd\}" in row[0] for row in rows)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX here; the structure is checked above")
def test_tex_takes_the_tables(report: dict[str, Any], outside: dict[str, Any], tmp_path: Path) -> None:
    hostile = renamed(report, "viker-0a1b2c3d", 'a_b & 50% $x$ #1 ~^ "[q]" <|> --')
    for name, one in (("whole", hostile), ("redacted", outside)):
        (tmp_path / f"{name}.tex").write_text(in_format(one, "latex"), encoding="utf-8")
    packages = "".join(rf"\usepackage{one}" for one in ("[T1]{fontenc}", "{booktabs}", "{graphicx}"))
    body = r"\begin{document}\listoftables\input{whole}\clearpage\input{redacted}\end{document}"
    (tmp_path / "main.tex").write_text(rf"\documentclass{{article}}{packages}{body}", encoding="utf-8")
    made = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        check=False, cwd=tmp_path, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-2000:]
    assert "Overfull" not in made.stdout


# ---- Where it goes ---------------------------------------------------------------------------------------------------


def test_a_format_goes_to_a_file_whole(run: Path, tmp_path: Path) -> None:
    told = succeed("report", "--run", run, "--format", "csv", "--output", tmp_path / "scores.csv").out
    assert told == f"report: {tmp_path / 'scores.csv'}\n"
    assert (tmp_path / "scores.csv").read_text(encoding="utf-8") == printed(run, "--format", "csv")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_what_output_means_is_said_where_it_means_nothing(run: Path, tmp_path: Path) -> None:
    before = files_of(run / "report")
    refused = call("report", "--run", run, "--output", tmp_path / "scores.csv")
    assert (refused.code, list(tmp_path.iterdir())) == (2, [])
    assert "expected --format with --output FILE" in refused.err
    for place, why in (
        (run / "report" / "mine.md", "replaced with it"), (run / "report", "replaced with it"),
        (tmp_path, "found a directory"), (tmp_path / "nowhere" / "x.md", "found no directory"),
    ):  # fmt: skip
        refused = call("report", "--run", run, "--format", "md", "--redact", "--output", place)
        assert (refused.code, why in refused.message) == (1, True), refused.err
    assert files_of(run / "report") == before


# ---- Several runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("several")
    return [make_private_run(folder, seed) for seed in (0, 1)]


def pooled(runs: list[Path], *arguments: object) -> Any:
    return call("report", *(part for run in runs for part in ("--run", run)), *arguments)


def test_several_runs_are_printed_in_every_format_but_html(runs: list[Path], tmp_path: Path) -> None:
    report = json.loads(pooled(runs, "--json").out)
    assert set(report["models"]) == {"vanilla", "retain-only", "viker", "ga"}
    header, *rows = csv.reader(io.StringIO(pooled(runs, "--format", "csv").out))
    assert header == list(POOLED_CSV_FIELDS)
    assert len(rows) == sum(len(found["pooled"]) for found in report["models"].values())
    page = pooled(runs, "--format", "md", "--output", tmp_path / "both").out
    assert page == (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    for _, caption, cells in latex_tables(pooled(runs, "--format", "latex").out):
        assert cells[1:] == [
            [escaped_latex(cell) for cell in row] for row in markdown_rows(page, caption.split(".")[0])[1:]
        ]
    assert "--format html: expected the report of one run" in pooled(runs, "--format", "html").message
    assert "expected --output DIR or --format" in pooled(runs).err


def test_two_settings_of_one_method_are_two_models(runs: list[Path], tmp_path: Path) -> None:
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for seed, run in enumerate(copies):
        add_adapter(run, "viker-99999999", 0.9, seed)
        shutil.copytree(run / "evaluations" / "viker-0a1b2c3d", run / "evaluations" / "viker-99999999")
    names = json.loads(pooled(copies, "--json").out)["models"]
    assert sorted(map(len, names)) == [2, 7, 11, 14, 14], names
    assert all(re.fullmatch(r"viker [0-9a-f]{8}", name) for name in names if name.startswith("viker"))


def test_a_redacted_report_of_several_runs_is_only_printed(runs: list[Path], tmp_path: Path) -> None:
    assert pooled(runs, "--redact", "--output", tmp_path / "both").code == 2
    assert not (tmp_path / "both").exists()
    for form in ("md", "csv", "latex", "json"):
        text = pooled(runs, "--redact", "--format", form).out
        assert leaks(text, runs[0]) | leaks(text, runs[1]) == set()
    report = json.loads(text)
    assert report["runs"] == ["run-1", "run-2"]
    assert set(report["models"]) == {"vanilla", "retain-only", "viker-1", "ga-1"}


# ---- Redaction -------------------------------------------------------------------------------------------------------


def leaks(text: str, run: Path) -> set[str]:
    return {word for word in private_words(run) if word.casefold() in text.casefold()}


def strings(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text of a report with the keys that lead to it; an item's place counts as `*`."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from strings(item, (*path, name))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, (*path, "*"))
    elif isinstance(value, str):
        yield path, value


@pytest.mark.parametrize("form", FORMATS)
def test_no_private_word_is_in_a_redacted_report(run: Path, form: str) -> None:
    before = files_of(run / "report")
    assert leaks(printed(run, "--format", form), run), "what is looked for can be found"
    text = printed(run, "--format", form, "--redact")
    assert leaks(text, run) == set()
    assert files_of(run / "report") == before


@pytest.mark.parametrize("form", FORMATS)
def test_nor_with_the_key_token_view(report: dict[str, Any], outside: dict[str, Any], run: Path, form: str) -> None:
    if form != "csv":
        assert leaks(in_format(report, form), run)
    assert leaks(in_format(outside, form), run) == set()


def test_redact_alone_prints_a_page_that_says_so(run: Path) -> None:
    page = printed(run, "--redact")
    assert page == printed(run, "--redact", "--format", "md")
    assert page.startswith(f"# Viker report, redacted: {NOTICES['mini']}")
    assert "Redacted: people are numbered" in page
    assert all("Redacted. " in caption for _, caption, _ in latex_tables(printed(run, "--redact", "--format", "latex")))


def test_every_number_stays(report: dict[str, Any], outside: dict[str, Any]) -> None:
    names = {"vanilla": "vanilla", "retain-only": "retain-only", "viker-0a1b2c3d": "viker-1", "ga-4e5f6a7b": "ga-1"}
    assert outside["scores"] == [{**record, "model": names[record["model"]]} for record in report["scores"]]
    assert [row["values"] for row in outside["headline"]["rows"]] == [
        row["values"] for row in report["headline"]["rows"]
    ]
    assert outside["curves"]["models"][0]["log"] == report["curves"]["models"][0]["log"]
    [token] = outside["key_tokens"]["examples"][0]["tokens"]
    assert token["teacher"] == [[BLOCK, 0.25], [BLOCK, 0.125]]
    assert token["answer_prob"] == {"teacher": 0.25, "vanilla": 0.75, "viker-1": 0.0}
    assert outside["key_tokens"]["examples"][0]["words"] == [
        {"text": BLOCK, "first": 0, "last": 0, "entropy": 2.5, "is_key": True, "is_private": True}
    ]


def test_our_own_sentences_stay_word_for_word(report: dict[str, Any], outside: dict[str, Any]) -> None:
    assert outside["head_room"] == report["head_room"]
    assert outside["matched"]["caveats"] == report["matched"]["caveats"]
    assert [row["words"] for row in outside["coherence"]] == [row["words"] for row in report["coherence"]]
    assert [one["note"] for one in outside["forgetting"]["measures"]] == [
        one["note"] for one in report["forgetting"]["measures"]
    ]
    assert [column["label"] for column in outside["splits"]["columns"]] == [
        column["label"] for column in report["splits"]["columns"]
    ]
    alone = redacted({**report, "matched": {**report["matched"], "reason": f"as {NAMES[0]} said"}})
    assert alone["matched"]["reason"] == BLOCK


def test_a_verdict_names_its_worst_person_by_number(outside: dict[str, Any]) -> None:
    [check] = outside["verdicts"][0]["checks"]
    assert re.fullmatch(r"0, the worst of all people, person-\d, n = 2", check["words"])
    assert check["asked"] == "fact_recall (forget, generation, image) at most 0.5, for every person"
    assert "why" not in check


def test_people_have_one_number_in_a_report_that_only_the_whole_of_it_explains(report: dict[str, Any]) -> None:
    def numbers(one: dict[str, Any]) -> list[tuple[str, str]]:
        kept = redacted(one)["replies"]["rows"]
        return [(row["split"], row["person"]) for row in kept]

    assert numbers(report) == numbers(copy.deepcopy(report))
    for split in ("forget", "retain-heldout"):
        people = [person for of, person in numbers(report) if of == split]
        assert people == sorted(people), "the order of a list must not tell who is who"
    orders = set()
    for place in range(20):
        other = copy.deepcopy(report)
        other["replies"]["rows"][0]["replies"]["vanilla"] = f"reply {place}"
        check = redacted(other)["verdicts"][0]["checks"][0]
        orders.add(check["person"])
    assert len(orders) > 1, "another text that outsiders never see gives people other numbers"


def test_a_section_that_nobody_allowed_is_left_out_and_counted(report: dict[str, Any], outside: dict[str, Any]) -> None:
    found = redacted({**report, "portraits": [{"person": IDS[0], "file": "data:image/png", "size": 3}]})
    assert "portraits" not in found
    assert found["redacted"]["withheld"]["other sections"] == 3
    assert any("3 in 1 sections left out whole" in notice for notice in found["notices"])
    assert "other sections" not in outside["redacted"]["withheld"], "every section of today has its rules"
    assert outside["redacted"]["withheld"]["replies"] == sum(
        len(row["replies"]) + 3 for row in report["replies"]["rows"]
    )  # fmt: skip


def test_notices_stay_without_what_they_name(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluations" / "ga-4e5f6a7b")
    (tmp_path / "run" / "adapters" / "viker-0a1b2c3d" / "COMPLETE").unlink()
    config = read_json(tmp_path / "run" / "evaluations" / "vanilla" / "config.json")
    config["options"]["forget"] = IDS[:1]
    config["options"]["limit"] = 2
    write_json(tmp_path / "run" / "evaluations" / "vanilla" / "config.json", config)
    args = ["report", "--run", tmp_path / "run", "--ours", f"as {NAMES[0]} wished", "--redact", "--json"]
    notices = json.loads(succeed(*args).out)["notices"]
    assert "Adapter `ga-1` is not evaluated." in notices
    assert "`adapters/model-1` was begun and not finished: it is not in this report." in notices
    assert "The evaluations differ in `limit`, so their numbers may not be compared." in notices
    assert "Evaluations are limited to 2 people a split." in notices
    assert any(re.search(r"Of its \d+ notices 1 may name what is withheld", notice) for notice in notices)


def test_published_numbers_keep_what_is_public_of_their_source(report: dict[str, Any]) -> None:
    item = {"row": "ViKeR", "split": "forget", "metric": "ACC", "value": 30.4, "source": f"arXiv 2601.22020 {NAMES[0]}",
            "ours": {"viker-0a1b2c3d": 0.5}, "our_split": "forget", "our_metric": "accuracy_letter",
            "our_task": "classification", "note": NAMES[1]}  # fmt: skip
    [kept] = redacted({**report, "published": [item]})["published"]
    assert (kept["row"], kept["source"], kept["ours"]) == ("ViKeR", "arXiv 2601.22020", {"viker-1": 0.5})
    assert "note" not in kept


def test_the_methods_that_may_be_named_are_those_that_can_be_trained() -> None:
    from viker.train.methods import METHODS as TRAINED

    assert set(METHODS) == {method if isinstance(method, str) else method.name for method in TRAINED}


# Leaves whose texts pass by their shape alone: names of metrics, which only our code writes, and a sentence with one.
OPEN = {"metric", "our_metric", "asked"}
MARKERS = st.one_of(
    st.from_regex(r"[A-Za-z][a-z]{7,15}", fullmatch=True),
    st.from_regex(r"[A-Z][a-z]{5,9} [A-Z][a-z]{5,9}", fullmatch=True),
    st.from_regex(r"zq[0-9a-f]{12}", fullmatch=True),
    st.from_regex(r"/home/[a-z]{6,9}/[a-z]{6,9}\.png", fullmatch=True),
    st.from_regex(r"zq\d{6}-[a-z]{6}", fullmatch=True),
)


def planted(value: Any, marker: str, share: float, chosen: random.Random) -> Any:
    """Return a report with a text in place of a share of its texts."""
    if isinstance(value, dict):
        return {name: planted(item, marker, share, chosen) for name, item in value.items()}
    if isinstance(value, list):
        return [planted(item, marker, share, chosen) for item in value]
    return marker if isinstance(value, str) and chosen.random() < share else value


def test_a_text_planted_anywhere_survives_only_where_that_is_allowed(report: dict[str, Any]) -> None:
    measures = {**report["forgetting"], "measures": report["forgetting"]["measures"][:8]}
    small = {**report, "scores": report["scores"][:8], "forgetting": measures}

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(marker=MARKERS, share=st.sampled_from([0.02, 0.5, 1.0]), seed=st.integers(0, 2**32))
    def check(marker: str, share: float, seed: int) -> None:
        found = redacted(planted(small, marker, share, random.Random(seed)))
        assert {path[-1] for path, text in strings(found) if marker in text} <= OPEN

    check()


def test_a_name_in_place_of_a_key_does_not_survive_either(report: dict[str, Any]) -> None:
    named = renamed(report, next(iter(ADAPTERS)), NAMES[0])
    assert NAMES[0] not in json.dumps(redacted(named), ensure_ascii=False)
