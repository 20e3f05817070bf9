"""A frozen causal language model of `transformers`, from a local folder.

Shape legend: B = texts, P = rows of a prefix, L = tokens of the longest text, W = the model's width.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from fastvtp.errors import UserError
from fastvtp.modules.precision import wide
from fastvtp.modules.rest_of_step import ALONE, RestOfStep

IGNORED = -100
"""The label of a token that is not to be predicted, as in `cross_entropy`."""


@dataclass(frozen=True)
class PromptedTexts:
    """Prompts, each with the text that is to follow it, padded behind.

    input_ids: int64 [B, L]. present: bool [B, L], False at padding. labels: int64 [B, L], the ids of the tokens that
    are to be predicted, `IGNORED` elsewhere.
    """

    input_ids: Tensor
    present: Tensor
    labels: Tensor

    @property
    def count(self) -> Tensor:
        """The number of tokens that are to be predicted, int64 []."""
        return (self.labels != IGNORED).sum()


class LanguageModel:
    """A causal language model that is never trained, and its tokenizer.

    model: a `PreTrainedModel` with a language head. tokenizer: a `PreTrainedTokenizerBase`. A prompt begins as the
    tokenizer begins a text (with its start token, where it writes one), and what follows it is tokenized together with
    it.
    """

    def __init__(self, model: Any, tokenizer: Any):
        if tokenizer.eos_token_id is None:
            raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no end token, so that no caption would end")
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.end: int = tokenizer.eos_token_id
        begun = tokenizer("").input_ids[:1]
        self._start: list[int] = begun if begun == [tokenizer.bos_token_id] else []

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu", dtype: str = "float32") -> "LanguageModel":
        """Load the model of a local folder with config.json, safetensors and tokenizer; no code of the folder is run.

        dtype: "float32" or "bfloat16". Raises UserError with one line where `transformers` is missing, and for a folder
        that is absent or holds something else.
        """
        transformers = _transformers()
        options = {"local_files_only": True, "trust_remote_code": False}
        with _one_line(folder):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder), use_safetensors=True, dtype=getattr(torch, dtype), **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **options)
        return cls(model.to(device), tokenizer)

    @property
    def width(self) -> int:
        """W, the width of its input embeddings."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def tokenize(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Return token ids of the prompt and of the text behind it; a space parts them, unless the prompt ends in
        one."""
        joined = f"{prompt}{text}" if not prompt or prompt[-1].isspace() else f"{prompt} {text}"
        # a space before a word is part of it in most vocabularies
        prompt_ids, joined_ids = (
            self.tokenizer(words, add_special_tokens=False).input_ids for words in (prompt.rstrip(" "), joined)
        )
        return [*self._start, *prompt_ids], joined_ids[len(prompt_ids) :]

    def texts(self, prompts: Sequence[str], texts: Sequence[str], max_tokens: int) -> PromptedTexts:
        """Tokenize what training reads, on the model's device: each text ends in the end token, and is cut to
        `max_tokens` tokens with it."""
        pairs = [self.tokenize(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        return self.pad([(before, [*after, self.end][:max_tokens]) for before, after in pairs])

    def pad(self, pairs: Sequence[tuple[list[int], list[int]]]) -> PromptedTexts:
        """Pad token ids that are given, each with those to be predicted behind them, on the model's device."""
        rows = [torch.tensor([*before, *after]) for before, after in pairs]
        labels = [torch.tensor([IGNORED] * len(before) + after) for before, after in pairs]
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self.end)
        present = torch.arange(input_ids.shape[1]) < lengths[:, None]
        padded = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return PromptedTexts(*(part.to(self.device, non_blocking=True) for part in (input_ids, present, padded)))

    def loss(self, prefix_BPW: Tensor | None, texts: PromptedTexts, rest: RestOfStep = ALONE) -> tuple[Tensor, Tensor]:
        """Compute the mean cross-entropy of the labels behind a prefix and their prompts, [], and the share of them
        that is guessed right, [], detached.

        prefix_BPW: [B, P, W]; None: there is none, and prompts must not be empty. rest: of the step that the
        batch is a part of. Raises UserError where the model has too few positions.
        """
        embedded = self.embed(texts.input_ids)
        present = texts.present
        if prefix_BPW is not None:
            embedded = torch.cat([prefix_BPW.to(embedded.dtype), embedded], dim=1)
            present = torch.cat([present.new_ones(prefix_BPW.shape[:2]), present], dim=1)
        self._check_room(embedded.shape[1])
        # from the row before the first token; without a prefix that one has none
        rows = min(texts.input_ids.shape[1] + 1, embedded.shape[1])
        logits = self.model(
            inputs_embeds=embedded, attention_mask=present.long(), use_cache=False, logits_to_keep=rows
        ).logits[:, :-1]
        labels = texts.labels[:, texts.labels.shape[1] - logits.shape[1] :]
        # in float32: the loss of a bfloat16 logit is off by more than a step changes it
        loss = cross_entropy(wide(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        counted = labels != IGNORED
        right = (logits.detach().argmax(-1) == labels) & counted
        loss, accuracy = rest.means("tokens", counted.sum(), loss, right.sum() / counted.sum())
        return loss, accuracy

    def embed(self, input_ids: Tensor) -> Tensor:
        """Compute the input embeddings of token ids: int64 [...] -> [..., W]."""
        return self.model.get_input_embeddings()(input_ids)

    @torch.no_grad()
    def generate(
        self, prefix_BPW: Tensor | None, prompts: Sequence[str], *, max_tokens: int = 32, num_beams: int = 1
    ) -> list[str]:
        """Write the texts that follow prefixes and prompts: greedily, or as the best of `num_beams` beams.

        prefix_BPW: [B, P, W]; None: there are none. max_tokens: most tokens of a text. Raises UserError where neither a
        prefix nor a prompt begins a text, and where the model has too few positions.
        """
        rows = [self._context(prefix_BPW, place, prompt) for place, prompt in enumerate(prompts)]
        self._check_room(max(map(len, rows)) + max_tokens)
        embedded = pad_sequence(rows, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(row) for row in rows], device=embedded.device)
        present = torch.arange(embedded.shape[1], device=embedded.device) >= embedded.shape[1] - lengths[:, None]
        found = self.model.generate(
            inputs_embeds=embedded,
            attention_mask=present.long(),
            max_new_tokens=max_tokens,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(found, skip_special_tokens=True)]

    @torch.no_grad()
    def log_likelihoods(
        self,
        prefix_BPW: Tensor | None,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        length: str = "sum",
        batch_size: int = 64,
    ) -> list[Tensor]:
        """Tell how likely each candidate follows its clip's prefix and prompt: one float32 [candidates of the clip] a
        clip.

        The prefix is read once for all candidates. length: "sum" of the tokens' log-likelihoods, which favours short
        candidates, or their "mean". batch_size: candidates at a time. Raises UserError for another `length`, for a
        candidate without tokens, and as `generate`.
        """
        if length not in ("sum", "mean"):
            raise UserError(f"length must be 'sum' or 'mean', got {length!r}")
        scores = []
        for place, (prompt, listed) in enumerate(zip(prompts, candidates, strict=True)):
            texts = [self.tokenize(prompt, text)[1] for text in listed]
            if empty := [text for text, ids in zip(listed, texts, strict=True) if not ids]:
                raise UserError(f"candidates must have at least one token, got {empty[0]!r}")
            context = self._context(prefix_BPW, place, prompt)
            self._check_room(len(context) + max(map(len, texts)))
            totals = self._follow(context, texts, batch_size)
            counts = torch.tensor([len(ids) for ids in texts], device=totals.device)
            scores.append(totals / counts if length == "mean" else totals)
        return scores

    def _context(self, prefix_BPW: Tensor | None, place: int, prompt: str) -> Tensor:
        """Return the prefix and the prompt of clip number `place` as rows [P + tokens of the prompt, W]."""
        ids = self.tokenize(prompt, "")[0]
        if prefix_BPW is None and not ids:
            raise UserError("without a clip a text needs a prompt: the tokenizer writes no start token")
        embedded = self.embed(torch.tensor(ids, dtype=torch.long, device=self.device))
        return embedded if prefix_BPW is None else torch.cat([prefix_BPW[place].to(embedded.dtype), embedded])

    def _follow(self, context: Tensor, texts: Sequence[list[int]], batch_size: int) -> Tensor:
        """Return the log-likelihood of each text, given as token ids, behind a context [rows, W]: float32 [texts]."""
        read = self.model(inputs_embeds=context[None], use_cache=True, logits_to_keep=1)
        firsts = torch.tensor([ids[0] for ids in texts], device=context.device)
        totals = wide(read.logits[0, -1]).log_softmax(-1)[firsts]
        longer = [place for place, ids in enumerate(texts) if len(ids) > 1]
        for start in range(0, len(longer), batch_size):
            places = longer[start : start + batch_size]
            ids = pad_sequence([torch.tensor(texts[place]) for place in places], batch_first=True, padding_value=-1)
            ids = ids.to(context.device)
            cache = copy.deepcopy(read.past_key_values)
            cache.batch_repeat_interleave(len(places))
            present = torch.cat([ids.new_ones(len(places), len(context)), (ids[:, :-1] >= 0).long()], dim=1)
            logits = self.model(
                input_ids=ids[:, :-1].clamp(min=0), attention_mask=present, past_key_values=cache, use_cache=True
            ).logits
            likely = wide(logits).log_softmax(-1).gather(2, ids[:, 1:, None].clamp(min=0))[..., 0]
            totals[places] += (likely * (ids[:, 1:] >= 0)).sum(1)
        return totals

    def _check_room(self, length: int) -> None:
        """Raise UserError where the model has fewer positions than `length`."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None and length > positions:
            raise UserError(
                f"{length} rows of clip and text exceed the language model's {positions} positions: set fewer "
                "num_queries or tokens"
            )


def language_width(folder: str | Path) -> int:
    """Return the width W of the language model in a folder, read from its config.json. Errors as
    `LanguageModel.load`."""
    transformers = _transformers()
    with _one_line(folder):
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return config.get_text_config().hidden_size


def few_shot_prompt(
    question: str, examples: Sequence[tuple[str, str]] = (), template: str = "Question: {question} Answer:"
) -> str:
    """Return a prompt that asks `question` behind solved examples, (question, answer), each on a line of its own and in
    words alone."""
    solved = [f"{template.format(question=asked)} {answer}\n" for asked, answer in examples]
    return "".join([*solved, template.format(question=question)])


def _transformers() -> Any:
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("a language model needs transformers: pip install 'fastvtp[captioning]'") from None
    return transformers


@contextmanager
def _one_line(folder: str | Path) -> Iterator[None]:
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"language_model={folder}: expected a folder with config.json, safetensors and a tokenizer")
    try:
        yield
    except Exception as error:  # the library raises nearly anything for a malformed folder
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"language_model={folder} is no causal language model that can be read: {reason}") from None
