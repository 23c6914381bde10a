"""Continue prompts greedily, many at a time, every image run once: what `model.generate` says to each prompt alone.

Images, and what stands behind them up to the last token, run as `behind.py` has it, and leave keys and values. Then all
go on a token at a time, the last of the prompt first, each with keys and values of its own (`room.py`). A sequence that
has ended leaves, and one from the end takes its place, so short replies do not wait for long ones. Which models this
holds for is `decodable.py`'s to say.
"""

# N sequences, n of them, P tokens of the longest prefix, S tokens of the longest middle (what is between prefix and
# last token), R columns of prefix and middle, V vocabulary, m sequences that move

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from .behind import KeysAndValues, Placed, Prefixes, cut, keys_and_values, parts, plant_behind, run_prefixes
from .encode import Encoded
from .room import Rooms, attending_alone, moved
from .two_part import attending


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
        beginnings, placed = cut(rows)
        prefixes = run_prefixes(model, beginnings, pad_id)
        which_N = torch.tensor([one.prefix for one in placed])
        length_N = torch.tensor([len(one.middle) for one in placed])
        seen_NR = _seen(prefixes.is_token_UP[which_N], length_N)
        device = next(model.parameters()).device
        self.rows = [one.row for one in placed]
        self._model = model
        self._rooms = Rooms(prefixes.layers, which_N, seen_NR)
        self._position_N = (prefixes.behind_U[which_N] + length_N - 1).to(device)
        longest = int(length_N.max())
        for part in parts(placed, device):
            self._run_middles(prefixes, placed, part, longest)
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

    def _run_middles(self, prefixes: Prefixes, placed: Sequence[Placed], part: slice, longest: int) -> None:
        """Run the middles of some places behind their prefixes, and put their keys and values into the room."""

        def layers_of(first: int) -> list[KeysAndValues]:
            place = part.start + first
            return self._rooms.first_columns(place, prefixes.length(placed[place].prefix))

        planted = plant_behind(self._model, prefixes, placed[part], layers_of)
        with attending(self._model, planted.layout):
            made = keys_and_values(self._model, input_ids=planted.input_ids, position_ids=planted.position_ids)
        paths_nS = [[*path[:1] * (longest - len(path)), *path] for path in planted.paths]  # what fills them is hidden
        self._rooms.fill(part, made, torch.tensor(paths_nS, device=planted.input_ids.device))


def _seen(is_token_NP: Tensor, length_N: Tensor) -> Tensor:
    """Return which columns of prefix and middle [N, R] the tokens behind each middle may see."""
    before, longest = is_token_NP.shape[1], int(length_N.max())
    seen_NR = torch.arange(before + longest) >= before + longest - length_N[:, None]
    seen_NR[:, :before] = is_token_NP
    return seen_NR
