"""What a pretrained model makes of masked clips and captions, ready to be drawn."""

import torch

from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.models.simvtp import SimVTP
from fastvtp.visualization.reconstruction import ReconstructionExample, hide_tubelets, tokens_to_video


@torch.inference_mode()
def reconstruct(
    model: SimVTP, tokenizer: CaptionTokenizer, batch: VideoTextBatch, *, seed: int
) -> list[ReconstructionExample]:
    """Mask every clip and caption of `batch` (at least 2) as in training and let `model` fill them in.

    seed: of the masks. The model is run in evaluation mode and left as it was.
    """
    training = model.training
    model.eval()
    try:
        plan = model.plan(batch.input_ids.cpu(), batch.text_lengths, batch.sample_ids.cpu(), seed=seed, step=0)
        output = model(batch.video.to(model.device), plan)
    finally:
        model.train(training)

    input_ids = batch.input_ids.cpu()
    masked_ids = plan.text_ids[: len(input_ids)].cpu()
    predicted_ids = masked_ids.clone()
    predicted_ids[masked_ids == model.config.mask_token_id] = output.word_logits.argmax(-1).cpu()
    captions = [ids.split(list(batch.text_lengths)) for ids in (input_ids, masked_ids, predicted_ids)]

    predictions, masked, tubelet = output.pixel_prediction.float().cpu(), plan.masked.cpu(), model.config.tubelet
    examples = []
    for i, frames in enumerate(batch.video.cpu().numpy()):
        # without [CLS] and [SEP]
        caption, masked_caption, predicted_caption = (
            " ".join(tokenizer.tokens(ids[i][1:-1].tolist())) for ids in captions
        )
        examples.append(
            ReconstructionExample(
                frames=frames,
                visible=hide_tubelets(frames, masked[i], tubelet=tubelet),
                reconstruction=tokens_to_video(
                    predictions[i], masked[i], frames, tubelet=tubelet, normalize="patch_channel"
                ),
                caption=caption,
                masked_caption=masked_caption,
                predicted_caption=predicted_caption,
            )
        )
    return examples
