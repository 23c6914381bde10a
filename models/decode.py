"""Continue prompts greedily, many at a time, every image run once: what `model.generate` says to each prompt alone.

What stands up to the last image runs once a picture, those of a batch side by side. What follows runs behind it as
texts do for a teacher (`forest.py`, `two_part.py`): without padding, beginnings that are alike once, and so many tokens
at once that nothing passing is large. Of both only keys and values are wanted, so the last layer is left as soon as it
has made its own. Then all go on a token at a time, the last of the prompt first, each with keys and values of its own
(`room.py`). A sequence that has ended leaves, and one from the end takes its place, so short replies do not wait for
long ones. Positions are counted or the family's own (`positions.py`). Which models this holds for is `decodable.py`'s
to say.
"""

# U prefixes, P tokens of the longest, N sequences, n of them, S tokens of the longest middle (what is between prefix
# and last token), T tokens of some middles end to end, R columns of prefix and middle, B rows of a batch, h key-value
# heads, D head size, A axes of positions, V vocabulary, m sequences that move

import contextlib
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from .encode import Encoded, collate
from .forest import plant
from .forward import to_device
from .positions import backbone, rope_index_of
from .prefix import split_at_image
from .room import KeysAndValues, Rooms, attending_alone, moved
from .two_part import Part, attending, lay_out

_TOKENS_AT_ONCE = 4096  # of middles: enough to keep a GPU busy


@torch.inference_mode()
def greedy(
    model: Any, rows: Sequence[Encoded], *, stop_ids: Collection[int], pad_id: int, max_new_tokens: int
) -> list[list[int]]:
    """Return the likeliest continuation of each prompt, token by token, up to and with its stop token.

    Args:
        model: one that `reason_against` has nothing against.
        rows: prompts without answers.
        stop_ids: tokens that end a continuation.
        pad_id: what fills up prefixes of several lengths; nothing sees it.
        max_new_tokens: the most tokens of a continuation, at least one.
    """
    batch = Sequences(model, rows, pad_id=pad_id)
    replies: list[list[int]] = [[] for _ in rows]
    while True:
        tokens_N = batch.logits_NV.float().argmax(-1)
        tokens = tokens_N.tolist()
        for row, token in zip(batch.rows, tokens, strict=True):
            replies[row].append(token)
        places = _closed_up([token not in stop_ids for token in tokens])
        if not places or len(replies[batch.rows[places[0]]]) == max_new_tokens:
            return replies
        if len(places) < len(tokens):
            batch.keep(places)
            tokens_N = tokens_N[places]
        batch.advance(tokens_N)


def _closed_up(going: Sequence[bool]) -> list[int]:
    """Return which place each sequence that goes on had, in a batch where those from the end fill what is free."""
    places = [place for place, goes in enumerate(going) if goes]
    from_end = reversed(places)
    return [place if going[place] else next(from_end) for place in range(len(places))]


class Sequences:
    """Prompts that go on side by side: `rows` says which stands at each place, `logits_NV` what follows it."""

    def __init__(self, model: Any, rows: Sequence[Encoded], *, pad_id: int) -> None:
        prefixes, placed = _cut(rows)
        ran = _run_prefixes(model, prefixes, pad_id)
        which_N = torch.tensor([one.prefix for one in placed])
        length_N = torch.tensor([len(one.middle) for one in placed])
        seen_NR = _seen(ran.is_token_UP[which_N], length_N)
        device = next(model.parameters()).device
        self.rows = [one.row for one in placed]
        self._model = model
        self._rooms = Rooms(ran.layers, which_N, seen_NR)
        self._position_N = (ran.behind_U[which_N] + length_N - 1).to(device)
        longest = int(length_N.max())
        for part in _parts(length_N.tolist(), _TOKENS_AT_ONCE):
            self._run_middles(ran, placed, part, longest)
        self._rooms.close_middles(longest)
        self.advance(torch.tensor([one.last for one in placed], device=device))

    def advance(self, tokens_N: Tensor) -> None:
        """Write a token behind every sequence, and find what follows it."""
        self._position_N = self._position_N + 1
        with attending_alone(self._model):
            logits_N1V: Tensor = self._model(
                input_ids=tokens_N[:, None], position_ids=self._position_N[:, None],
                attention_mask=self._rooms.hidden_from_next(), past_key_values=self._rooms, use_cache=True,
                logits_to_keep=1,
            ).logits  # fmt: skip
        self.logits_NV = logits_N1V[:, -1]

    def keep(self, places: Sequence[int]) -> None:
        """Let sequences leave but those at some places; they come to stand in the order given (`_closed_up`'s)."""
        changed = [new for new, old in enumerate(places) if new != old]
        new_m = torch.tensor(changed, device=self._position_N.device, dtype=torch.long)
        old_m = torch.tensor([places[new] for new in changed], device=self._position_N.device, dtype=torch.long)
        self._rooms.keep(new_m, old_m, len(places))
        self._position_N = moved(self._position_N, new_m, old_m, len(places))
        self.rows = [self.rows[place] for place in places]

    def _run_middles(self, ran: "_Ran", placed: Sequence["_Placed"], part: slice, longest: int) -> None:
        """Run the middles of some places behind their prefixes, and put their keys and values into the room."""
        groups = [list(group) for _, group in groupby(placed[part], key=lambda one: one.prefix)]
        forest = plant([[one.middle for one in group] for group in groups])
        seen, positions, first = [], [], part.start
        for group, (start, stop) in zip(groups, forest.bounds, strict=True):
            length, behind = int(ran.is_token_UP[group[0].prefix].sum()), int(ran.behind_U[group[0].prefix])
            seen.append(Part(start, stop, self._rooms.first_columns(first, length)))
            positions += [behind + depth for depth in forest.depths[start:stop]]
            first += len(group)
        device = self._position_N.device
        with attending(self._model, lay_out(forest.paths, seen, device, self._model.dtype)):
            made = _keys_and_values(
                self._model, input_ids=torch.tensor([forest.tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
            )  # fmt: skip
        paths_nS = [[*path[:1] * (longest - len(path)), *path] for path in forest.paths]  # what fills them is hidden
        self._rooms.fill(part, made, torch.tensor(paths_nS, device=device))


class _Placed(NamedTuple):
    """A prompt cut in three: which prefix it has, what follows, its last token; and which of the prompts it is."""

    prefix: int
    middle: tuple[int, ...]
    last: int
    row: int


class _Ran(NamedTuple):
    """Prefixes that ran: keys and values [U, h, P, D], which columns are tokens, and the position behind each."""

    layers: list[KeysAndValues]
    is_token_UP: Tensor
    behind_U: Tensor


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


def _keys_and_values(model: Any, **inputs: Tensor) -> list[KeysAndValues]:
    """Return the keys and values [B, h, T, D] that every layer makes of some inputs; nothing behind them is computed.

    Raises:
        ValueError: some layers make none.
    """
    caught = _Caught(backbone(model).config.get_text_config().num_hidden_layers)
    with contextlib.suppress(_EnoughError):
        model(**inputs, past_key_values=caught, use_cache=True, logits_to_keep=1)
        raise ValueError(f"expected keys and values of every layer, found those of {len(caught.made)}")
    return caught.made


def _cut(rows: Sequence[Encoded]) -> tuple[list[Encoded], list[_Placed]]:
    """Cut prompts after their last images and before their ends; those with one beginning are neighbors, sorted.

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
        placed.append(_Placed(found[key], suffix[:-1], suffix[-1], index))
    return prefixes, sorted(placed)


def _run_prefixes(model: Any, prefixes: Sequence[Encoded], pad_id: int) -> _Ran:
    """Run prompt starts and images as one batch; causal attention hides the padding behind them."""
    inputs = collate(prefixes, pad_id=pad_id, side="right")
    is_token_UP = inputs["attention_mask"].bool()
    inputs["position_ids"] = _positions(model, prefixes, inputs)
    weights = next(model.parameters())
    layers = _keys_and_values(model, **to_device(inputs, weights.device, weights.dtype))
    last_U = inputs["position_ids"].masked_fill(~is_token_UP, -1).amax(-1)  # of each axis, where there are several
    return _Ran(layers, is_token_UP, 1 + (last_U if last_U.dim() == 1 else last_U.amax(0)))


def _positions(model: Any, prefixes: Sequence[Encoded], inputs: dict[str, Tensor]) -> Tensor:
    """Return the positions of prefixes: [3, U, P] by the family's own index, or else counted, [U, P]."""
    rope_index = rope_index_of(model)
    if rope_index is None or not any(prefix.pictures for prefix in prefixes):
        return torch.arange(inputs["input_ids"].shape[1]).expand(len(prefixes), -1)
    known = {name: value for name, value in inputs.items() if name != "input_ids" and not value.is_floating_point()}
    position_AUP, _ = rope_index(inputs["input_ids"], **known)
    return position_AUP


def _seen(is_token_NP: Tensor, length_N: Tensor) -> Tensor:
    """Return which columns of prefix and middle [N, R] the tokens behind each middle may see."""
    before, longest = is_token_NP.shape[1], int(length_N.max())
    seen_NR = torch.arange(before + longest) >= before + longest - length_N[:, None]
    seen_NR[:, :before] = is_token_NP
    return seen_NR


def _parts(lengths: Sequence[int], at_once: int) -> Iterator[slice]:
    """Yield runs of places whose middles have so many tokens together, or one place."""
    start = total = 0
    for place, length in enumerate(lengths):
        if place > start and total + length > at_once:
            yield slice(start, place)
            start, total = place, 0
        total += length
    yield slice(start, len(lengths))
