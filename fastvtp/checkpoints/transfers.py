"""What a checkpoint of one architecture gives to a model of the same or of another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Transfer:
    """moves: prefix of a checkpoint's name -> prefixes it becomes. unused: prefixes the model has no use for.
    fresh: parts of the model that such a checkpoint cannot have."""

    moves: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unused: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()

    def targets(self, name: str) -> list[str]:
        """Names in the model of a checkpoint's entry."""
        for prefix, replacements in self.moves:
            if name.startswith(prefix):
                return [replacement + name.removeprefix(prefix) for replacement in replacements]
        return [name]


_TO_BOTH_TOWERS = (("encoder.blocks.", ("video_encoder.blocks.", "text_encoder.blocks.")),)
_TO_VIDEO_TOWER = (("encoder.blocks.", ("video_encoder.blocks.",)),)
_TEXT_HEADS = ("word_head.", "match_head.")

# (architecture of the checkpoint, of the model)
TRANSFERS: dict[tuple[str, str], Transfer] = {
    **{(name, name): Transfer() for name in ("simvtp", "videomae", "video_classifier", "dual_encoder", "video_qa")},
    # the released SimVTP has neither projections nor a temperature to learn
    ("simvtp", "simvtp"): Transfer(fresh=("contrast",)),
    ("videomae", "video_classifier"): Transfer(unused=("decoder.", "encoder.norm."), fresh=("norm", "head")),
    ("videomae", "simvtp"): Transfer(fresh=("text_embeddings", "word_head", "match_head", "contrast")),
    ("videomae", "dual_encoder"): Transfer(
        _TO_VIDEO_TOWER,
        unused=("decoder.", "encoder.norm."),
        fresh=("text_embeddings", "text_encoder", "video_norm", "text_norm", "contrast"),
    ),
    ("videomae", "video_qa"): Transfer(unused=("decoder.",), fresh=("text_embeddings", "head")),
    ("simvtp", "videomae"): Transfer(unused=("text_embeddings.", *_TEXT_HEADS, "contrast.")),
    ("simvtp", "video_classifier"): Transfer(
        unused=("decoder.", "encoder.norm.", "text_embeddings.", *_TEXT_HEADS, "contrast."), fresh=("norm", "head")
    ),
    ("simvtp", "dual_encoder"): Transfer(
        _TO_BOTH_TOWERS,
        unused=("decoder.", "encoder.norm.", *_TEXT_HEADS, "contrast."),
        fresh=("video_norm", "text_norm", "contrast"),
    ),
    ("simvtp", "video_qa"): Transfer(unused=("decoder.", *_TEXT_HEADS, "contrast."), fresh=("head",)),
}
