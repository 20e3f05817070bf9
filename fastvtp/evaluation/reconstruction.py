"""What a pretrained model makes of masked clips and captions, ready to be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastvtp.evaluation.inference import inference
from fastvtp.evaluation.tubelets import hide_tubelets, tokens_to_video

if TYPE_CHECKING:  # who only draws the examples needs neither the models nor the loader
    from fastvtp.data.loader import VideoTextBatch
    from fastvtp.data.tokenization import CaptionTokenizer
    from fastvtp.models.simvtp import SimVTP


@dataclass(frozen=True)
class ReconstructionExample:
    """One clip with its caption, before masking, after masking and after prediction.

    frames, visible, reconstruction: uint8 [T, H, W, 3]; `hide_tubelets` and `tokens_to_video` make the last two.
    caption, masked_caption, predicted_caption: the same number of tokens separated by blanks. masked_caption has
        [MASK] (or a substitute) at the hidden tokens and is the caption elsewhere, predicted_caption has the model's
        choice there; WordPiece continuations keep their "##" and are drawn attached.

    Raises ValueError naming the field whose shape, dtype or number of tokens does not fit.
    """

    frames: np.ndarray
    visible: np.ndarray
    reconstruction: np.ndarray
    caption: str
    masked_caption: str
    predicted_caption: str

    def __post_init__(self) -> None:
        for name in ("frames", "visible", "reconstruction"):
            video = getattr(self, name)
            if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or video.shape != self.frames.shape:
                raise ValueError(f"{name} must be uint8 [T, H, W, 3] as the others, got {video.dtype} {video.shape}")
        for name in ("masked_caption", "predicted_caption"):
            tokens, expected = len(getattr(self, name).split()), len(self.caption.split())
            if tokens != expected:
                raise ValueError(f"{name} has {tokens} tokens, caption {expected}: join all tokens by blanks")


def reconstruct(
    model: SimVTP, tokenizer: CaptionTokenizer, batch: VideoTextBatch, *, seed: int
) -> list[ReconstructionExample]:
    """Mask every clip and caption of `batch` as in training and let `model` fill them in.

    seed: of the masks. The model is run in evaluation mode and left as it was; [CLS] and [SEP] are left out of the
    captions.
    """
    input_ids = batch.input_ids.cpu()
    with inference(model):
        plan = model.plan(input_ids, batch.text_lengths, batch.sample_ids.cpu(), seed=seed, step=0)
        output = model(batch.video.to(model.device), plan)
        words = model.word_head(output.word_features).argmax(-1)

    masked_ids = plan.text_ids[: len(input_ids)].cpu()
    # the pool that `gather` reads holds the visible tubelets of all clips, then the masked captions
    hidden_words = (plan.gather[plan.word_rows] - plan.visible.numel()).cpu()
    predicted_ids = masked_ids.index_copy(0, hidden_words, words.cpu())
    captions = [ids.split(list(batch.text_lengths)) for ids in (input_ids, masked_ids, predicted_ids)]

    predictions, tubelet = output.pixel_prediction.float().cpu(), model.config.tubelet
    visible, predicted = plan.visible.cpu().numpy(), plan.predicted.cpu().numpy()
    examples = []
    for i, frames in enumerate(batch.video.cpu().numpy()):
        masked = np.setdiff1d(np.arange(model.config.num_tokens), visible[i])
        filled = tokens_to_video(
            predictions[i], predicted[i], frames, tubelet=tubelet, normalize=model.config.target_normalization
        )
        caption, masked_caption, predicted_caption = (
            " ".join(tokenizer.tokens(ids[i][1:-1].tolist())) for ids in captions
        )
        examples.append(
            ReconstructionExample(
                frames=frames,
                visible=hide_tubelets(frames, masked, tubelet=tubelet),
                reconstruction=hide_tubelets(filled, np.setdiff1d(masked, predicted[i]), tubelet=tubelet),
                caption=caption,
                masked_caption=masked_caption,
                predicted_caption=predicted_caption,
            )
        )
    return examples
