"""Names of BERT's input embeddings in Hugging Face checkpoints -> fastvtp's."""

from fastvtp.checkpoints.names import NameMap

EMBEDDINGS = NameMap(
    (
        # the first BERT checkpoints call a LayerNorm's weight and bias as TensorFlow does
        (r"(bert\.)?embeddings\.LayerNorm\.(gamma|weight)$", "text_embeddings.norm.weight"),
        (r"(bert\.)?embeddings\.LayerNorm\.(beta|bias)$", "text_embeddings.norm.bias"),
        (r"(bert\.)?embeddings\.", "text_embeddings."),
    )
)
