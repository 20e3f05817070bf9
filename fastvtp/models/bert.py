"""BERT's input embeddings on packed token ids."""

from torch import Tensor, nn


class TextEmbeddings(nn.Module):
    """Word + position + segment-0 embedding, LayerNorm, dropout (BERT, arXiv:1810.04805, section 3).

    Keeps BERT's two-row segment table, of which captions use row 0, so that its weights load unchanged.
    """

    def __init__(self, vocab_size: int, width: int, max_positions: int, dropout: float, pad_token_id: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=pad_token_id)
        self.position_embeddings = nn.Embedding(max_positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """input_ids, positions: int64 [N] -> [N, D]."""
        x_ND = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x_ND = x_ND + self.token_type_embeddings.weight[0]
        return self.dropout(self.norm(x_ND))
