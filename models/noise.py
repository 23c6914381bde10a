"""Uniform noise in place of an image: what VGID's teacher sees (arXiv 2606.00105; its code draws `torch.rand_like`).

The noise takes the place of what the processor made of a picture, after normalization, so that ids, sizes and masks
stay the picture's own. It is a function of what it is drawn for and of the picture's shape alone, never of its pixels.
The numbers are drawn when they are read: a block of pairs holds the names of its noises, not their tensors.
Which noise an example is shown is `interventions.py`'s.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .expand import Picture


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one place in one forward pass, by what it is drawn for."""

    purpose: bytes

    def digest(self, layout: str) -> str:
        """Return what tells this noise, in the shape of a picture of that layout, from any other tensors."""
        return hashlib.sha256(f"viker/noise/{layout}/".encode() + self.purpose).hexdigest()

    def picture(self, shown: Picture) -> Picture:
        """Return a picture with noise in all its floating-point tensors and all else as it is."""
        return replace(shown, tensors=_NoiseTensors(shown.tensors, self.digest(layout_digest(shown))))


def layout_digest(picture: Picture) -> str:
    """Return the digest of all that noise leaves of a picture: names, types and shapes, sizes and masks, ids."""
    digest = hashlib.sha256(f"{picture.ids}{picture.types}{picture.by_row}".encode())
    for name, tensor in sorted(picture.tensors.items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        if not tensor.is_floating_point():
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class _NoiseTensors(Mapping[str, Tensor]):
    """Tensors by name, drawn anew from U[0, 1) and one seed whenever a floating-point one is read."""

    def __init__(self, tensors: Mapping[str, Tensor], seed: str) -> None:
        # Of pixels only the shape is kept, so that nothing here can show them.
        self._tensors = {name: one.to("meta") if one.is_floating_point() else one for name, one in tensors.items()}
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        like = self._tensors[name]
        if not like.is_meta:
            return like
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        # On a CPU torch reads 32 bits of a seed: two noises in billions may be equal, under different digests.
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return torch.rand(like.shape, dtype=like.dtype, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
