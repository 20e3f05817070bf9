"""Captioned clips in packed batches, from a list of records to tensors on the device.

B = clips, T = frames, N = caption tokens of the whole batch. What step s holds is a function of (records, seed, batch
size, ranks, s) alone, so a run resumes exactly at any step, with any number of workers; see `fastvtp.data.sampling`.
The one exception: at which files DALI failed, so that PyAV decodes them since, a resumed run must be told
(`known_bad`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fastvtp.data.dali_trial import why_not_alone
from fastvtp.data.handing_over import GAVE_UP
from fastvtp.data.notes import Notes
from fastvtp.data.pipeline import Feed, build_pipeline, dali_formats, opener
from fastvtp.data.reading import DEFAULT_FRAMING, ClipReading, ClipShape
from fastvtp.data.records import VideoRecord
from fastvtp.data.sampling import ClipAugmentation, check_framing
from fastvtp.data.source import ClipSource, NoDecodableClipError
from fastvtp.data.storage.shard_indexing import index_named
from fastvtp.data.stream import Batches, SampleStream
from fastvtp.data.text import MIN_TEXT_LENGTH, PackedText, Tokenizer
from fastvtp.data.workers.pool import WorkersLostError
from fastvtp.data.workers.shared_slots import sample_bytes
from fastvtp.errors import UserError


@dataclass(frozen=True)
class VideoTextBatch:
    """The captioned clips of one step.

    A training batch may hold a record more than once, each time as another clip of it: where it crosses from one epoch
    into the next, where a replacement is already there, where it is larger than the data set. Its `sample_ids` then
    repeat, and losses must treat equal ids as one sample, never as each other's negatives.

    Attributes:
        video: uint8 `[B, T, H, W, 3]` RGB.
        input_ids: int64 `[N]`, the captions one after the other, each in its tokenizer's form (`[CLS] ... [SEP]`);
            empty where the loader has no tokenizer, and all lengths are 0 then.
        cu_seqlens: int32 `[B + 1]`, where each caption begins and the last ends.
        text_lengths: tokens per caption, on the host.
        max_text_length: the largest of them.
        sample_ids: int64 `[B]`, index of each clip's record: the key of its mask. May repeat, see above.
        captions: the captions as text.
        step: number of the batch in the run, from 0; several ranks take turns. What is random about a batch follows
            from it.
        kind: "video", or "image" where the clips are pictures: of one frame, or of one that is repeated.
        sources: which video, or span of one, each clip is of, see `VideoRecord.source`; empty where nobody decoded one.
        plan: the model's plan of this batch, on the host, where it was made ahead.
    """

    video: torch.Tensor
    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    text_lengths: tuple[int, ...]
    max_text_length: int
    sample_ids: torch.Tensor
    captions: list[str]
    step: int
    kind: str = "video"
    sources: tuple[str, ...] = ()
    plan: Any = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> VideoTextBatch:
        """Copy the batch with its tensors on `device`."""
        names = ("video", "input_ids", "cu_seqlens", "sample_ids")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Where and by what clips are decoded; nothing of it shows in what a step holds, but for `known_bad`.

    Attributes:
        decoder: "pyav" decodes in the workers, "dali" in the pipeline, which is handed whole files, and in the workers
            what DALI cannot decode, or not in the right colours; "torchcodec" in the workers, with a context of its own
            on the GPU in each where `device` is one; "auto" is "dali" on a GPU with NVDEC, else "pyav".
        num_workers: worker processes; 0 prepares clips in this process, where nothing can be ended that hangs.
        file_seconds: longest time that a worker may take for a file, which then counts as undecodable; None: any.
        prefetch: batches prepared ahead.
        decoder_threads: that feed NVDEC where DALI decodes on a GPU. One feeds one engine; an H100 has seven.
        device: where `video` is made. Captions stay on the host, where masking and packing are planned.
        known_bad: path and reason of files found undecodable before. A resumed run passes the `bad_files` that the
            same rank had at its `start_step`, so that a file which took too long is not used again, and one at which
            DALI failed is again decoded by PyAV, whose pictures differ by a few levels. All other attempts fail by
            themselves where PyAV decodes, and this changes nothing but `bad_files`.

    Raises:
        UserError: a value out of range.
    """

    decoder: str = "auto"
    num_workers: int = 1
    file_seconds: float | None = 60.0
    prefetch: int = 2
    decoder_threads: int = 8
    device: torch.device | str = "cpu"
    known_bad: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise UserError(f"num_workers must not be negative, got {self.num_workers}")
        if self.file_seconds is not None and not self.file_seconds > 0:
            raise UserError(f"file_seconds must be positive, or none, got {self.file_seconds}")
        if self.prefetch < 1:
            raise UserError(f"prefetch must be positive, got {self.prefetch}")
        if self.decoder_threads < 1:
            raise UserError(f"decoder_threads must be positive, got {self.decoder_threads}")


_READING, _DECODING = ClipReading(), Decoding()


class VideoTextLoader:
    """Iterates over `VideoTextBatch`es; a context manager that stops its worker processes.

    In training the stream of shuffled epochs has no end: a batch may cross from one epoch into the next, and a clip
    that cannot be decoded is replaced by another, the same one in any repetition of the run. In evaluation every record
    comes once, in order, with its first caption, fixed frames and the centre of the picture; the last batch is smaller,
    a clip that cannot be decoded is left out, a batch of which nothing is left too, and each iteration starts over.

    In multi-view evaluation, `batches.views` = (segments, crops), every record comes segments x crops times in a row,
    view segment * crops + crop of it being another span of time and another window, see `FrameSampling` and
    `CropSampling`. Views of a record may lie in different batches and on different ranks: whoever averages goes by
    `sample_ids`. A record is left out in all its views; only damage that DALI itself meets may show after earlier views
    were handed out, so drop a record that is in `bad_files` at the end of the pass. PyAV keeps the frames of all
    segments of one record in memory, so that they are decoded once.

    Of a record that is a span of its video, all this is of the span: frames, segments and parts are chosen as if the
    span were a video of its own. A span that ends after its video is cut; of the first that does so by more than a
    second a log line says so. One without a single frame counts as undecodable.

    Args:
        records: the captioned videos. One whose captions name a direction is never mirrored, nor one that is not
            `mirrorable`.
        tokenizer: turns captions into ids. None, for a model that reads no text: batches hold captions without ids.
        shape: the shape of the clips. Several crops, "squash" framing and augmentation need an `image_size`.
        reading: which frames and windows the clips show, and what training changes about them.
        batches: which batches are made.
        decoding: where and by what clips are decoded.
        max_text_length: tokens kept of a caption, the special ones included; needed with a tokenizer.

    Attributes:
        bad_files: path and reason of each file found undecodable so far, by path; those of `known_bad` included. Of a
            span that cannot be shown `VideoRecord.source` and the reason: other spans of the video are not concerned.
            In training also the files that PyAV decodes since DALI failed at them, whose reason begins with `GAVE_UP`.
        wait_seconds: time spent waiting for data.

    Raises:
        UserError: no records, or arguments that do not go together.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        tokenizer: Tokenizer | None,
        *,
        shape: ClipShape,
        batches: Batches,
        reading: ClipReading = _READING,
        decoding: Decoding = _DECODING,
        max_text_length: int | None = None,
    ):
        _require(len(records) > 0, "records: no videos")
        if tokenizer is not None:
            _require(
                (max_text_length or 0) >= MIN_TEXT_LENGTH,
                f"max_text_length must be at least {MIN_TEXT_LENGTH}, got {max_text_length}",
            )
        framing, crops = reading.framing or DEFAULT_FRAMING, batches.views[1]
        if shape.size is None:
            _require(crops == 1, f"views: {crops} crops need an image_size")
            _require(reading.augmentation == ClipAugmentation(), "augmentation needs an image_size")
            _require(framing != "squash", "framing 'squash' needs an image_size")
        check_framing(framing, crops)
        if not batches.train and batches.num_steps is None:
            batches = replace(batches, num_steps=_steps_of_a_pass(len(records), batches))

        self.wait_seconds = 0.0
        self._notes = Notes(decoding.known_bad, batches.train)
        self._records, self._tokenizer, self._max_text_length = records, tokenizer, max_text_length
        self._size, self._decoding = shape.size, decoding
        self._device = torch.device(decoding.device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._batches = batches
        self._stream = SampleStream(len(records), batches)
        self._source = ClipSource(
            records,
            self._stream,
            reading=reading,
            shape=shape,
            dali_formats=dali_formats(decoding.decoder, self._device),
            known_bad=decoding.known_bad,
            opens=opener(decoding.decoder, self._device),
        )
        fixed = shape.size if self._source.decodes else None
        self._sample_bytes = None if fixed is None else sample_bytes(shape.num_frames, fixed)
        self._step = batches.start_step
        self._pipeline: Any = None
        self._feed: Feed | None = None

    @property
    def bad_files(self) -> dict[str, str]:
        return dict(sorted(self._notes.bad_files.items()))

    def __len__(self) -> int:
        """Return the number of steps from the start on; raises TypeError where there is no end."""
        if self._batches.num_steps is None:
            raise TypeError("an endless loader has no length: set num_steps")
        return self._batches.num_steps

    def __enter__(self) -> VideoTextLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def source(self) -> ClipSource:
        """What makes the samples, and tells by `describe` what is chosen for one."""
        return self._source

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The process numbers of the workers that are running now; one that ends is replaced by another."""
        workers = None if self._feed is None else self._feed.workers
        return () if workers is None else workers.pids

    def close(self) -> None:
        """Stop the workers; batches handed out stay valid. A later iteration starts workers again."""
        if self._feed is not None:
            self._feed.close()
        self._pipeline = self._feed = None

    def __iter__(self) -> Iterator[VideoTextBatch]:
        """Go on with the stream in training, start over in evaluation.

        Raises:
            NoDecodableClipError: a long row of clips, drawn one to replace the other, cannot be decoded; in evaluation
                no clip can, and `bad_files` then names all.
        """
        if not self._batches.train and self._step != self._batches.start_step:
            self.close()
            self._step = self._batches.start_step
        while (outputs := self._run()) is not None:
            batch = self._assemble(*outputs)
            self._step += 1
            if batch is not None:
                yield batch
        if not self._batches.train:
            self._step = self._batches.start_step

    def _run(self) -> tuple[Any, Any] | None:
        """Return the pipeline's outputs for the current step, or None after the last."""
        started = time.perf_counter()
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            while True:
                pipeline = self._pipeline or self._start_pipeline()
                try:
                    return pipeline.run(stream)
                except StopIteration:
                    break
                except (NoDecodableClipError, WorkersLostError):
                    raise
                except Exception as error:  # DALI raises nothing more specific
                    if self._source.decodes:
                        raise
                    self._hand_to_pyav(error)
            if self._batches.train or self._source.stream != self._stream:
                self.close()
            else:
                pipeline.reset()  # spares the next pass the start of new workers
            return None
        except BaseException as error:
            if isinstance(error, NoDecodableClipError) and not self._batches.train:
                for name, reason in error.failures:
                    self._notes.bad_file(name, reason)
            self.close()  # it has worked ahead: whoever goes on all the same begins anew, with the current step
            raise
        finally:
            self.wait_seconds += time.perf_counter() - started

    def _start_pipeline(self) -> Any:
        done = self._step - self._batches.start_step
        left = None if self._batches.num_steps is None else self._batches.num_steps - done
        ahead = replace(self._batches, start_step=self._step, num_steps=left)
        self._source.stream = replace(self._stream, batches=ahead)
        if self._feed is None:
            index_named(record.video for record in self._records)
        self._feed = self._feed or Feed(
            self._source,
            num_workers=self._decoding.num_workers,
            prefetch=self._decoding.prefetch,
            clip_bytes=self._sample_bytes,
            seconds=self._decoding.file_seconds,
        )
        self._pipeline = build_pipeline(
            self._source,
            self._feed,
            size=self._size,
            device_id=self._device.index,
            prefetch=self._decoding.prefetch,
            threads=self._decoding.decoder_threads,
        )
        return self._pipeline

    def _hand_to_pyav(self, error: Exception) -> None:
        """After the pipeline failed with `error`: find the files that DALI cannot decode, by giving it one at a time,
        let PyAV decode them from now on, and stop the pipeline, to build another that begins with the current step.

        Raises:
            NoDecodableClipError: the source ran out of replacements; in evaluation all files are noted then.
            Exception: `error` itself, where DALI decodes each file alone.
        """
        given_up: dict[str, str] = {}
        # The graph works ahead; the batch that it stumbled over may be one of those.
        for step in range(self._step, self._step + 1 + self._decoding.prefetch):
            for place in range(self._batches.batch_size):
                handed = self._source.handed_to_dali(self._stream.number(step, place))
                if handed and (why := why_not_alone(*handed[1:], self._device.index)):
                    given_up[handed[0]] = f"{GAVE_UP} ({why})"
            if given_up:
                break
        if self._feed is None or not given_up:
            raise error
        self._notes.given_up(given_up)
        self._feed.set_aside(given_up)
        self._pipeline = None

    def _assemble(self, meta: Any, video: Any) -> VideoTextBatch | None:
        """Return the batch of the current step, without padding and, in evaluation, without what could not be
        decoded."""
        kept, indices, captions = [], [], []
        for place, (index, failures, caption, beyond) in enumerate(meta.as_array().tolist()):
            number = self._stream.number(self._step, place)
            self._notes.cut_span(self._records[index].source, beyond)
            for name, reason in self._failures_of(number):
                self._notes.bad_file(name, reason)
            self._notes.beside(None if self._feed is None else self._feed.beside.pop(number, None))
            if self._batches.train or (failures == 0 and number < self._stream.num_samples):
                kept.append(place)
                indices.append(index)
                captions.append(self._records[index].captions[caption])
        if not kept:
            return None
        text = self._encoded(captions)
        return VideoTextBatch(
            video=self._to_torch(video, kept),
            input_ids=torch.from_numpy(text.input_ids),
            cu_seqlens=torch.from_numpy(np.cumsum((0, *text.lengths), dtype=np.int32)),
            text_lengths=text.lengths,
            max_text_length=max(text.lengths),
            sample_ids=torch.tensor(indices, dtype=torch.int64),
            captions=captions,
            step=self._stream.batch_number(self._step),
            sources=tuple(self._records[index].source for index in indices),
        )

    def _encoded(self, captions: list[str]) -> PackedText:
        """Return token ids of the captions; none where there is no tokenizer."""
        if self._tokenizer is None or self._max_text_length is None:
            return PackedText(np.empty(0, np.int64), (0,) * len(captions))
        return self._tokenizer.encode_packed(captions, self._max_text_length)

    def _to_torch(self, video: Any, kept: list[int]) -> torch.Tensor:
        """Return the kept clips, uint8 `[B, T, H, W, 3]`, without a copy where all are kept."""
        shapes = {tuple(video[place].shape()) for place in kept}
        if len(shapes) > 1:
            raise UserError(f"image_size=None needs videos of one size, step {self._step} holds {sorted(shapes)}")
        if len(kept) == self._batches.batch_size:
            return torch.from_dlpack(video.as_tensor())
        return torch.stack([torch.from_dlpack(video[place]) for place in kept])

    def _failures_of(self, number: int) -> tuple[tuple[str, str], ...]:
        return () if self._feed is None else self._feed.failures.pop(number, ())


def _steps_of_a_pass(num_records: int, batches: Batches) -> int:
    """Tell how many steps are left, from `start_step` on, until every view of every record has come."""
    segments, crops = batches.views
    all_steps = -(-num_records * segments * crops // (batches.batch_size * batches.world_size))
    return max(0, all_steps - batches.start_step)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
