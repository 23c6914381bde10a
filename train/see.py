"""Teach a tiny vision tower to see before any language is learnt, as CLIP towers are pretrained before LLaVA is.

Every patch learns to tell which words describe the picture (a multi-label bag of words over described portraits), so
that each visual token carries what a face looks like. Without it the language model of the embedded benchmark needs
ten times the steps to notice that pictures differ at all. Only tiny models need this; real ones come with a tower.
B pictures, P patches, W words, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.example import Example
from ..models.augment import augment
from ..models.load import Loaded

NUM_STEPS = 1200
BATCH_SIZE = 64
LEARNING_RATE = 2e-3


def learn_to_see(loaded: Loaded, described: Sequence[Example], *, seed: int) -> None:
    """Train the vision tower in place on pictures and the words that describe them."""
    pixels_BCHW, labels_BW = _pictures_and_words(loaded, described)
    tower, layer = loaded.model.model.vision_tower, loaded.model.config.vision_feature_layer
    torch.manual_seed(seed)
    head = nn.Linear(tower.config.hidden_size, labels_BW.shape[1])
    share_W = labels_BW.mean(0).clamp(1e-3, 1 - 1e-3)
    nn.init.zeros_(head.weight)
    head.bias.data = torch.logit(share_W)
    head.to(loaded.device)
    weights = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=NUM_STEPS + 1, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(NUM_STEPS), desc="see", unit="step")
    for step in bar:
        chosen = torch.randint(0, len(pixels_BCHW), (BATCH_SIZE,), generator=generator)
        shown_BCHW = augment(pixels_BCHW[chosen], seed, step).to(loaded.device)
        seen_BPD = tower(shown_BCHW, output_hidden_states=True).hidden_states[layer][:, 1:]
        logits_BPW = head(seen_BPD)
        target_BPW = labels_BW[chosen].to(loaded.device)[:, None].expand_as(logits_BPW)
        loss = (
            nn.functional.binary_cross_entropy_with_logits(logits_BPW, target_BPW, reduction="sum")
            / logits_BPW[..., 0].numel()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(nats=f"{float(loss.detach()):.2f}")


def _pictures_and_words(loaded: Loaded, described: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the distinct pictures, and which (question, word) pairs their descriptions hold."""
    words_of: dict[str, set[tuple[str, str]]] = {}
    pixels: dict[str, Tensor] = {}
    for example in described:
        image = example.images[0]
        words = {(example.question, word.strip(".,")) for word in example.answer.split()}
        words_of.setdefault(image.sha256, set()).update(words)
        if image.sha256 not in pixels:
            pixels[image.sha256] = loaded.encoder.picture(image).tensors["pixel_values"]
    vocabulary = {word: index for index, word in enumerate(sorted(set().union(*words_of.values())))}
    labels_BW = torch.zeros(len(pixels), len(vocabulary))
    for row, digest in enumerate(pixels):
        labels_BW[row, [vocabulary[word] for word in words_of[digest]]] = 1
    return torch.cat(list(pixels.values())), labels_BW
