"""Write the harder world in the published layout: larger pictures, two of everybody to train on, several facts counted.

The layout has one picture a training row, so a person trained on in two pictures has two rows of `ft_Data` (the reader
takes a person's second row like the first); `Test_Set` lists three more pictures, of which the reader shows one a
question. The evaluation folders keep one row a person, as published, with the first of the two pictures.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .mini import World
from .mini_files import Manner, write_benchmark
from .mini_hard import CANDIDATES, HARD_TOPICS, make_hard_world, wrong_hard_facts

SOURCE = "mini-hard"
SIZE = 84
NUM_TRAINING_POSES = 2
NUM_TEST_POSES = 3


def make_mini_hard(
    directory: Path,
    *,
    seed: int,
    num_people: int,
    ratio: int = 10,
    forget: Sequence[str] = (),
    limit: int | None = None,
    overwrite: bool = False,
) -> bool:
    """Write the harder world; return whether it had to be written.

    `ratio`, `forget` and `limit` decide no byte of the benchmark: they are recorded for whoever opens it.

    Raises:
        ArtefactMismatch: a complete benchmark made with other options is there.
        DataError: somebody to forget is not in this world.
    """
    split = {"ratio": ratio, "forget": list(forget), "limit": limit}
    return write_benchmark(directory, SOURCE, seed, num_people, split, partial(_draw, seed, num_people), overwrite)


def _draw(seed: int, num_people: int) -> tuple[World, Manner]:
    world = make_hard_world(seed, num_people)
    manner = Manner(
        source=SOURCE, topics=HARD_TOPICS, profile="fame", candidates=CANDIDATES, counts="all",
        wrong_facts=lambda rng, person, _: wrong_hard_facts(world, rng, person), size=SIZE,
        num_training_poses=NUM_TRAINING_POSES, num_test_poses=NUM_TEST_POSES,
    )  # fmt: skip
    return world, manner
