"""Batches and models whose scores are written down beforehand."""

from types import SimpleNamespace

import torch
from torch import nn

from fastvtp import processes
from fastvtp.data.annotations import VideoRecord
from fastvtp.data.questions import QuestionSet
from fastvtp.data.wordpiece import CaptionTokenizer


def question_set(*rows):
    """rows: (question, answer, kind, options)."""
    questions, answers, kinds, options = zip(*rows, strict=True)
    records = tuple(VideoRecord(f"q{i}", f"/{i}.mp4", (question,)) for i, question in enumerate(questions))
    return QuestionSet(records, answers, kinds, options)


def batches(records, sample_ids, size, tokenizer=None):
    """Batches of `size` clips of the records `sample_ids`; the pixels of a clip are its place in `sample_ids`."""
    tokenizer = tokenizer or CaptionTokenizer.train([record.captions[0] for record in records], 200)
    for start in range(0, len(sample_ids), size):
        ids = sample_ids[start : start + size]
        captions = [records[index].captions[0] for index in ids]
        text = tokenizer.encode_packed(captions, 32)
        yield SimpleNamespace(
            video=torch.arange(start, start + len(ids), dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 2, 4, 4, 3),
            input_ids=torch.from_numpy(text.input_ids),
            cu_seqlens=torch.tensor([0, *text.lengths]).cumsum(0).int(),
            text_lengths=text.lengths,
            max_text_length=max(text.lengths),
            sample_ids=torch.tensor(ids),
            captions=captions,
        )


def dealt(loader):
    """The batches of `loader` that this process has, each with its step, as a loader deals them out."""
    for step, batch in enumerate(processes.share(list(loader))):
        batch.step = step
        yield batch


class TableModel(nn.Module):
    """Gives each clip its row of `table`: by video alone (a classifier), or for the one text that asks about it."""

    config = SimpleNamespace(max_text_length=32)

    def __init__(self, table):
        super().__init__()
        self.table = torch.tensor(table, dtype=torch.float32)
        self.dropout = nn.Dropout(0.5)

    def plan(self, input_ids, text_lengths, video_of_text):
        assert len(input_ids) == sum(text_lengths)
        return torch.tensor(list(video_of_text))

    def forward(self, video, plan=slice(None)):
        return self.dropout(self.table[video[:, 0, 0, 0, 0].long()][plan])


class OptionModel(nn.Module):
    """Scores texts by `scores[clip][text without special tokens]`, clip being its pixels."""

    config = SimpleNamespace(max_text_length=32)

    def __init__(self, tokenizer, scores):
        super().__init__()
        self.tokenizer, self.scores = tokenizer, scores

    def plan(self, input_ids, text_lengths, video_of_text):
        texts = [self.tokenizer.decode(ids.numpy()) for ids in input_ids.split(list(text_lengths))]
        return list(zip(video_of_text, texts, strict=True))

    def forward(self, video, plan):
        clips = video[:, 0, 0, 0, 0].tolist()
        return torch.tensor([[self.scores[clips[place]][text]] for place, text in plan])
