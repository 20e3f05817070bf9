"""What `fastvtp caption` and `fastvtp answer` run, whichever system writes the words."""

from fastvtp.systems.captioner.runs import Answering, answer_questions, caption_videos, open_captioning

__all__ = ["Answering", "answer_questions", "caption_videos", "open_captioning"]
