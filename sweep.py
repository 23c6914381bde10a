"""`viker sweep`: repeat a comparison over worlds of the embedded benchmark, and keep every number.

Study `matched`: methods at matched forgetting (design, section 11). On development worlds every method is trained at
every learning rate of one grid under one step cap, and keeps the rate with the best held-out retain fact recall at its
first crossing; unseen worlds then see that rate alone. A world is one run directory made by the ordinary commands, so
an interrupted sweep resumes, and any point can be looked at with `viker report`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from .data.artefact import read_json, write_json

METHODS = ("ga", "viker", "recommended")
PRESET = "mini"


@click.command()
@click.option("--study", type=click.Choice(["matched"]), default="matched", show_default=True, help="Which comparison.")
@click.option("--dev", default="1,2", show_default=True, help="Development worlds: settings are chosen on them.")
@click.option("--worlds", default="11,12,13", show_default=True, help="Unseen worlds: results are reported on them.")
@click.option("--learning-rates", default="7e-4,1e-3,2e-3,3e-3", show_default=True, help="The grid every method gets.")
@click.option("--num-train-epochs", default=10.0, show_default=True, help="The step cap every method gets.")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs/sweep"), show_default=True, help="Where worlds go."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/sweep/matched.json"),
    show_default=True,
    help="The results.",
)
def command(
    study: str, dev: str, worlds: str, learning_rates: str, num_train_epochs: float, runs: Path, output: Path
) -> None:
    """Repeat a comparison over worlds of the embedded benchmark."""
    rates = [float(rate) for rate in learning_rates.split(",")]
    developed = {
        seed: _world(runs / f"world-{seed}", seed, dict.fromkeys(METHODS, rates), num_train_epochs)
        for seed in dev.split(",")
    }
    chosen = choose_rates(list(developed.values()), rates)
    click.echo(f"sweep: chosen on worlds {dev}: {chosen}")
    grid = {method: [rate] for method, rate in chosen.items() if rate is not None}
    unseen = {seed: _world(runs / f"world-{seed}", seed, grid, num_train_epochs) for seed in worlds.split(",")}
    result = {
        "schema": "viker/sweep/1", "study": study, "command": " ".join(["viker", *sys.argv[1:]]), "grid": rates,
        "num_train_epochs": num_train_epochs, "chosen": chosen, "development": developed, "unseen": unseen,
        "summary": summarize(list(unseen.values()), chosen),
    }  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    click.echo(as_table(result))
    click.echo(f"sweep: {output}")


def choose_rates(worlds: Sequence[dict[str, Any]], rates: Sequence[float]) -> dict[str, float | None]:
    """Return for each method the rate with the best mean held-out retain fact recall at its crossings.

    Only rates at which the method crosses in every world count; None where there is none.
    """
    chosen: dict[str, float | None] = {}
    for method in METHODS:
        crossings = {rate: [world["crossings"][method].get(repr(rate)) for world in worlds] for rate in rates}
        complete = {rate: points for rate, points in crossings.items() if all(points)}
        scores = {
            rate: fmean(point["retain_heldout_fact"] for point in points if point) for rate, points in complete.items()
        }
        chosen[method] = max(scores, key=lambda rate: scores[rate]) if scores else None
    return chosen


def summarize(worlds: Sequence[dict[str, Any]], chosen: dict[str, float | None]) -> dict[str, Any]:
    """Return each method's mean over worlds at its first crossing, and in how many worlds it crossed."""
    names = (
        "forget_fact",
        "forget_rougeL",
        "retain_seen_fact",
        "retain_seen_rougeL",
        "retain_heldout_fact",
        "retain_heldout_rougeL",
        "step",
    )
    summary: dict[str, Any] = {}
    for method, rate in chosen.items():
        points = [world["crossings"].get(method, {}).get(repr(rate)) for world in worlds]
        crossed = [point for point in points if point]
        means = {name: round(fmean(point[name] for point in crossed), 4) for name in names} if crossed else {}
        summary[method] = {"learning_rate": rate, "crossed": len(crossed), "worlds": len(points), **means}
    return summary


COLUMNS = {
    "forget_fact": "forget fact",
    "retain_heldout_fact": "held-out retain fact",
    "retain_heldout_rougeL": "held-out retain ROUGE-L",
    "retain_seen_fact": "seen retain fact",
    "retain_seen_rougeL": "seen retain ROUGE-L",
}


def as_table(result: dict[str, Any]) -> str:
    """Return the means over unseen worlds as a Markdown table: the two models beside the methods."""
    header = ["", *COLUMNS.values(), "worlds crossed", "learning rate"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name in ("vanilla", "retain-only"):
        values = [fmean(world["models"][name][column] for world in result["unseen"].values()) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} | - | - |")
    for method in METHODS:
        row = result["summary"][method]
        shown = [f"{row[name]:.2f}" if name in row else "never crosses" for name in COLUMNS]
        lines.append(
            f"| `{method}` | {' | '.join(shown)} | {row['crossed']} of {row['worlds']} | {row['learning_rate']} |"
        )
    return "\n".join(lines)


def _world(run: Path, seed: str, grid: dict[str, list[float]], num_train_epochs: float) -> dict[str, Any]:
    """Make one world by the ordinary commands and return its head-room, crossings and key-word AUROC."""
    data, vanilla = ["--data", str(run / "data")], ["--model", str(run / "vanilla")]
    _viker("data", "make", "mini", str(run / "data"), "--seed", seed)
    _viker(
        "finetune",
        "base",
        "--data",
        str(run / "data" / "base"),
        "--looks",
        str(run / "data" / "looks"),
        "--model",
        "tiny",
        "--output",
        str(run / "base"),
        "--seed",
        seed,
    )
    for role in ("vanilla", "retain-only"):
        _viker("finetune", role, *data, "--model", str(run / "base"), "--output", str(run / role), "--seed", seed)
    _viker("evaluate", "--run", str(run), *data, "--target", "vanilla", "--target", "retain-only")
    _viker("precompute", "--run", str(run), *data, *vanilla, "--pool", str(run / "data" / "pools" / "people"))
    _viker("precompute", "--run", str(run), *data, *vanilla, "--teacher", "self", "--split", "retain-seen")
    for rate in sorted({rate for rates in grid.values() for rate in rates}):
        methods = [word for method, rates in grid.items() if rate in rates for word in ("--method", method)]
        _viker("train", "--run", str(run), *data, *vanilla, *methods, "--learning-rate", repr(rate),
               "--num-train-epochs", str(num_train_epochs), "--no-stop", "--evaluate-every", "4",
               "--evaluate-people", "12")  # fmt: skip
    return collect_world(run, grid, num_train_epochs)


def collect_world(run: Path, grid: dict[str, list[float]], num_train_epochs: float) -> dict[str, Any]:
    """Return what a finished world says."""
    from .evaluate.matched import first_crossing, forgetting_threshold
    from .evaluate.world import key_word_auroc_of_run, numbers_of_evaluation, recall_of_evaluation

    threshold = forgetting_threshold(recall_of_evaluation(run, "retain-only")["forget"])
    crossings: dict[str, dict[str, Any]] = {method: {} for method in grid}
    for adapter in sorted((run / "adapters").iterdir()):
        options = read_json(adapter / "config.json")["options"]
        method, rate = options["method"], options["learning_rate"]
        if rate not in grid.get(method, []) or options["num_train_epochs"] != num_train_epochs:
            continue
        points = [json.loads(line) for line in (adapter / "trajectory.jsonl").read_text().splitlines()]
        crossings[method][repr(rate)] = first_crossing(points, threshold)
    stages = ("base", "vanilla", "retain-only")
    return {
        "models": {name: numbers_of_evaluation(run, name) for name in ("vanilla", "retain-only")},
        "threshold": round(threshold, 4),
        "crossings": crossings,
        "wall_seconds": {stage: read_json(run / stage / "provenance.json")["wall_seconds"] for stage in stages},
        "key_word_auroc": round(key_word_auroc_of_run(run), 5),
    }


def _viker(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "viker", "--preset", PRESET, *arguments], check=True)
