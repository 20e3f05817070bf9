"""The settings of a run that say what it learns from and how that is read."""

from dataclasses import dataclass, field

from fastvtp.data.sampling import ClipAugmentation, check_fit


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str
    """What the task learns from. Captions: a .jsonl of {"video": path, "caption": text}, or a folder of videos with
    captions. Videos alone (pretrain_videomae): the same without captions. Questions: see `load_questions`. Classes: see
    `load_classes`."""
    more: tuple[str, ...] = ()
    """pretrain_videoprism_...: further data sets like `train`. Each batch comes from one of them all (alternating
    gradient descent)."""
    shares: tuple[float, ...] = ()
    """How the batches of videos divide, in proportion: of `train`, then of each of `more`; empty: as their clips do.
    VideoPrism's are not published."""
    images: str | None = None
    """pretrain_prompter, pretrain_alpro, pretrain_videoprism_contrastive: captioned pictures, of which a share of
    `image_share` of the batches is made; a .jsonl as for videos."""
    image_share: float = 0.5
    """Share of the batches that are of `images`, spread evenly."""
    image_frames: str = "one"
    """A picture of `images` is "one" frame, or is "repeat"ed as all frames of a clip, as ALPRO's release has it."""
    test: str | None = None
    """Data as in `train` for scores at the end; None: no evaluation."""
    test_views: tuple[int, int] = (1, 1)
    """Segments and crops of each test clip, whose results are averaged."""
    test_sampling: str = "uniform"
    """Test frames: "uniform", or "strided" segments `frame_stride` apart."""
    test_top_k: int | None = None
    """Pairs of each text and clip that a matching head scores, those that the contrast ranks first; None: all pairs."""
    max_text_length: int | None = None
    """Most tokens kept of a text, [CLS] and [SEP] included; None: as many as the model has positions for."""
    tokenizer: str | None = None
    """tokenizer.json, BERT's vocab.txt, SentencePiece's .model, or a folder with one of them; None: that of `init`, or
    else WordPiece trained on the training texts."""
    vocab_size: int = 1000
    """Most entries of a tokenizer trained here."""
    sampling: str = "strided"
    """Training frames: "strided" segment, "uniform", "random_sorted", or "head_tail"."""
    frame_stride: int = 4
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Share of the frame's area that a training crop keeps."""
    fit: str = "crop"
    """"crop": training windows from 3:4 to 4:3 are resized to squares, `test` shows centred squares, whose proportions
    stay; "squash": frames are squashed to squares before all that, as in ALPRO's release. A run's model folders say
    which, and are evaluated so."""
    flip: bool = True
    """Mirror half of the training clips, except where a caption, question, answer or class names a direction. Classes
    that are bare numbers name none: see `class_names`."""
    augmentation: ClipAugmentation = field(default_factory=ClipAugmentation)
    class_names: str | None = None
    """finetune_classification: a file that names the classes, see `load_classes`; None: the labels are the names."""
    features: str | None = None
    """finetune_captioning: a folder of the videos' frozen features, in place of decoding them, whose `fit` must be that
    given here; None: none."""
    max_answers: int = 1500
    """Most answers that an open-ended question may have: the most frequent ones of the training set."""
    num_workers: int = 1
    """Decoding processes; 0 decodes in the training process."""
    decoder: str = "auto"
    """"auto": NVDEC where there is one, else PyAV on the CPU; or "pyav", "dali"."""

    def __post_init__(self) -> None:
        if not 0 < self.image_share < 1:
            raise ValueError(f"image_share must be in (0, 1), got {self.image_share}")
        if self.image_frames not in ("one", "repeat"):
            raise ValueError(f"image_frames must be 'one' or 'repeat', got {self.image_frames!r}")
        if self.shares and (len(self.shares) != 1 + len(self.more) or not min(self.shares) > 0):
            raise ValueError(f"shares must be {1 + len(self.more)} positive numbers (train, more), got {self.shares}")
        check_fit(self.fit, self.test_views[1])
        for name, least in (("test_top_k", 1), ("max_text_length", 3)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, or none, got {value}")
