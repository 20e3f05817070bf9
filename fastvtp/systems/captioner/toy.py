"""What `videoprism_captioning_tiny` needs and `fastvtp demo` does not make: captions in fixed words, which can be
exactly right, and a toy causal language model that has read them and seen no clip.

    python -m fastvtp.systems.captioner.toy runs/demo/data runs/captioning_toy

The folder then holds train.jsonl, test.jsonl, and language_model, as `transformers` keeps one.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastvtp.data.formats.source import read_lines
from fastvtp.data.questions import load_questions
from fastvtp.data.synthetic import SyntheticDataset
from fastvtp.files import write_atomically
from fastvtp.systems.captioner.language_model import (
    LanguageModel,
    PromptedTexts,
    few_shot_prompt,
)
from fastvtp.systems.captioner.model import VideoCaptionerConfig

_START, _END = "<start>", "<end>"
_VERBS = {
    **{way: f"moves {way}" for way in ("left", "right", "up", "down")},
    **{change: f"{change}s" for change in ("grow", "shrink", "appear")},
    "vanish": "vanishes",
    **{turn: f"orbits {turn}" for turn in ("clockwise", "anticlockwise")},
}


def plain_caption(scene: Mapping[str, Any]) -> str:
    """Return the colour, act and background of a scene with one object, of a synthetic list's field "scene"."""
    (item,) = scene["objects"]
    return f"a {item['colour']} object {_VERBS[item['motion']]} over {scene['background']['colour']}"


def write_plain_captions(source: Path, target: Path) -> list[str]:
    """Write a list with a plain caption for each clip of one object of a synthetic list; returns the captions."""
    rows = []
    for _, fields in read_lines(source):
        if len(fields["scene"]["objects"]) == 1:
            video = os.path.relpath(source.parent / fields["video"], target.parent)
            rows.append({"id": fields["id"], "video": video, "caption": plain_caption(fields["scene"])})
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return [row["caption"] for row in rows]


def question_texts(path: Path) -> list[str]:
    """Return the questions of a list with their answers, in a captioner's words."""
    questions, template = load_questions(path), VideoCaptionerConfig.question_template
    return [
        f"{few_shot_prompt(record.captions[0], template=template)} {answer}"
        for record, answer in zip(questions.records, questions.answers, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """The sizes of a toy language model, and how it is trained."""

    width: int = 128
    depth: int = 2
    vocab_size: int = 500
    """Most entries of its tokenizer."""
    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


def train_toy_language_model(
    texts: Sequence[str], folder: str | Path, config: ToyConfig, *, progress: bool = True
) -> float:
    """Train a small Llama and its byte-level tokenizer on `texts` alone, write both to `folder`, and return the last
    loss: the mean cross-entropy of a token.

    About two minutes on one CPU core, for the demo's captions and questions.
    """
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import (  # pyright: ignore[reportMissingImports]
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(texts, config.vocab_size, special_tokens=[_START, _END], show_progress=False)
    start, end = learner.token_to_id(_START), learner.token_to_id(_END)
    learner.post_processor = processors.TemplateProcessing(single=f"{_START} $A", special_tokens=[(_START, start)])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learner._tokenizer, bos_token=_START, eos_token=_END)
    torch.manual_seed(config.seed)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=learner.get_vocab_size(),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.width // 32,
            num_key_value_heads=config.width // 32,
            max_position_embeddings=1024,
            bos_token_id=start,
            eos_token_id=end,
            tie_word_embeddings=True,
        )
    )
    language = LanguageModel(network, tokenizer)
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.1
    )
    loss = torch.zeros(())
    for _ in (bar := tqdm(range(config.steps), desc="toy language model", unit="step", disable=not progress)):
        chosen = [texts[int(place)] for place in torch.randint(len(texts), (config.batch_size,))]
        loss, _ = language.loss(None, _documents(language, chosen))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss.item()


def _documents(language: LanguageModel, texts: Sequence[str]) -> PromptedTexts:
    """Return each text between start and end token, every other behind its own words, which as such are not to be
    predicted.

    Real text repeats itself, and a language model learns from that to look back; one that never had to would not
    look at a prefix either.
    """
    bodies = [language.tokenize("", text) for text in texts]
    rows = [[*(after if place % 2 else ()), *start, *after] for place, (start, after) in enumerate(bodies)]
    return language.pad(
        [(row[: -len(after)], [*after, language.end]) for row, (_, after) in zip(rows, bodies, strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain captions, and a toy language model that has read them.")
    parser.add_argument("data", type=Path, help="folder of a synthetic data set, such as runs/demo/data")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dataset = SyntheticDataset(options.data)
    captions = write_plain_captions(dataset.train, options.folder / "train.jsonl")
    write_plain_captions(dataset.test, options.folder / "test.jsonl")
    questions = question_texts(dataset.train_questions)
    texts = [*questions, *captions * max(len(questions) // len(captions), 1)]  # half of what it reads, each
    config = ToyConfig(steps=options.steps, seed=options.seed)
    loss = train_toy_language_model(texts, options.folder / "language_model", config)
    read = f"{len(captions)} captions and {len(questions)} questions"
    print(f"a language model that has read {read}, loss {loss:.3f}, is in {options.folder}/language_model")


if __name__ == "__main__":
    main()
