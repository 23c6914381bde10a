"""What every test shares: a small world, a tiny real LLaVA of it, and a cache home that is thrown away.

Nothing here downloads or trains: the model is built from config and its weights are sharpened, so that attention and
images move its distributions as a trained model's do (a fresh one is near uniform, and would hide mistakes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from viker.data.example import Example
    from viker.models.load import Loaded

NUM_PEOPLE = 20
SHARPNESS = {"lm_head": 16.0, "vision_tower": 3.0, "multi_modal_projector": 4.0, "language_model": 4.0}


def pytest_configure(config: pytest.Config) -> None:
    """Name the warnings of other libraries that are no errors of ours."""
    # peft 0.21 reads a name that transformers 5.23 renamed.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def isolated_cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point VIKER_CACHE_DIR (and the memo of weight digests beside it) at a folder of this test alone."""
    home = tmp_path_factory.mktemp("home") / "caches"
    monkeypatch.setenv("VIKER_CACHE_DIR", str(home))
    return home


@pytest.fixture(scope="session")
def quiet_torch() -> None:
    """Use one thread (tiny matrices: two are slower on a busy machine) and no progress bars of transformers."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def mini_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded benchmark with twenty people."""
    from viker.data.mini_files import make_mini

    directory = tmp_path_factory.mktemp("mini") / "data"
    make_mini(directory, seed=0, num_people=NUM_PEOPLE)
    return directory


@pytest.fixture(scope="session")
def training_examples(mini_world: Path) -> tuple[Example, ...]:
    """The training questions about everyone in the world, in the source's order."""
    from viker.data.sources import open_source

    return tuple(open_source(str(mini_world)).training("all"))


@pytest.fixture(scope="session")
def tiny_model_dir(
    tmp_path_factory: pytest.TempPathFactory, training_examples: tuple[Example, ...], quiet_torch: None
) -> Path:
    """A tiny LLaVA on disk, its tokenizer trained on the world's questions and answers."""
    from viker.models.tiny import build_tiny_llava

    directory = tmp_path_factory.mktemp("tiny") / "model"
    texts = [text for example in training_examples for text in (example.messages[-1].content, example.answer)]
    build_tiny_llava(directory, texts, seed=0)
    _sharpen(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_model_dir: Path) -> Loaded:
    """The tiny LLaVA, loaded once in float32; tests that train ask for `trainable`."""
    from viker.models.load import load, resolve

    return load(resolve(str(tiny_model_dir)))


@pytest.fixture
def trainable(tiny: Loaded) -> Any:
    """A copy of the tiny model that a test may change."""
    import copy

    return copy.deepcopy(tiny.model)


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> dict[str, Any]:
    """The tiny models of families that were asked for so far, and where they lie."""
    return {"root": tmp_path_factory.mktemp("families")}


@pytest.fixture
def family(request: pytest.FixtureRequest, families: dict[str, Any]) -> Loaded:
    """The tiny model of a family, built once a session; a test that trains it takes a copy."""
    from tiny_families import build
    from viker.models.load import load, resolve

    if request.param not in families:
        build(request.param, families["root"] / request.param)
        families[request.param] = load(resolve(str(families["root"] / request.param)))
    loaded: Loaded = families[request.param]
    return loaded


def _sharpen(directory: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        scale = next((factor for part, factor in SHARPNESS.items() if part in name), 1.0)
        if weight.dim() > 1:
            weights[name] = weight * scale
    save_file({name: weight.to(torch.float32) for name, weight in weights.items()}, path, metadata={"format": "pt"})
