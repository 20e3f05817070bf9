"""What `fastvtp caption` and `fastvtp answer` run, whichever system writes the words."""

from fastvtp.systems.captioner.runs import answer_questions, caption_videos, open_captioning

__all__ = ["answer_questions", "caption_videos", "open_captioning"]
