"""Make a cache of real rows over LLaVA's vocabulary size, for measuring what a row costs on disk.

LLaVA-1.5's weights are not part of this repository, and rows of the embedded benchmark know a thousand tokens only. So
a small causal language model is trained here on English text that every machine with viker has: the docstrings of the
installed libraries, under a byte-level BPE of 32 064 tokens (LLaVA-1.5's number). Its rows are averaged over eight
different preceding passages, as a teacher's are over eight references, and cut by the product's own code. They are rows
of a trained model over a vocabulary of that size, not LLaVA's own: `benchmarks/cache.md` says what that leaves open.

    python benchmarks/real_rows.py OUT [--steps 600] [--rows 65536] [--sharpness 1]

`--sharpness` divides the temperature before averaging: a large model is surer of its tokens than this one.
"""

# N rows, V vocabulary, T tokens of a passage, B passages, k references

import argparse
import ast
import hashlib
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from viker.models.tiny import train_tokenizer
from viker.precompute.cache import lineage_of, make_fingerprint, person_digest, row_key, token_hash
from viker.precompute.engines.rows import average
from viker.precompute.topk import rows_from_probabilities
from viker.precompute.writing.store import CacheBuilder, Sample

VOCABULARY = 32064
PASSAGE, ANSWER, REFERENCES, TOP_K = 96, 32, 8, 64


def main() -> None:
    """Train the model, or load the one an earlier call trained, and write a cache of its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--sharpness", type=float, default=1.0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    ids_T = tokens_of_docstrings(asked.out / "tokens.pt")
    cut = len(ids_T) * 9 // 10
    model = trained_model(asked.out / "model", ids_T[:cut], asked.steps)
    print(write_cache(asked.out / f"caches-{asked.sharpness:g}", model, ids_T[cut:], asked.rows, asked.sharpness))


def docstrings() -> Iterator[str]:
    """Yield every docstring of the installed libraries, in the order of their files."""
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 200:
                    yield text


def tokens_of_docstrings(path: Path) -> Tensor:
    """Return the ids of all distinct docstrings end to end, in an order decided by their digests."""
    if not path.exists():
        texts = sorted(set(docstrings()), key=lambda text: hashlib.sha256(text.encode()).digest())
        tokenizer = train_tokenizer(texts, VOCABULARY)
        encoded = tokenizer.backend_tokenizer.encode_batch(texts)
        torch.save(torch.tensor([token for text in encoded for token in text.ids], dtype=torch.int32), path)
    ids_T: Tensor = torch.load(path, weights_only=True)
    return ids_T.long()


def trained_model(path: Path, ids_T: Tensor, steps: int) -> Any:
    """Return a small causal model trained on a stream of ids."""
    if path.exists():
        return LlamaForCausalLM.from_pretrained(path).eval()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
            tie_word_embeddings=True, max_position_embeddings=256,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    bar = tqdm(range(steps), unit="step", desc="language model")
    for _ in bar:
        starts_B = torch.randint(0, len(ids_T) - PASSAGE - ANSWER, (12,))
        batch_BT = torch.stack([ids_T[start : start + PASSAGE + ANSWER] for start in starts_B.tolist()])
        loss = model(input_ids=batch_BT, labels=batch_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(nats=f"{loss.item():.2f}")
    model.save_pretrained(path)
    return model.eval()


@torch.inference_mode()
def averaged_rows(model: Any, prefixes_kT: Tensor, answer_M: Tensor, sharpness: float) -> dict[str, Tensor]:
    """Return the rows of an answer behind k different passages."""
    inputs_kT = torch.cat([prefixes_kT, answer_M.expand(len(prefixes_kT), -1)], dim=1)
    logits_kMV = model(input_ids=inputs_kT, logits_to_keep=len(answer_M) + 1).logits[:, :-1]
    found = average(torch.log_softmax(logits_kMV.float() * sharpness, dim=-1))
    return rows_from_probabilities(found.mean_MV, found.mean_entropy_M, answer_M, TOP_K)


def write_cache(home: Path, model: Any, ids_T: Tensor, num_rows: int, sharpness: float) -> Path:
    """Write a cache of answers of 32 tokens, each behind eight passages drawn from the held-out text."""
    generator = torch.Generator().manual_seed(0)
    starts_n = torch.randperm(len(ids_T) // ANSWER - 8, generator=generator)[: num_rows // ANSWER] * ANSWER
    answers = {row_key([], ids_T[start : start + ANSWER].tolist(), None): int(start) for start in starts_n}
    fingerprint = make_fingerprint(
        {"weights": f"docstrings {sharpness:g}", "tokenizer": "docstrings", "processor": "", "rendering": {}},
        {
            "intervention": {"kind": "self", "answers": "own"},
            "draw": {"policy": "none", "seed": 0, "num_references": 0},
            "pool": None,
        },
        top_k=TOP_K, vocab_size=VOCABULARY, teacher_dtype="float32", logprob_dtype="float16", row_keys=answers,
    )  # fmt: skip
    lineage = lineage_of(fingerprint)
    samples = [
        Sample(key, person_digest(lineage, "nobody"), token_hash(lineage, [], ids_T[at : at + ANSWER].tolist()), ANSWER)
        for key, at in answers.items()
    ]
    builder = CacheBuilder(home, fingerprint, {"made_by": "benchmarks/real_rows.py"}, samples)
    started = time.time()
    for block in tqdm(range(len(builder.blocks)), unit="block", desc="rows"):
        if not builder.claim(block):
            continue
        rows = []
        for sample in builder.samples[slice(*builder.blocks[block])]:
            at = answers[sample.row_key]
            passages_k = torch.randint(0, len(ids_T) - PASSAGE, (REFERENCES,), generator=generator).tolist()
            prefixes_kT = torch.stack([ids_T[start : start + PASSAGE] for start in passages_k])
            rows.append(averaged_rows(model, prefixes_kT, ids_T[at : at + ANSWER], sharpness))
        builder.write_block(block, {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]})
    root = builder.assemble()
    print(f"{time.time() - started:.0f} s", file=sys.stderr)
    return root


if __name__ == "__main__":
    main()
