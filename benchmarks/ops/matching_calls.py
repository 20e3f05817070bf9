"""Counts what retrieval by a matching head asks of its encoders, in our way and in the released one.

    python -m benchmarks.ops.matching_calls                 # 200 texts x 200 clips, seconds on one core

A small random ALPRO scores every pair. The released way takes one clip after the other and pairs it with all texts, 64
pairs a call; each call encodes its texts and the clip anew. Ours encodes every text and clip once, and only pairs go
through the fusion layers. The command exits with an error where the scores differ.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastvtp.data.loader import VideoTextBatch
from fastvtp.evaluation.matching import encode_set, match_scores
from fastvtp.systems.alpro.fusion import AlproFusion
from fastvtp.systems.alpro.towers import AlproConfig
from fastvtp.systems.catalogue import build_model

RELEASED_PAIRS = 64  # `inference_batch_size` of its MSR-VTT settings
TOLERANCE = 1e-4  # of log-odds in float32: packed calls of other sizes round otherwise

_CONFIG = AlproConfig(
    num_frames=2,
    image_size=32,
    patch_size=16,
    width=64,
    depth=2,
    num_heads=2,
    drop_path=0.0,
    text_depth=2,
    fusion_depth=2,
    text_num_heads=2,
    text_hidden=128,
    text_dropout=0.0,
    projection_dim=32,
    max_text_length=30,
    vocab_size=500,
)


@dataclass(frozen=True)
class Counts:
    """The counts of an encoder are how often it was called, and how many texts or clips went through it."""

    calls: int
    sequences: int


@contextmanager
def counting(model: AlproFusion) -> Iterator[dict[str, Counts]]:
    """Count the calls of both encoders within the block; the dictionary, "text" and "video", is filled at its end."""
    calls, sequences, found = Counter[str](), Counter[str](), dict[str, Counts]()

    def note(name: str, count: int) -> None:
        calls[name] += 1
        sequences[name] += count

    def text(_: Any, arguments: tuple[Any, ...]) -> None:
        note("text", len(arguments[1].cu_seqlens) - 1)  # tokens, packing

    def video(_: Any, arguments: tuple[Any, ...]) -> None:
        note("video", len(arguments[0]))

    hooks = [
        model.text_encoder.register_forward_pre_hook(text),
        model.video_encoder.register_forward_pre_hook(video),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        found |= {name: Counts(calls[name], sequences[name]) for name in ("text", "video")}


def make_model() -> AlproFusion:
    """Return a random model, far enough from its initialisation that pairs score differently."""
    torch.manual_seed(0)
    model: AlproFusion = build_model(_CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_set(size: int, batch_size: int, *, seed: int = 0) -> list[VideoTextBatch]:
    """Return batches of `size` random clips in all, each with a random text of 5 to 30 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = torch.randint(5, 31, (size,), generator=generator).tolist()
    texts = [torch.randint(5, _CONFIG.vocab_size, (length,), generator=generator) for length in lengths]
    shape = (size, _CONFIG.num_frames, _CONFIG.image_size, _CONFIG.image_size, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    batches = []
    for step, rows in enumerate(torch.arange(size).split(batch_size)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        batches.append(
            VideoTextBatch(
                video[part],
                torch.cat(texts[part]),
                _offsets(lengths[part]),
                tuple(lengths[part]),
                max(lengths[part]),
                rows,
                [f"text {row}" for row in rows.tolist()],
                step,
            )
        )
    return batches


@torch.no_grad()
def released_scores(model: AlproFusion, batches: Sequence[VideoTextBatch]) -> Tensor:
    """Return the log-odds of every pair, [texts, clips]; every call encodes its texts and its clip anew."""
    lengths = [length for batch in batches for length in batch.text_lengths]
    ids = torch.cat([batch.input_ids for batch in batches]).split(lengths)
    clips = torch.cat([batch.video for batch in batches])
    scores = torch.empty(len(ids), len(clips))
    for place, clip in enumerate(clips):
        for some in torch.arange(len(ids)).split(RELEASED_PAIRS):
            ends = _offsets([lengths[text] for text in some.tolist()])
            longest = max(lengths[text] for text in some.tolist())
            tokens, _ = model.read_texts(torch.cat([ids[text] for text in some.tolist()]), ends, longest)
            clip_tokens, _ = model.read_clips(clip[None])
            index = torch.arange(len(some))
            scores[some, place] = model.score_pairs(
                tokens,
                clip_tokens,
                cu_seqlens=ends,
                max_seqlen=longest,
                text_index=index,
                clip_index=torch.zeros_like(index),
            )
    return scores


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the same pairs both ways, and print the calls of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=200, help="score so many texts against as many clips")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="encode so many clips and texts at a time in our way"
    )
    options = parser.parse_args(arguments)
    model = make_model()
    batches = make_set(options.size, options.batch_size)
    with counting(model) as ours:
        found, _ = match_scores(model, encode_set(model, batches, device="cpu", progress=False), progress=False)
    with counting(model) as released:
        expected = released_scores(model, batches)
    print(f"{options.size} x {options.size} pairs   released calls (sequences)   ours   fewer calls (sequences)")
    for name in ("text", "video"):
        old, new = released[name], ours[name]
        print(
            f"{name} encoder   {old.calls} ({old.sequences})   {new.calls} ({new.sequences})   "
            f"{old.calls / new.calls:.0f}x ({old.sequences / new.sequences:.0f}x)"
        )
    difference = (found - expected).abs().max().item()
    print(f"log-odds deviate by {expected.std():.2g} among pairs, between the two ways by at most {difference:.1e}")
    if difference > TOLERANCE:
        sys.exit(f"the scores differ by {difference:.1e}, expected at most {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
