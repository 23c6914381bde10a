"""What goes out to vLLM as a prompt, and whether it read what was meant.

A prompt goes out as token ids with one placeholder an image: vLLM puts the image's tokens in, and would put them in
again where they are already. Our encoder's ids are the truth, so the ids vLLM read come back and are compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from ..data.example import DataError, EncodedImage


def vllm_prompt(ids: Sequence[int], images: Sequence[EncodedImage], decoded: Mapping[str, Image]) -> dict[str, Any]:
    """Return unexpanded ids and their images as vLLM takes them; `decoded` holds pictures by digest."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(ids)}
    if images:
        prompt["multi_modal_data"] = {"image": [decoded[image.sha256] for image in images]}
        prompt["multi_modal_uuids"] = {"image": [image.sha256 for image in images]}
    return prompt


def require_same_ids(name: str, ours: Sequence[int], found: Sequence[int]) -> None:
    """Raise `DataError` where vLLM read other ids than our expanded ones for the example of this name."""
    if tuple(found) == tuple(ours):
        return
    place = next((i for i, (a, b) in enumerate(zip(ours, found, strict=False)) if a != b), min(len(ours), len(found)))
    raise DataError(
        f"{name}: expected vLLM to read the {len(ours)} ids of this prompt, found {len(found)}, differing from token "
        f"{place}. Its processor puts other image tokens in than this model's own: use another --engine."
    )
