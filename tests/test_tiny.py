"""Models built from nothing: which sizes there are, what they read, and that a base model of each can be taught."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from viker.cli import viker
from viker.data import mini_files
from viker.data.example import EncodedImage, Example, ask_about
from viker.data.portraits import encode_png, pattern_picture
from viker.models.load import load, resolve
from viker.models.tiny import SIZES, build_tiny_llava
from viker.train import see

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["USER: \nWhere does this person live?\nASSISTANT: In Lima this person lives on Elmrow."] * 3


def example() -> Example:
    image = EncodedImage(encode_png(pattern_picture(random.Random(1)).resize((84, 84))), "a picture")
    return Example(id="a", people=("001",), images=(image,), messages=ask_about(image, "Where?"), answer="In Lima.",
                   task="training")  # fmt: skip


@pytest.mark.parametrize(("name", "parameters", "tokens"), [("tiny", 1.2e6, 16), ("small", 16e6, 36)])
def test_a_size_has_its_parameters_and_reads_pictures_of_any_width(
    name: str, parameters: float, tokens: int, tmp_path: Path, quiet_torch: None
) -> None:
    build_tiny_llava(tmp_path / name, TEXTS, seed=0, size=SIZES[name])
    loaded = load(resolve(str(tmp_path / name)))
    assert sum(weight.numel() for weight in loaded.model.parameters()) == pytest.approx(parameters, rel=0.03)
    encoded = loaded.encoder.encode(example())
    assert encoded.input_ids.count(loaded.encoder.image_id) == tokens == (SIZES[name].image // 14) ** 2


def test_a_size_s_weights_are_a_function_of_the_seed(tmp_path: Path, quiet_torch: None) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_tiny_llava(tmp_path / folder, TEXTS, seed=seed)
    first, same, other = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc")
    assert first == same != other


def test_a_larger_base_model_is_built_by_name_and_learns_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_torch: None
) -> None:
    monkeypatch.setattr(see, "NUM_STEPS", 1)
    monkeypatch.setattr(see, "BATCH_SIZE", 2)
    monkeypatch.setattr(mini_files, "NUM_LOOKS", 3)
    mini_files.write_looks(tmp_path / "looks", seed=0, size=SIZES["small"].image)
    words = [
        *("finetune", "base", "--data", str(tmp_path / "looks"), "--looks", str(tmp_path / "looks")),
        *("--model", "small", "--output", str(tmp_path / "base"), "--limit", "2", "--num-train-epochs", "1"),
        *("--device", "cpu"),
    ]
    told = CliRunner().invoke(viker, words, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["vision_config"]["image_size"] == SIZES["small"].image
