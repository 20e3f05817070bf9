"""What a pretrained model makes of masked clips and captions, ready to be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import Tokenizer
from fastvtp.evaluation.inference import inference
from fastvtp.model_folder import OpenedModel
from fastvtp.modules.capacity import NO_LABEL
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.visualization.reconstruction import (
    ReconstructionExample,
    save_reconstruction_animation,
    save_reconstruction_grid,
)


def reconstruct(
    model: SimVTP, tokenizer: Tokenizer, batch: VideoTextBatch, *, seed: int
) -> list[ReconstructionExample]:
    """Mask every clip and caption of `batch` as in training and let `model` fill them in.

    seed: of the masks. The model is run in evaluation mode and left as it was; [CLS] and [SEP] are left out of the
    captions.
    """
    input_ids = batch.input_ids.cpu()
    with inference(model):
        plan = model.plan(input_ids, batch.text_lengths, batch.sample_ids.cpu(), seed=seed, step=0)
        output = model(batch.video.to(model.device), plan)
        hidden = plan.word_labels != NO_LABEL
        words = model.word_head(output.word_features[hidden]).argmax(-1)

    masked_ids = plan.text_ids[: len(input_ids)].cpu()
    # the pool that `gather` reads holds the visible tubelets of all clips, then the masked captions
    hidden_words = (plan.sources.rows[plan.word_rows[hidden]] - plan.visible.numel()).cpu()
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


def tokens_to_video(
    tokens: ArrayLike,
    index: ArrayLike,
    video: np.ndarray,
    *,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    normalize: Literal["patch_channel", "patch"] | None = None,
    eps: float = 1e-6,
) -> np.ndarray:
    """Return a copy of the true clip `video` with the listed tubelets replaced by predictions.

    tokens: float [K, P], numpy or a CPU tensor numpy can read; value order inside a token (pt, ph, pw, C).
    index: int [K], token index (t*h + y)*w + x on the tubelet grid. video: uint8, or float in [0, 1], [T, H, W, C].
    normalize: what the model was trained to predict. None: pixels in [0, 1]. "patch_channel" or "patch": values
        normalised by a tubelet's own mean and unbiased deviation (per channel, or over all), `eps` beside the
        deviation. A model cannot know these two numbers, so as in VideoMAE's pictures they are taken from the *true*
        tubelets: colour and contrast of such a picture are given, its structure is predicted.

    Returns the dtype of `video`; uint8 is rounded and clipped. Raises ValueError for shapes that do not fit.
    """
    index = np.asarray(index, dtype=np.int64)
    sizes = (*tubelet, video.shape[-1])
    if video.ndim != 4 or any(size % step for size, step in zip(video.shape[:3], tubelet, strict=True)):
        raise ValueError(f"video must be [T, H, W, C] in whole tubelets {tubelet}, got {video.shape}")
    grid = tuple(size // step for size, step in zip(video.shape[:3], tubelet, strict=True))
    values = np.asarray(tokens, dtype=np.float64)
    if index.ndim != 1 or values.shape != (len(index), np.prod(sizes)):
        raise ValueError(f"tokens must be [K, {np.prod(sizes)}] and index [K], got {values.shape} and {index.shape}")
    if len(index) and not 0 <= index.min() <= index.max() < np.prod(grid):
        raise ValueError(f"index must lie in 0 to {np.prod(grid) - 1}, got {index.min()} to {index.max()}")

    painted = video.copy()
    split = (grid[0], tubelet[0], grid[1], tubelet[1], grid[2], tubelet[2], -1)
    cells = painted.reshape(split).transpose(0, 2, 4, 1, 3, 5, 6)  # a view: [t, h, w, pt, ph, pw, C]
    cell = np.unravel_index(index, grid)
    values = values.reshape(-1, *sizes)
    peak = 255.0 if video.dtype == np.uint8 else 1.0
    if normalize is not None:
        truth = cells[cell] / peak
        axes = {"patch_channel": (1, 2, 3), "patch": (1, 2, 3, 4)}[normalize]
        values = values * (truth.std(axes, ddof=1, keepdims=True) + eps) + truth.mean(axes, keepdims=True)
    values = values * peak
    cells[cell] = values.round().clip(0, 255) if video.dtype == np.uint8 else values
    return painted


def hide_tubelets(
    video: np.ndarray, masked: ArrayLike, *, tubelet: tuple[int, int, int] = (2, 16, 16), grey: float = 0.5
) -> np.ndarray:
    """Return a copy of `video` [T, H, W, C] with the tubelets of `masked`, int [Km], painted `grey` (0 black to 1
    white)."""
    values = int(np.prod(tubelet)) * video.shape[-1]
    return tokens_to_video(np.full((len(np.asarray(masked)), values), grey), masked, video, tubelet=tubelet)


def draw_reconstructions(opened: OpenedModel, batch: VideoTextBatch, output: Path, *, seed: int) -> list[Path]:
    """Draw what the model fills in of a batch, as reconstruction.png and as reconstruction.gif in the folder
    `output`."""
    examples = reconstruct(opened.model, opened.tokenizer, batch, seed=seed)
    paths = [output / "reconstruction.png", output / "reconstruction.gif"]
    save_reconstruction_grid(paths[0], examples)
    save_reconstruction_animation(paths[1], examples)
    return paths
