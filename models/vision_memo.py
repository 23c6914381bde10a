"""Remember what a frozen vision tower and projector make of a picture: it never changes while training goes on.

The model is asked as always, pictures and all; while they are shown, its `get_image_features` is answered from memory,
and only what is missing is computed, in one batch without gradients. How a family lays its features out (an item an
image, or tiles end to end) is read off what it returns. Nothing is taken on trust: features from memory are compared
with those computed directly at the first batch of one picture and at the first of several, and where they differ,
cannot be told apart or may learn, the memo steps aside for good, says why, and the model runs as if it were not there.
Features are kept on the model's device up to a limit, the longest unused go first. Which pictures a batch shows, and in
which order, is `pack.py`'s to say; pictures changed on the way (`augment.py`) are not for it.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .encode import Encoded, stack_pictures
from .expand import Picture
from .forward import to_device
from .positions import backbone

_LIMIT_BYTES = 2 * 1024**3  # 450 pictures of LLaVA-1.5-7B's in half precision
_READ = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}  # a text model reads the second alone
_NAME = "get_image_features"
_TOLERANCE = 1e-5  # of the features' norm, at least: kernels round by the size of a batch; mistakes are of order one
_ROUNDINGS = 8  # and in half precision, in units of the last place

Features = Tensor | Sequence[Tensor]  # as a family returns them: all tiles on the first axis, or an item an image


class VisionMemo:
    """The features of pictures of one model, whose weights that see stay as they are.

    `reason` says why it stepped aside, None while it answers.
    """

    def __init__(self, model: Any, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._core = backbone(model)
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[int, tuple[Picture, Tensor]] = OrderedDict()  # by id: the picture is held, so it lasts
        self._held = 0
        self._on_one_axis = False
        self._compared = 0  # 1 once a batch of one picture agreed, 2 once one of several did
        text = {id(weight) for weight in self._core.get_decoder().parameters()}
        self._weights = [weight for weight in self._core.parameters() if id(weight) not in text]
        self._names = list(inspect.signature(getattr(self._core, _NAME, lambda: None)).parameters)
        self.reason: str | None = None if self._names else "this family has no image features apart from its text"
        self._require_frozen()

    @contextmanager
    def showing(self, pictures: Sequence[Picture]) -> Iterator[None]:
        """Answer from memory while the block runs the model on these pictures, given in the order it reads them."""
        self._require_frozen()
        if self.reason is not None or not pictures:
            yield
            return
        before = vars(self._core).get(_NAME)  # not of its class: this model's own, as of an outer memo
        setattr(self._core, _NAME, partial(self._answer, getattr(self._core, _NAME), pictures))
        try:
            yield
        finally:
            delattr(self._core, _NAME)
            if before is not None:
                setattr(self._core, _NAME, before)

    def _require_frozen(self) -> None:
        if any(weight.requires_grad for weight in self._weights):
            self._step_aside("the vision tower or its projector learns")

    def _step_aside(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._kept.clear()
        self._held = 0

    def _answer(self, direct: Callable[..., Any], pictures: Sequence[Picture], *args: Any, **kwargs: Any) -> Any:
        """Stand in for `get_image_features`: its arguments, and of its output what the text model reads."""
        asked = dict(zip(self._names, args, strict=False)) | kwargs
        remembered = None if self.reason is not None else self._remembered(direct, asked, pictures)
        variety = min(2, len(set(map(id, pictures))))
        if remembered is not None and self._compared >= variety:
            return BaseModelOutputWithPooling(pooler_output=remembered)  # type: ignore[arg-type]  # lists, as theirs
        output = direct(**asked)
        if remembered is not None and _agree(remembered, output.pooler_output):
            self._compared = variety
        elif remembered is not None:
            self._step_aside("features from memory are not those of the batch at hand")
        return output

    def _remembered(
        self, direct: Callable[..., Any], asked: Mapping[str, Any], pictures: Sequence[Picture]
    ) -> Features | None:
        missing = [picture for key, picture in {id(one): one for one in pictures}.items() if key not in self._kept]
        if missing and not self._compute(direct, asked, missing):
            return None
        found = [self._kept[id(picture)][1] for picture in pictures]
        for picture in pictures:
            self._kept.move_to_end(id(picture))
        while self._held > self._limit_bytes:
            self._held -= self._kept.popitem(last=False)[1][1].nbytes
        return torch.cat(found) if self._on_one_axis else found

    def _compute(self, direct: Callable[..., Any], asked: Mapping[str, Any], missing: Sequence[Picture]) -> bool:
        """Compute and keep the features of pictures; False, with a reason, where they cannot be told apart."""
        pixels = asked["pixel_values"]
        shown = stack_pictures([Encoded((), (), (), (picture,)) for picture in missing])
        tensors = to_device(shown, pixels.device, pixels.dtype)
        with torch.no_grad():
            output = direct(**{**asked, **{name: tensors[name] for name in tensors if name in self._names}})
        parts = _apart(output.pooler_output, missing)
        if parts is None or set(output) - _READ:
            self._step_aside(f"{type(output).__name__} of this family cannot be told apart by picture")
            return False
        self._on_one_axis = isinstance(output.pooler_output, Tensor)
        for picture, feature in zip(missing, parts, strict=True):
            self._kept[id(picture)] = picture, feature.clone()  # a view would hold the features of all
            self._held += feature.nbytes
        return True


def _apart(features: Features, pictures: Sequence[Picture]) -> list[Tensor] | None:
    """Return the features of each picture, or None where they are neither an item an image nor tiles end to end."""
    if not isinstance(features, Tensor):
        return list(features) if len(features) == len(pictures) else None
    tiles = [len(picture.tensors["pixel_values"]) for picture in pictures]
    return list(features.split(tiles)) if len(features) == sum(tiles) else None


@torch.no_grad()
def _agree(ours: Features, theirs: Features) -> bool:
    """Whether features are alike once joined, as the text model joins them (some families have an item a row)."""
    first, second = (part if isinstance(part, Tensor) else torch.cat(list(part)) for part in (ours, theirs))
    if first.shape != second.shape:
        return False
    tolerance = max(_TOLERANCE, _ROUNDINGS * torch.finfo(second.dtype).eps)
    return float((first - second).norm()) <= tolerance * float(second.norm())
