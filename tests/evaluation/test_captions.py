"""Retrieval with as many captions a clip as its record has."""

import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.evaluation.captions import all_captions, shown_captions
from fastvtp.evaluation.matching import encode_set
from fastvtp.evaluation.retrieval import encode_retrieval
from tests.evaluation.stubs import batches

RECORDS = [
    VideoRecord(str(i), f"/{i}.mp4", captions)
    for i, captions in enumerate([("a red star", "it is red"), ("a ring",), ("a dot", "blue", "a small blue dot")])
]
TOKENIZER = CaptionTokenizer.train([text for record in RECORDS for text in record.captions], 200)


class Reader(torch.nn.Module):
    """Embeds a text by its length and its first token, a clip by its pixels."""

    averages_unit_views = False

    def embed_video(self, video):
        return torch.stack([video[:, 0, 0, 0, 0].float() + 1, torch.ones(len(video))], 1)

    def encode_text(self, input_ids, cu_seqlens, max_seqlen):
        texts = input_ids.split(cu_seqlens.diff().tolist())
        assert max_seqlen == max(map(len, texts))
        return torch.nn.functional.normalize(torch.tensor([[float(len(text)), float(text[1])] for text in texts]))

    def read_clips(self, video):
        return self.embed_video(video)[:, None], torch.nn.functional.normalize(self.embed_video(video))

    def read_texts(self, input_ids, cu_seqlens, max_seqlen):
        return input_ids[:, None].float(), self.encode_text(input_ids, cu_seqlens, max_seqlen)


def test_each_clip_comes_with_all_captions_of_its_record():
    """Also where views of a clip lie in two batches, and where a record is missing."""
    everything = all_captions(RECORDS, TOKENIZER, 32)
    loader = batches(RECORDS, [0, 0, 2, 2], 3, TOKENIZER)
    found = encode_retrieval(Reader(), loader, device="cpu", progress=False, captions=everything)
    assert found.ids == [0, 2]
    assert found.captions == [*RECORDS[0].captions, *RECORDS[2].captions]
    assert found.video_of_text.tolist() == [0, 0, 1, 1, 1]
    alone = TOKENIZER.encode(found.captions, 32)
    expected = torch.nn.functional.normalize(torch.tensor([[float(len(ids)), float(ids[1])] for ids in alone]))
    torch.testing.assert_close(found.text, expected)

    loader = list(batches(RECORDS, [2, 0, 1], 2, TOKENIZER))
    encoded = encode_set(Reader(), loader, device="cpu", progress=False, captions=everything)
    assert encoded.ids == [2, 0, 1]
    assert encoded.captions == [*RECORDS[2].captions, *RECORDS[0].captions, *RECORDS[1].captions]
    assert encoded.video_of_text.tolist() == [0, 0, 0, 1, 1, 2]
    assert encoded.cu_seqlens.diff().tolist() == [len(ids) for ids in TOKENIZER.encode(encoded.captions, 32)]
    assert encoded.similarity.shape == (6, 3)


def test_without_more_each_clip_has_the_caption_of_its_batch():
    (batch,) = batches(RECORDS, [2, 0, 1], 3, TOKENIZER)
    shown = shown_captions(batch, [0, 2])
    assert shown.by_clip == [("a dot",), ("a ring",)]
    assert shown.lengths == (batch.text_lengths[0], batch.text_lengths[2])
    ids = TOKENIZER.encode_packed(["a dot", "a ring"], 32)
    assert shown.input_ids.tolist() == ids.input_ids.tolist()


def test_autocast_leaves_similarities_in_float32():
    """In bfloat16 near rivals would tie."""
    everything = all_captions(RECORDS, TOKENIZER, 32)
    with torch.autocast("cpu", torch.bfloat16):
        for encode in (encode_retrieval, encode_set):
            made = encode(
                Reader(), batches(RECORDS, [0, 1, 2], 3, TOKENIZER), device="cpu", progress=False, captions=everything
            )
            similarity = made.similarity() if encode is encode_retrieval else made.similarity
            assert similarity.dtype == torch.float32
            assert not torch.equal(similarity, similarity.bfloat16().float())
