"""The frozen language model against its own logits, one text and one token at a time."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fastvtp.errors import UserError
from fastvtp.systems.captioner.language_model import (
    IGNORED,
    LanguageModel,
    few_shot_prompt,
)
from tests.systems.captioner.languages import (
    make_language_model,
    make_tokenizer,
    transformers,
)

PREFIX = 5


@pytest.fixture(params=["llama", "gpt2"])
def language(request) -> LanguageModel:
    return make_language_model(request.param)


def prefixes(count: int) -> torch.Tensor:
    return torch.randn(count, PREFIX, 32, generator=torch.Generator().manual_seed(1))


def log_probabilities(language: LanguageModel, prefix: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Of the token after each row of the prefix [P, W] and each id: [P + ids, V]; no batch, no cache, no mask."""
    rows = torch.cat([prefix, language.embed(torch.tensor(ids, dtype=torch.long))])
    return language.model(inputs_embeds=rows[None], use_cache=False).logits[0].log_softmax(-1)


def likelihood_of(language: LanguageModel, prefix: torch.Tensor, prompt: str, text: str) -> torch.Tensor:
    """Log-likelihood of each token of the text: [tokens]."""
    before, after = language.tokenize(prompt, text)
    found = log_probabilities(language, prefix, [*before, *after])
    first = PREFIX + len(before) - 1
    return torch.stack([found[first + place, token] for place, token in enumerate(after)])


def test_only_captions_and_their_end_are_counted(language):
    prompts, captions = ["", "what ?", "a"], ["a red ball", "blue", "green box moves"]
    prefix = prefixes(3)
    texts = language.texts(prompts, captions, max_tokens=8)
    loss, accuracy = language.loss(prefix, texts)
    expected, right = [], []
    for row, prompt, caption in zip(prefix, prompts, captions, strict=True):
        before, after = language.tokenize(prompt, caption)
        after = [*after, 2]
        found = log_probabilities(language, row, [*before, *after])[PREFIX + len(before) - 1 : -1]
        expected.append(cross_entropy(found, torch.tensor(after), reduction="none"))
        right += (found.argmax(-1) == torch.tensor(after)).tolist()
    torch.testing.assert_close(loss, torch.cat(expected).mean())
    assert accuracy.item() == pytest.approx(sum(right) / len(right))
    assert (texts.labels != IGNORED).sum() == 3 + 1 + 3 + 3


def test_without_a_prefix_the_first_token_is_given():
    language = make_language_model("llama")
    texts = language.texts(["", "a"], ["red ball", "blue box"], max_tokens=8)
    loss, _ = language.loss(None, texts)
    expected = []
    for ids, labels in zip(texts.input_ids, texts.labels, strict=True):
        kept = int((labels != IGNORED).nonzero().max()) + 1
        found = language.model(input_ids=ids[None, :kept]).logits[0].log_softmax(-1)
        expected += [-found[place - 1, labels[place]] for place in range(kept) if labels[place] != IGNORED]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_long_captions_are_cut_and_then_do_not_end(language):
    texts = language.texts([""], ["a red ball moves"], max_tokens=3)
    kept = texts.labels[texts.labels != IGNORED].tolist()
    assert kept == language.tokenize("", "a red ball moves")[1][:3]
    assert 2 in language.texts([""], ["a red ball moves"], max_tokens=5).labels


def test_gradients_reach_the_prefix_and_not_the_model(language):
    prefix = prefixes(2).requires_grad_()
    language.loss(prefix, language.texts(["", "a"], ["red ball", "box"], max_tokens=8))[0].backward()
    assert prefix.grad is not None
    assert (prefix.grad.abs().sum((1, 2)) > 0).all()
    assert all(parameter.grad is None for parameter in language.model.parameters())
    assert not language.model.training


def test_greedy_takes_the_likeliest_token_whatever_the_batch(language):
    prompts = ["", "what ? answer :", "a"]
    prefix = prefixes(3)
    together = language.generate(prefix, prompts, max_tokens=6)
    for row, prompt, found in zip(prefix, prompts, together, strict=True):
        ids, written = language.tokenize(prompt, "")[0], []
        for _ in range(6):
            written.append(int(log_probabilities(language, row, [*ids, *written])[-1].argmax()))
            if written[-1] == 2:
                break
        assert found == language.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert len(set(together)) > 1


def test_beams_find_likelier_captions_than_greedy():
    """With as many beams as the vocabulary has tokens and two tokens to write, the search is exhaustive."""
    language = make_language_model("llama")
    prefix = prefixes(6)
    found = language.generate(prefix, [""] * 6, max_tokens=2, num_beams=15)
    differ = 0
    for row, text, greedy in zip(prefix, found, language.generate(prefix, [""] * 6, max_tokens=2), strict=True):
        first = log_probabilities(language, row, [1])[-1]
        best = {(2,): float(first[2])}
        for one in set(range(15)) - {2}:
            second = log_probabilities(language, row, [1, one])[-1]
            best |= {(one, two): float(first[one] + second[two]) / 2 for two in range(15)}
        ids = max(best, key=best.__getitem__)
        assert text == language.tokenizer.decode(ids, skip_special_tokens=True).strip()
        differ += text != greedy
    assert differ


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_candidates_are_ranked_by_their_likelihood(language, length):
    prefix, prompts = prefixes(2), ["what ? answer :", "a"]
    candidates = [("red", "blue", "red ball", "a blue box moves", "green box"), ("ball", "green box grows")]
    found = language.log_likelihoods(prefix, prompts, candidates, length=length, batch_size=2)
    for row, prompt, listed, scores in zip(prefix, prompts, candidates, found, strict=True):
        tokens = [likelihood_of(language, row, prompt, text) for text in listed]
        expected = torch.stack([one.sum() if length == "sum" else one.mean() for one in tokens])
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_tokenized_with_what_follows():
    llama, gpt2 = make_language_model("llama"), make_language_model("gpt2")
    assert llama.tokenize("what ?", "red") == ([1, 11, 12], [4])
    assert llama.tokenize("what ? ", "red") == llama.tokenize("what ?", "red")
    assert gpt2.tokenize("", "red") == ([], [4])
    assert llama.tokenize("", "red") == ([1], [4])


def test_few_shot_prompts():
    assert few_shot_prompt("what?") == "Question: what? Answer:"
    solved = [("who?", "a man"), ("where?", "here")]
    assert few_shot_prompt("what?", solved, "Q: {question} A:") == ("Q: who? A: a man\nQ: where? A: here\nQ: what? A:")


def test_what_cannot_be_done_is_one_line(language, tmp_path):
    with pytest.raises(UserError, match="69 rows of clip and text exceed the language model's 64 positions"):
        language.generate(torch.zeros(1, 60, 32), ["a" if language.tokenize("", "")[0] == [] else ""], max_tokens=8)
    with pytest.raises(UserError, match="length must be 'sum' or 'mean', got 'words'"):
        language.log_likelihoods(prefixes(1), ["a"], [["red"]], length="words")
    with pytest.raises(UserError, match="candidates must have at least one token, got ' '"):
        language.log_likelihoods(prefixes(1), ["a"], [["red", " "]])
    with pytest.raises(UserError, match="without a clip a text needs a prompt"):
        make_language_model("gpt2").generate(None, [""])
    endless = make_tokenizer(start=True)
    endless.eos_token = None
    with pytest.raises(UserError, match="its tokenizer has no end token"):
        LanguageModel(language.model, endless)


def test_a_folder_is_read_without_running_anything_of_it(language, tmp_path):
    folder = tmp_path / "model"
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    again = LanguageModel.load(folder)
    prompts = ["a", "what ?"]
    assert again.generate(prefixes(2), prompts) == language.generate(prefixes(2), prompts)
    half, prefix = LanguageModel.load(folder, dtype="bfloat16"), prefixes(2).requires_grad_()
    assert half.model.dtype == torch.bfloat16
    exact, rounded = (each.loss(prefix, each.texts(prompts, ["red", "a box"], 8))[0] for each in (language, half))
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    rounded.backward()
    assert prefix.grad is not None
    assert len(half.generate(prefix.detach(), prompts)) == 2

    # pickled weights are not opened
    torch.save(language.model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is no causal language model that can be read") as caught:
        LanguageModel.load(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"language_model=.*absent: expected a folder with config.json"):
        LanguageModel.load(tmp_path / "absent")
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="is no causal language model"):
        LanguageModel.load(folder)
    assert transformers.__version__
