"""BERT on packed tokens (arXiv:1810.04805): input embeddings, post-norm layers, the word head's transform.

Shape legend: B = texts, N = packed tokens of all sequences, M = rows of a source, R = query rows, D = width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvtp.modules.attention import Attention
from fastvtp.modules.checks import (
    check_ids,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import (
    Mlp,
    init_linear_normal,
    run_blocks,
)
from fastvtp.modules.packing import Packing, pad_sequences
from fastvtp.modules.rows import Pick, Rows, Takers, take_rows
from fastvtp_kernels.packing import locate_rows
from fastvtp_kernels.symbolic import holds


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the vocabulary and of captions; the defaults are those of bert-base-uncased in the released SimVTP."""

    vocab_size: int = 30522
    max_text_length: int = 512
    """Tokens kept of a caption, [CLS] and [SEP] included."""
    pad_token_id: int = 0
    text_dropout: float = 0.1
    pad_text: bool = True
    """Carry [PAD] rows up to the longest caption of the micro-batch; nobody attends to them, but means count them, so
    that features depend on how a batch is divided."""

    def check_text(self) -> None:
        """Check these fields; raises ValueError with one line for the first that cannot be."""
        check_positive(self, "vocab_size", "max_text_length")
        check_share(self, "text_dropout")
        check_ids(self, "pad_token_id")


@dataclass(frozen=True)
class TextTakers:
    """Which tokens take each row of the tables of words and of positions, listed beforehand by a plan."""

    words: Takers
    positions: Takers

    @staticmethod
    def of(config: TextConfig, input_ids: Tensor, positions: Tensor) -> "TextTakers":
        """List the takers of tokens with these ids and positions, int64 [N] each, on their device."""
        words = Takers.of(input_ids, config.vocab_size, ignored=config.pad_token_id)
        return TextTakers(words, Takers.of(positions, config.max_text_length))


class TextEmbeddings(nn.Module):
    """The sum of a token's word, position and segment embedding, a LayerNorm, dropout (BERT, arXiv:1810.04805, section
    3).

    BERT's two-row segment table, of which captions use row 0, is kept so that its weights load unchanged.
    """

    def __init__(self, config: TextConfig, width: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_text_length, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.text_dropout)
        self.pad_token_id = config.pad_token_id if config.pad_text else None

    def init_weights(self) -> None:
        """Draw the tables as BERT does; uses torch's global generator."""
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, input_ids: Tensor, positions: Tensor, takers: TextTakers | None = None) -> Tensor:
        """Embed tokens by their ids and their positions within their texts: int64 [N] each -> [N, D].

        takers: of the same tokens, where a plan lists them; None: the backward pass finds them.
        """
        if takers is None:
            x_ND = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        else:
            words = take_rows(self.word_embeddings.weight, Pick(input_ids, takers.words))
            x_ND = words + take_rows(self.position_embeddings.weight, Pick(positions, takers.positions))
        x_ND = x_ND + self.token_type_embeddings.weight[0]
        return self.dropout(self.norm(x_ND))

    def embed_texts(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Packing]:
        """Embed whole texts, int64 [N] divided by cu_seqlens int32 [B+1]; max_seqlen: a bound on the longest.

        Returns [N, D], or [B * max_seqlen, D] where the config pads texts, and how these rows divide into texts. Raises
        ValueError where `max_seqlen` is more than there are positions.
        """
        if holds(max_seqlen > self.position_embeddings.num_embeddings):
            raise ValueError(
                f"a text has {max_seqlen} tokens, the model takes {self.position_embeddings.num_embeddings}"
            )
        if self.pad_token_id is None:
            _, positions = locate_rows(cu_seqlens, len(input_ids))
            return self(input_ids, positions), Packing(cu_seqlens, max_seqlen)
        input_ids, positions, packing = pad_sequences(input_ids, cu_seqlens, max_seqlen, pad_token_id=self.pad_token_id)
        return self(input_ids, positions), packing


class BertLayer(nn.Module):
    """Post-norm transformer layer, which has a LayerNorm after each residual sum."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attn = Attention(width, num_heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.mlp = Mlp(width, hidden)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_MD: Tensor, rows: Rows | Packing) -> Tensor:
        """[M, D] -> [R, D], both [N, D] where `rows` picks nothing."""
        rows = Rows.of(rows)
        x_RD = self.norm1(self.dropout(self.attn(x_MD, rows)) + rows.residual(x_MD))
        return self.norm2(x_RD + self.dropout(self.mlp(x_RD)))


class BertEncoder(nn.Module):
    """`depth` layers, on packed tokens; a BERT may be cut into several of these (ALPRO: 6 for text, 6 to fuse)."""

    def __init__(self, width: int, depth: int, num_heads: int, *, hidden: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(BertLayer(width, num_heads, hidden, dropout) for _ in range(depth))

    def init_weights(self) -> None:
        """Draw all layers, see `init_linear_normal`; uses torch's global generator."""
        self.apply(init_linear_normal)

    def forward(self, x_MD: Tensor, rows: Rows | Packing) -> Tensor:
        """[M, D] -> [R, D], both [N, D] where `rows` picks nothing; the last layer computes the query rows alone."""
        return run_blocks(self.layers, x_MD, rows)


class WordTransform(nn.Module):
    """What BERT does to a token before it is compared with the word embeddings, and the bias of that comparison."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.empty(vocab_size))

    def init_weights(self) -> None:
        """Draw the layer, see `init_linear_normal`, and set the bias to zero; uses torch's global generator."""
        self.apply(init_linear_normal)
        nn.init.zeros_(self.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        """[N, D] -> [N, D]; the words' logits are the product of this with the word embeddings, plus `bias`."""
        return self.norm(nn.functional.gelu(self.dense(x_ND)))
