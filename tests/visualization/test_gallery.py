"""The page parsed as a browser would: what is framed, what is embedded, and that captions stay text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from fastvtp.evaluation.matching import matching_ranks
from fastvtp.evaluation.retrieval import retrieval_metrics, retrieval_ranks, right_pairs
from fastvtp.visualization import gallery
from fastvtp.visualization.gallery import GalleryContent, RankedScores, animated_thumbnail, save_retrieval_gallery


class Page(HTMLParser):
    """Tags seen, and per article its text and the (classes, text) of its answers."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.articles: list[dict] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "article":
            self.inside = True
            self.articles.append({"classes": attributes.get("class", ""), "text": "", "clips": [], "answers": []})
        elif tag in ("figure", "li"):
            self.articles[-1]["answers"].append([attributes.get("class", "").split(), ""])
        elif tag == "div" and "clip" in attributes.get("class", "").split():
            self.articles[-1]["clips"].append(attributes["title"])

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "article"

    def handle_data(self, data):
        if self.inside:
            data = f" {data}"
            self.articles[-1]["text"] += data
            if self.articles[-1]["answers"]:
                self.articles[-1]["answers"][-1][1] += data


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def content(shape, **changes) -> GalleryContent:
    num_texts, num_videos = shape
    shown = {
        "captions": [f"caption {text}" for text in range(num_texts)],
        "thumbnails": [png(video) for video in range(num_videos)],
        "ids": [f"clip-{video}" for video in range(num_videos)],
    }
    return GalleryContent(**(shown | changes))


def save(path, similarity, *, video_to_text=None, metrics=None, shown=None, **settings):
    """The page for scores with the ranks that they give. shown: changes of the content."""
    scores = (similarity, similarity if video_to_text is None else video_to_text)
    made = content(similarity.shape, **(shown or {}))
    sides = zip(scores, matching_ranks(*scores, video_of_text=made.video_of_text), strict=True)
    save_retrieval_gallery(path, made, *(RankedScores(*side) for side in sides), metrics=metrics or {}, **settings)
    return path.read_text("utf-8")


def test_right_answer_is_framed_and_appended_where_missed(tmp_path):
    similarity = torch.eye(6)
    similarity[2] = torch.tensor([0.9, 0.8, 0.1, 0.7, 0.6, 0.5])  # its own clip comes last
    page = Page(save(tmp_path / "g.html", similarity, top_k=3))
    text_to_video, video_to_text = page.articles[:6], page.articles[6:]
    assert len(video_to_text) == 6
    worst = text_to_video[0]
    assert "caption 2" in worst["text"]
    assert "rank 6" in worst["text"]
    assert worst["classes"] == ""
    assert worst["clips"] == ["clip-0", "clip-1", "clip-3", "clip-2"]
    assert [classes for classes, _ in worst["answers"]] == [[], [], [], ["right", "missed"]]
    assert [text.split() for _, text in worst["answers"]][2:] == [["3", "0.700"], ["6", "0.100"]]
    for article in text_to_video[1:]:
        assert "rank 1" in article["text"]
        assert article["classes"] == "first"
        assert [classes for classes, _ in article["answers"]] == [["right"], [], []]
    for article in video_to_text:
        right = [text for classes, text in article["answers"] if "right" in classes]
        assert len(right) == 1
        assert f"caption {article['clips'][0].removeprefix('clip-')}" in right[0]


def test_several_captions_of_a_video_are_all_right_and_a_distractor_asks_nothing(tmp_path):
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.3, 0.2], [0.1, 0.7, 0.3]])
    text = save(tmp_path / "g.html", similarity, shown={"video_of_text": torch.tensor([0, 0, 1])})
    page = Page(text)
    assert len(page.articles) == 3 + 2
    assert "2 of 2 queries" in text
    of_clip_0 = next(article for article in page.articles[3:] if article["clips"] == ["clip-0"])
    assert [classes for classes, _ in of_clip_0["answers"]] == [["right"], ["right"], []]


def test_a_caption_that_two_videos_have_is_right_with_both(tmp_path):
    similarity = torch.tensor([[0.2, 0.1, 0.9], [0.1, 0.7, 0.3], [0.8, 0.1, 0.0]])
    said = ["A man sings.", "A dog.", " A man  sings."]
    pairs = right_pairs(torch.tensor([0, 1, 2]), said)
    shown = GalleryContent(said, [png(video) for video in range(3)], ["a", "b", "c"], right_pairs=pairs)
    sides = zip((similarity, similarity), retrieval_ranks(similarity, captions=said), strict=True)
    save_retrieval_gallery(tmp_path / "g.html", shown, *(RankedScores(*side) for side in sides), metrics={})
    page = Page((tmp_path / "g.html").read_text("utf-8"))
    assert [article["classes"] for article in page.articles] == ["first"] * 6
    of_texts = {article["text"].split("sings")[0]: article["answers"] for article in page.articles[:3]}
    assert [classes for classes, _ in next(iter(of_texts.values()))] == [["right"], ["right"], []]
    of_clip_a = next(article for article in page.articles[3:] if article["clips"] == ["a"])
    assert [classes for classes, _ in of_clip_a["answers"]] == [["right"], ["right"], []]


def test_each_direction_shows_its_own_scores(tmp_path):
    to_video, to_text = torch.eye(3), torch.eye(3).roll(1, dims=1) * 0.5
    page = Page(save(tmp_path / "g.html", to_video, video_to_text=to_text))
    for article in page.articles[:3]:
        assert "rank 1" in article["text"]
        assert article["answers"][0][1].split()[-1] == "1.000"
    for article in page.articles[3:]:
        clip = int(article["clips"][0].removeprefix("clip-"))
        best, right = article["answers"][0][1], next(text for kind, text in article["answers"] if "right" in kind)
        assert f"caption {(clip - 1) % 3}" in best
        assert best.split()[-1] == "0.500"
        assert f"caption {clip}" in right
        assert "rank 1" not in article["text"]


def test_captions_and_titles_stay_text(tmp_path):
    evil = "<script>alert(1)</script> & \"quoted\" 'x' {{ 7 * 7 }}"
    text = save(tmp_path / "g.html", torch.eye(2), shown={"captions": [evil, "fine"], "ids": [evil, "b"]}, title=evil)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert any(evil in article["text"] for article in page.articles)
    assert page.articles[0]["clips"][0] in (evil, "b")


def test_only_shown_thumbnails_are_embedded_and_each_once(tmp_path):
    similarity = torch.eye(50) + torch.rand(50, 50, generator=torch.Generator().manual_seed(0)) * 0.5
    text = save(tmp_path / "g.html", similarity, num_queries=4, top_k=2)
    page = Page(text)
    shown = {int(clip.removeprefix("clip-")) for article in page.articles for clip in article["clips"]}
    assert 4 <= len(shown) < 20
    rules = dict(re.findall(r"\.v(\d+) \{ background-image: url\(data:image/png;base64,([^)]+)\)", text))
    assert {int(video) for video in rules} == shown
    assert text.count("base64,") == len(shown)
    for video, encoded in rules.items():
        assert base64.b64decode(encoded) == png(int(video))
    assert not re.search(r"(src|href)=|https?://", text)  # works offline


def test_queries_are_evenly_spaced_from_worst_to_best(tmp_path):
    similarity = torch.zeros(21, 21)
    for text in range(21):  # whose clip is beaten by as many others
        others = [video for video in range(21) if video != text]
        similarity[text, others[:text]] = 2.0
        similarity[text, text] = 1.0
    page = Page(save(tmp_path / "g.html", similarity, num_queries=5))
    shown = [float(match) for match in re.findall(r"rank (\S+)", " ".join(a["text"] for a in page.articles[:5]))]
    assert shown == [21, 16, 11, 6, 1]


def test_metrics_table_and_missing_values(tmp_path):
    metrics = retrieval_metrics(torch.eye(4)) | {"chance": {"R1": 25.0}}
    text = save(tmp_path / "g.html", torch.eye(4), metrics=metrics)
    table = text[text.index("<table>") : text.index("</table>")]
    assert re.findall(r"<th>([^<]*)</th>", table) == ["", "R1", "R5", "R10", "MdR", "MnR", "t2v", "v2t", "chance"]
    assert re.findall(r"<td>([^<]*)</td>", table)[-5:] == ["25.0", "–", "–", "–", "–"]


def test_a_page_past_the_limit_is_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(gallery, "MAX_PAGE_BYTES", 1000)
    save(tmp_path / "g.html", torch.eye(2))
    assert "lower num_queries" in caplog.text


def test_thumbnail_keeps_frames_shape_and_content():
    frames = np.zeros((5, 120, 60, 3), np.uint8)
    frames[..., 1] = 50 * np.arange(5)[:, None, None]
    with Image.open(io.BytesIO(animated_thumbnail(frames, size=40))) as image:
        assert image.format == "WEBP"
        assert image.size == (20, 40)
        assert image.n_frames == 5  # pyright: ignore[reportAttributeAccessIssue]
        for frame in range(5):
            image.seek(frame)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int)[..., 1] - 50 * frame).max() < 10


def test_realistic_page_stays_under_ten_megabytes(tmp_path):
    """Noisy 96 x 96 x 8 clips are the worst case of the codec; real ones are a fraction of it."""
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    noisy = (smooth.astype(int) + generator.integers(-12, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    thumbnail = animated_thumbnail(noisy)
    similarity = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    text = save(tmp_path / "g.html", similarity, shown={"thumbnails": [thumbnail] * 256})
    assert len(text) < gallery.MAX_PAGE_BYTES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": ["one"]}, "captions must have 2 entries for scores 2 x 2, got 1"),
        ({"thumbnails": [png(0)]}, "thumbnails must have 2 entries"),
        ({"ids": []}, "ids must have 2 entries"),
        ({"thumbnails": [png(0), b"BM12"]}, r"thumbnails\[1\] must be the bytes of a WebP, GIF or PNG, got b'BM12'"),
    ],
)
def test_content_that_does_not_fit_gets_one_clear_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "g.html", torch.eye(2), shown=changes)
    assert not (tmp_path / "g.html").exists()


@pytest.mark.parametrize(
    ("texts", "videos", "settings", "message"),
    [
        ((2, 2), (2, 2), {"top_k": 0}, "must be positive, got 0 and 40"),
        ((2, 2), (3, 2), {}, r"video_to_text must be \[2, 2\], got \[3, 3\]"),
        ((2, 1), (2, 2), {}, "ranks of texts must have 2 entries for scores 2 x 2, got 1"),
        ((2, 2), (2, 3), {}, "ranks of videos must have 2 entries"),
    ],
)
def test_scores_that_do_not_fit_get_one_clear_line(tmp_path, texts, videos, settings, message):
    """texts, videos: the size of the scores, and the number of ranks."""
    sides = (RankedScores(torch.eye(size), torch.ones(ranks)) for size, ranks in (texts, videos))
    with pytest.raises(ValueError, match=message):
        save_retrieval_gallery(tmp_path / "g.html", content((2, 2)), *sides, metrics={}, **settings)
    assert not (tmp_path / "g.html").exists()


def test_bad_thumbnail_frames():
    with pytest.raises(ValueError, match=r"frames must be uint8 \[T, H, W, 3\], got float64 \(2, 4, 4, 3\)"):
        animated_thumbnail(np.zeros((2, 4, 4, 3)))
