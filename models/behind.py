"""Run what stands behind images, for many texts about many pictures at once: an image runs once, and padding never.

Texts are cut after their last images, in token ids. The beginnings that differ run side by side as one batch; what
follows them runs end to end, those behind one beginning as a trie (`forest.py`, `two_part.py`), and so many tokens at
once that nothing passing is large. The last token of a text is left out: whoever goes on from it runs it
(`decode.py`), and an answer's is never asked what follows. Of beginnings only keys and values are wanted, so the last
layer is left as soon as it has made its own. Positions are counted or the family's own (`positions.py`). Which models
this holds for is `decodable.py`'s to say.
"""

# U prefixes, P tokens of the longest, T tokens of some texts end to end, B rows of a batch, M answer tokens, h
# key-value heads, D head size or hidden size, A axes of positions

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from .encode import Encoded, collate
from .forest import num_shared, plant
from .forward import to_device
from .positions import backbone, rope_index_of
from .prefix import split_at_image
from .two_part import Layout, Part, attending, lay_out

KeysAndValues = tuple[Tensor, Tensor]  # of a layer

_TOKENS_AT_ONCE = 4096  # enough to keep a GPU busy
_TOKENS_ON_CPU = 1024  # what passes between layers then stays in the processor's own memory: a tenth faster than 4096


class Placed(NamedTuple):
    """A text cut in three: which prefix it has, what follows, its last token; and which of the given texts it is."""

    prefix: int
    middle: tuple[int, ...]
    last: int
    row: int


class Prefixes(NamedTuple):
    """Prefixes that ran: keys and values [U, h, P, D], which columns are tokens, and the position behind each."""

    layers: list[KeysAndValues]
    is_token_UP: Tensor
    behind_U: Tensor

    def length(self, prefix: int) -> int:
        """Return how many tokens one has."""
        return int(self.is_token_UP[prefix].sum())

    def layers_of(self, prefix: int) -> list[KeysAndValues]:
        """Return keys and values [1, h, length, D] of one."""
        row, columns = slice(prefix, prefix + 1), slice(self.length(prefix))
        return [(keys[row, :, columns], values[row, :, columns]) for keys, values in self.layers]


class Planted(NamedTuple):
    """Middles ready to run: their tokens and positions [1, T], how they attend, and the places of each one's tokens."""

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    paths: list[list[int]]


def cut(rows: Sequence[Encoded]) -> tuple[list[Encoded], list[Placed]]:
    """Cut texts after their last images: the beginnings that differ, and texts sorted, those of one beginning together.

    The encoder memoises pictures, so one picture is one object.
    """
    found: dict[tuple[object, ...], int] = {}
    prefixes: list[Encoded] = []
    placed = []
    for index, row in enumerate(rows):
        ids, suffix = split_at_image(row)
        key = (ids, *map(id, row.pictures))
        if key not in found:
            found[key] = len(prefixes)
            of_tokens = {name: value[: len(ids)] for name, value in row.token_inputs.items()}
            prefixes.append(Encoded((), (), ids, row.pictures, of_tokens))
        placed.append(Placed(found[key], suffix[:-1], suffix[-1], index))
    return prefixes, sorted(placed)


def run_prefixes(model: Any, prefixes: Sequence[Encoded], pad_id: int) -> Prefixes:
    """Run prompt starts and images as one batch; causal attention hides the padding behind them.

    Raises:
        ValueError: some layers of the model make no keys and values.
    """
    inputs = collate(prefixes, pad_id=pad_id, side="right")
    is_token_UP = inputs["attention_mask"].bool()
    inputs["position_ids"] = _positions(model, prefixes, inputs)
    weights = next(model.parameters())
    layers = keys_and_values(model, **to_device(inputs, weights.device, weights.dtype))
    last_U = inputs["position_ids"].masked_fill(~is_token_UP, -1).amax(-1)  # of each axis, where there are several
    return Prefixes(layers, is_token_UP, 1 + (last_U if last_U.dim() == 1 else last_U.amax(0)))


def parts(placed: Sequence[Placed], device: torch.device) -> Iterator[slice]:
    """Yield runs of texts whose middles have as many tokens as should run at once, what is alike once; or one text."""
    at_once = _TOKENS_ON_CPU if device.type == "cpu" else _TOKENS_AT_ONCE
    start = total = 0
    for index, one in enumerate(placed):
        before = placed[index - 1]
        alike = num_shared(before.middle, one.middle) if index > start and before.prefix == one.prefix else 0
        if index > start and total + len(one.middle) - alike > at_once:
            yield slice(start, index)
            start, total, alike = index, 0, 0
        total += len(one.middle) - alike
    yield slice(start, len(placed))


def plant_behind(
    model: Any, prefixes: Prefixes, placed: Sequence[Placed], layers_of: Callable[[int], list[KeysAndValues]]
) -> Planted:
    """Lay the middles of some texts out behind their prefixes.

    Args:
        model: the model.
        prefixes: of all texts.
        placed: the texts, as `cut` sorts them.
        layers_of: keys and values of a prefix, by which of these texts is the first to have it.
    """
    groups = [list(group) for _, group in groupby(placed, key=lambda one: one.prefix)]
    forest = plant([[one.middle for one in group] for group in groups])
    seen, positions, first = [], [], 0
    for group, (start, stop) in zip(groups, forest.bounds, strict=True):
        behind = int(prefixes.behind_U[group[0].prefix])
        seen.append(Part(start, stop, layers_of(first)))
        positions += [behind + depth for depth in forest.depths[start:stop]]
        first += len(group)
    device = next(model.parameters()).device
    layout = lay_out(forest.paths, seen, device, model.dtype)
    ids_1T, position_1T = (torch.tensor([values], device=device) for values in (forest.tokens, positions))
    return Planted(ids_1T, position_1T, layout, forest.paths)


@torch.inference_mode()
def answer_states_behind(model: Any, rows: Sequence[Encoded], *, pad_id: int) -> Tensor:
    """Return the last hidden states [M, D] that predict the answer tokens of some examples, in their order.

    Questions behind one picture share it, and answers to one question share that too.
    """
    beginnings, placed = cut(rows)
    prefixes = run_prefixes(model, beginnings, pad_id)
    found: dict[int, Tensor] = {}
    for part in parts(placed, next(model.parameters()).device):
        some = placed[part]
        planted = plant_behind(model, prefixes, some, lambda first: prefixes.layers_of(some[first].prefix))  # noqa: B023
        with attending(model, planted.layout):
            states_1TD = backbone(model)(
                input_ids=planted.input_ids, position_ids=planted.position_ids, use_cache=False
            ).last_hidden_state  # fmt: skip
        for one, path in zip(some, planted.paths, strict=True):
            places = torch.tensor(path[len(path) - len(rows[one.row].answer_ids) :], device=states_1TD.device)
            found[one.row] = states_1TD[0].index_select(0, places)
    return torch.cat([found[row] for row in range(len(rows))])


class _EnoughError(Exception):
    """The last layer has made its keys and values."""


class _Caught(Cache):
    """Catches the keys and values that layers make, and ends the pass with the last of them."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self.made: list[KeysAndValues] = []
        self._num_layers = num_layers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what a layer made and return it: nothing came before."""
        self.made.append((key_states, value_states))
        if len(self.made) == self._num_layers:
            raise _EnoughError
        return key_states, value_states


def keys_and_values(model: Any, **inputs: Tensor) -> list[KeysAndValues]:
    """Return the keys and values [B, h, T, D] that every layer makes of some inputs; nothing behind them is computed.

    Raises:
        ValueError: some layers make none.
    """
    caught = _Caught(backbone(model).config.get_text_config().num_hidden_layers)
    with contextlib.suppress(_EnoughError):
        model(**inputs, past_key_values=caught, use_cache=True, logits_to_keep=1)
        raise ValueError(f"expected keys and values of every layer, found those of {len(caught.made)}")
    return caught.made


def _positions(model: Any, prefixes: Sequence[Encoded], inputs: dict[str, Tensor]) -> Tensor:
    """Return the positions of prefixes: [3, U, P] by the family's own index, or else counted, [U, P]."""
    rope_index = rope_index_of(model)
    if rope_index is None or not any(prefix.pictures for prefix in prefixes):
        return torch.arange(inputs["input_ids"].shape[1]).expand(len(prefixes), -1)
    known = {name: value for name, value in inputs.items() if name != "input_ids" and not value.is_floating_point()}
    position_AUP, _ = rope_index(inputs["input_ids"], **known)
    return position_AUP
