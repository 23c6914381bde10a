"""Sweeps in numbers and options: trajectories that were trained by nobody, and what a command line would ask."""

from __future__ import annotations

from pathlib import Path

from viker.evaluate.matched import first_crossing
from viker.sweep.asked import resolve
from viker.sweep.collect import SweptRun, Trained
from viker.sweep.jobs import Recipe, recipe_words

BAR = 0.1
ASKED = {"methods": ["ga", "viker", "gd"], "seeds": [0], "study": None}


OPTIONS = {
    "study": None, "run": None, "data": None, "model": None, "pool": None, "worlds": "11,12", "dev": "1",
    "methods": "ga,viker", "learning_rates": "1e-3,2e-3", "lambdas": None, "retains": None, "num_references": None,
    "top_ks": None, "pools": None, "regularizers": None, "ascents": None, "teachers": None, "token_lambdas": None,
    "seeds": "0", "hp": (), "num_train_epochs": 10.0, "evaluate_every": 4, "evaluate_people": 12,
    "runs": Path("runs/sweep"), "train_options": (),
}  # fmt: skip
RECIPE = Recipe("mini", recipe_words(10.0, 4, 12, ()))


def asked(announced=None, **options):
    return resolve({**OPTIONS, **options}, None, (announced if announced is not None else []).append)


def point(step, forget, heldout):
    return {
        "step": step, "forget_fact": forget, "forget_rougeL": 0.5, "retain_heldout_fact": heldout,
        "retain_heldout_rougeL": 0.9, "retain_seen_fact": 0.6, "retain_seen_rougeL": 0.95,
    }  # fmt: skip


def trained(world, method, rate, heldout, *, role="development", seed=0, needs_retain=False):
    """A trajectory that crosses at step 8 with this held-out recall, or (None) forgets too little all the way."""
    points = (point(0, 1.0, 1.0), point(8, 0.4 if heldout is None else 0.05, 0.8 if heldout is None else heldout))
    return Trained(
        run=str(world), role=role, contender=method, needs_retain=needs_retain, method=method,
        values={"learning_rate": rate}, label=f"{method} lr={rate:g}", seed=seed, adapter=f"{method}-00000000",
        wall_seconds=1.0, points=points, crossing=first_crossing(points, BAR),
    )  # fmt: skip


def in_worlds(method, rate, *heldout, **more):
    return [trained(world, method, rate, value, **more) for world, value in enumerate(heldout, start=1)]


def swept_run(name, role="reported", **more):
    models = {"vanilla": point(0, 1.0, 1.0), "retain-only": point(0, 0.04, 0.9)}
    known = {"threshold": BAR, "reason": None, "models": models, "key_word_auroc": 1.0, "wall_seconds": {"base": 1.0}}
    return SweptRun(name=name, role=role, path=f"runs/world-{name}", **{**known, **more})
