"""Tiny causal language models of `transformers` with a tokenizer of their own; importing this needs the library."""

import pytest
import torch

from fastvtp.systems.captioner.language_model import LanguageModel

transformers = pytest.importorskip("transformers")

WORDS = ("a", "red", "blue", "green", "ball", "box", "moves", "grows", "what", "?", "answer", ":")


def make_tokenizer(*, start: bool):
    """A word a token; `start`: texts begin with a start token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate(("<unk>", "<start>", "<end>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", unk_token="<unk>"
    )


def make_language_model(kind: str = "llama", width: int = 32) -> LanguageModel:
    """Random weights, the same in every call: "llama", whose texts have a start token, or "gpt2", whose have none."""
    torch.manual_seed(0)
    size = 3 + len(WORDS)
    # far from uniform, so that no two candidates are near each other
    common = {"vocab_size": size, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.5}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=width, n_layer=2, n_head=2, n_positions=64, **common)
        network = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            **common,
        )
        network = transformers.LlamaForCausalLM(config)
    return LanguageModel(network, make_tokenizer(start=kind == "llama"))
