"""What a run learns from and is scored on, and how it is read."""

import logging
from dataclasses import dataclass, field, replace

from fastvtp.data.formats.catalogue import find_format
from fastvtp.data.formats.lists import ListSettings, VideoList
from fastvtp.data.reading import DEFAULT_FRAMING, ClipReading, one_spacing
from fastvtp.data.sampling import SAMPLING_KINDS, check_framing, check_spacing, check_views
from fastvtp.data.storage.settings import storage_settings, use_storage
from fastvtp.settings import FLAT, a_path, check_types

logger = logging.getLogger(__name__)

_LIST = "a .jsonl file or a folder of videos"


# where a recipe says nothing else
TRAINING_READING = ClipReading(sampling="strided", frame_stride=4, framing=DEFAULT_FRAMING)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run learns from and is scored on, and how it is read. Raises ValueError for a value out of range."""

    train: str = field(metadata=a_path(_LIST))
    """What the task learns from. Captions: a .jsonl of {"video": path, "caption": text}, or a folder of videos with
    captions. Videos alone (pretrain_videomae): the same without captions. Questions: see `load_questions`. Classes: see
    `load_classes`. Lines of all these may say a span, "start" and "end" or "start_frame" and "end_frame", see
    `record_of`. Or a published list of any of these, see docs/lists.md."""
    more: tuple[str, ...] = field(default=(), metadata=a_path(_LIST))
    """pretrain_videoprism_...: further data sets like `train`. Each batch comes from one of them all (alternating
    gradient descent)."""
    shares: tuple[float, ...] = ()
    """How the batches of videos divide, in proportion: of `train`, then of each of `more`; empty: as their clips do.
    VideoPrism's are not published."""
    images: str | None = field(default=None, metadata=a_path("a .jsonl file of pictures"))
    """pretrain_prompter, pretrain_alpro, pretrain_videoprism_contrastive: captioned pictures, of which a share of
    `image_share` of the batches is made; a .jsonl as for videos."""
    image_share: float = 0.5
    """Share of the batches that are of `images`, spread evenly."""
    image_frames: str = "one"
    """A picture of `images` is "one" frame, or is "repeat"ed as all frames of a clip, as ALPRO's release has it."""
    test: str | None = field(default=None, metadata=a_path(f"{_LIST}, as for data.train"))
    """Data as in `train` for scores at the end; None: no evaluation."""
    lists: ListSettings = field(default_factory=ListSettings, metadata=FLAT)
    """How these lists are read. Its settings are `data.format`, `data.split`, `data.videos` and so on."""
    test_views: tuple[int, int] = (1, 1)
    """Segments and crops of each test clip, whose results are averaged."""
    test_sampling: str = "uniform"
    """Test frames: "uniform" (the middles of equal parts), "starts" (their first frames), "strided" segments spaced as
    in training, or "whole_steps"; see `FrameSampling`."""
    test_fps: float | None = None
    """Frames a second of test clips; None: spaced as in training, by `data.fps` or `data.frame_stride`."""
    test_top_k: int | None = None
    """Pairs of each text and clip that a matching head scores, those that the contrast ranks first; None: all pairs."""
    max_text_length: int | None = None
    """Most tokens kept of a text, [CLS] and [SEP] included; None: as many as the model has positions for."""
    tokenizer: str | None = field(default=None, metadata=a_path("a tokenizer's file or folder"))
    """tokenizer.json, BERT's vocab.txt, SentencePiece's .model, or a folder with one of them; None: that of `init`, or
    else WordPiece trained on the training texts."""
    vocab_size: int = 1000
    """Most entries of a tokenizer trained here."""
    reading: ClipReading = field(default=TRAINING_READING, metadata=FLAT)
    """How training clips are read. Its settings are `data.sampling`, `data.frame_stride`, `data.fps` and so on. A run's
    model folders record the fps and the framing, and clips are framed so for scores. Classes that are bare numbers name
    no direction by which a clip were not to be mirrored: see `class_names`."""
    class_names: str | None = field(default=None, metadata=a_path("a file of class names"))
    """finetune_..._classification: a file that names the classes, see `load_classes`; None: the labels are the
    names."""
    features: str | None = field(default=None, metadata=a_path("a folder of `fastvtp extract`"))
    """finetune_captioning: a folder of the videos' frozen features, in place of decoding them, whose framing must be
    that given here; None: none."""
    max_answers: int = 1500
    """Most answers that an open-ended question may have: the most frequent ones of the training set."""
    num_workers: int = 1
    """Decoding processes; 0 decodes in the training process."""
    file_seconds: float | None = 60.0
    """Longest time that a decoding process may take for a file, which counts as undecodable after it; None: any."""
    cache_dir: str | None = None
    """Folder for copies of what is read from object stores, see `StorageSettings`; None: as FASTVTP_CACHE says, or
    `fastvtp` in the user's cache folder."""
    cache_gb: float | None = None
    """Most GB of these copies; None: as FASTVTP_CACHE_GB says, or 16."""
    decoder: str = "auto"
    """"auto": NVDEC where there is one, else PyAV on the CPU; or "pyav", "dali", "torchcodec"."""
    decoder_threads: int = 8
    """Threads that feed NVDEC where DALI decodes on a GPU. One feeds one engine; an H100 has seven."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in self.lists.formats:
            find_format(name)
        self.lists.check_more(len(self.more))
        if not 0 < self.image_share < 1:
            raise ValueError(f"image_share must be in (0, 1), got {self.image_share}")
        if self.image_frames not in ("one", "repeat"):
            raise ValueError(f"image_frames must be 'one' or 'repeat', got {self.image_frames!r}")
        if self.shares and (len(self.shares) != 1 + len(self.more) or not min(self.shares) > 0):
            raise ValueError(f"shares must be {1 + len(self.more)} positive numbers (train, more), got {self.shares}")
        if self.reading.framing is None:
            raise ValueError("framing must be 'crop' or 'squash', got none: a run says how it frames its clips")
        check_views(self.test_views, name="test_views")
        check_framing(self.framing, self.test_views[1])
        check_spacing(self.test_fps, name="test_fps")
        if self.test_sampling not in SAMPLING_KINDS:
            raise ValueError(f"test_sampling must be one of {', '.join(SAMPLING_KINDS)}, got {self.test_sampling!r}")
        for name, least in (("test_top_k", 1), ("max_text_length", 3), ("file_seconds", 1), ("cache_gb", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, or none, got {value}")

    def use_storage(self) -> None:
        """Let this process, and those that it starts, keep copies of objects as is said here."""
        said = {name: getattr(self, name) for name in ("cache_dir", "cache_gb") if getattr(self, name) is not None}
        if said:
            use_storage(replace(storage_settings(), **said))
        patience = storage_settings().object_seconds
        if self.file_seconds is not None and patience >= self.file_seconds:
            logger.warning(
                "FASTVTP_OBJECT_SECONDS=%g leaves an object of a store more time than data.file_seconds=%g leaves its "
                "file: slow ones end their workers and count as bad for the whole run; set a larger file_seconds",
                patience,
                self.file_seconds,
            )

    @property
    def train_list(self) -> VideoList:
        """The list at `train`, with how it is read."""
        return self.lists.train_list(self.train)

    @property
    def more_lists(self) -> tuple[VideoList, ...]:
        """The lists at `more`, likewise."""
        return tuple(self.lists.more_list(path, place) for place, path in enumerate(self.more))

    @property
    def images_list(self) -> VideoList | None:
        """The list at `images`, likewise; None: there is none."""
        return None if self.images is None else self.lists.images_list(self.images)

    @property
    def test_list(self) -> VideoList | None:
        """The list at `test`, likewise; None: there is none."""
        return None if self.test is None else self.lists.test_list(self.test)

    @property
    def framing(self) -> str:
        """How frames come to the model's size in training, "crop" or "squash"."""
        return self.reading.framing or DEFAULT_FRAMING

    @property
    def test_reading(self) -> ClipReading:
        """How test clips are read: with frames of their own, framed as the model was trained."""
        spacing = one_spacing({} if self.test_fps is None else {"fps": self.test_fps})
        return replace(self.reading, sampling=self.test_sampling, framing=None, **spacing)
