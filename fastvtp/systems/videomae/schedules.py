"""VideoMAE's released trainings: data, epochs, batches and rates of its scripts (MCG-NJU/VideoMAE, `scripts/`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastvtp.training.published import Published, follows

_VIDEOS = {"kinetics": 240_000, "ssv2": 168_913, "ucf101": 9537}
_DATA = {"kinetics": "Kinetics-400", "ssv2": "Something-Something V2", "ucf101": "split 1 of UCF101"}
_WARMUP_EPOCHS = {"pretrain": 40, "finetune": 5}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A released training.

    Attributes:
        kind: "pretrain" or "finetune".
        data: the data set, as the folder of its scripts is called.
        size: of the model.
        pretraining: epochs of its pretraining.
        epochs, batch: epochs, and videos a step.
        repeats: clips that a step reads of each of its videos.
        rate, final_rate: the rate at its peak and at the end, for 256 videos a step.
    """

    kind: str = "pretrain"
    data: str = "kinetics"
    size: str = "base"
    pretraining: int = 1600
    epochs: int
    batch: int
    repeats: int = 1
    rate: float = 1.5e-4
    final_rate: float = 1e-5

    @property
    def videos(self) -> int:
        """Videos of the data set."""
        return _VIDEOS[self.data]

    @property
    def steps(self) -> int:
        """Steps of all epochs, of which the last, smaller batch is left out."""
        return self.epochs * (self.videos // self.batch)

    @property
    def clips_a_step(self) -> int:
        """Clips whose gradients make a step."""
        return self.batch * self.repeats

    @property
    def warmup_share(self) -> float:
        """Share of the steps in which the rate rises."""
        return _WARMUP_EPOCHS[self.kind] / self.epochs

    def scaled(self, rate: float) -> float:
        """Return the rate at this batch, of one for 256 videos."""
        return rate * self.batch / 256

    def published(self, *differs: str) -> Callable[[Any], Any]:
        """Return the mark of the recipe that follows this schedule. differs: as in `Published`, beside what all
        recipes of its kind do otherwise."""
        ratio = 0.75 if self.data == "ucf101" else 0.9
        folder = f"videomae_vit_{self.size}_patch16_224_tubemasking_ratio_{ratio}_epoch_{self.pretraining}"
        return follows(
            Published(
                paper="VideoMAE, arXiv:2203.12602",
                release=f"MCG-NJU/VideoMAE, scripts/{self.data}/{folder}/{self.kind}.sh",
                data=f"{_DATA[self.data]}, {self.videos} videos",
                batch=self.clips_a_step,
                clips=self.clips_a_step * self.steps,
                settings=self._sources(),
                differs=(*_DIFFERS[self.kind], *differs),
            )
        )

    def _sources(self) -> Mapping[str, str]:
        times = "" if self.repeats == 1 else ", each twice"
        return {
            "model.": "release",
            **dict.fromkeys(("model.trained_frames", "model.trained_image_size"), "ours"),
            "data.sampling": "release",
            "data.frame_stride": "release",
            "data.framing": "release",
            "optimizer.": "release",
            "optimizer.learning_rate": f"release: {self.rate:g} for 256 videos a step",
            "optimizer.final_learning_rate": f"release: {self.final_rate:g} for 256 videos a step",
            "optimizer.warmup_share": f"release: {_WARMUP_EPOCHS[self.kind]} epochs",
            "steps": f"release: {self.epochs} epochs of {self.videos} videos, {self.batch} a step{times}",
            "batch_size": "release: its clips a step",
            "precision": "ours: the release has float16",
            **_SOURCES[self.kind],
        }


_SOURCES: dict[str, dict[str, str]] = {
    "pretrain": {
        "data.flip": "release: its pretraining never mirrors",
        "data.crop_scale": "release: sides of 1, .875, .75, .66 of the shorter one, 44 to 100 % of its square",
        "data.crop_ratio": "release",
    },
    "finetune": {
        **dict.fromkeys(("data.crop_ratio", "data.flip", "data.augmentation."), "release"),
        "data.crop_scale": "release: of the whole frame, drawn again where nothing fits",
        **dict.fromkeys(("data.test_views", "data.test_sampling", "label_smoothing", "mixup"), "release"),
        "init": "release: the pretraining of the same size and data",
    },
}
_DIFFERS = {
    "pretrain": ("The release's windows have four sizes and thirteen places; here both are continuous.",),
    "finetune": (
        "The release reads each video of a step twice; here a step has as many clips of different videos.",
        "The release augments whole frames, with bicubic turns and shears; here windows, with bilinear ones.",
        "The release erases boxes by noise; here by grey.",
        "The release's test segments of Kinetics-400 start at multiples of the frame stride; here anywhere.",
        "The release mixes the clips of half of the steps by CutMix; here all are mixed by mixup.",
        "The release augments whole frames and erases by noise; here windows are augmented and boxes turn grey.",
        "The release's frames of a training clip are 4.27 apart, its test segments begin at multiples of 4.",
    ),
}

PRETRAINING = {
    "small": Schedule(size="small", epochs=1600, batch=1024),
    "base": Schedule(epochs=1600, batch=2048),
    "large": Schedule(size="large", epochs=1600, batch=512),
    "huge": Schedule(size="huge", epochs=1600, batch=1024),
    "ssv2": Schedule(data="ssv2", pretraining=2400, epochs=2400, batch=2048),
    "ssv2_small": Schedule(data="ssv2", size="small", pretraining=2400, epochs=2400, batch=1024),
    "ucf101": Schedule(data="ucf101", pretraining=3200, epochs=3200, batch=192, rate=3e-4),
}
"""Of the recipes `videomae_pretrain_...`, by the end of the name."""

_REPEATED: dict[str, Any] = {"kind": "finetune", "repeats": 2, "final_rate": 1e-6}
_REPEATED_LONG: dict[str, Any] = {"kind": "finetune", "repeats": 2, "final_rate": 1e-5}

FINETUNING = {
    "small": Schedule(size="small", epochs=150, batch=384, rate=5e-4, **_REPEATED),
    "base": Schedule(epochs=75, batch=384, rate=5e-4, **_REPEATED),
    "large": Schedule(size="large", epochs=35, batch=128, rate=2e-3, **_REPEATED),
    "huge": Schedule(size="huge", epochs=50, batch=512, rate=1e-3, **_REPEATED_LONG),
    "ssv2": Schedule(data="ssv2", pretraining=2400, epochs=30, batch=384, rate=5e-4, **_REPEATED),
    "ssv2_small": Schedule(data="ssv2", size="small", pretraining=2400, epochs=40, batch=384, rate=1e-3, **_REPEATED),
    "ucf101": Schedule(data="ucf101", pretraining=3200, epochs=100, batch=128, rate=5e-4, **_REPEATED_LONG),
}
"""Of the recipes `classification_finetune_...`, likewise; "base" has no end of its own."""
