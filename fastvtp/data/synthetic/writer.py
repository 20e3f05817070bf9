"""Writes a synthetic data set: H.264 clips by PyAV in several processes, captions and questions as JSON lines.

root/dataset.json                                    the configuration; written last, so it marks a finished set
root/{train,test}.jsonl                              {"id", "video", "caption", "scene"}
root/{train,test}_questions.jsonl                    {"id", "video", "question", "answer", "type"}
root/words.txt                                       shapes and colours, one a line, for `fastvtp entities --words`
root/videos/{train,test}/000123.mp4                  paths in the JSON lines are relative to root
"""

import contextlib
import functools
import io
import json
import multiprocessing
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastvtp.data.synthetic.config import (
    GENERATOR_VERSION,
    SyntheticConfig,
    SyntheticDataset,
)
from fastvtp.data.synthetic.language import ask, describe
from fastvtp.data.synthetic.render import render_scene
from fastvtp.data.synthetic.scene import (
    ENTITIES,
    Scene,
    sample_scenes,
)
from fastvtp.data.workers.child_processes import cores
from fastvtp.errors import UserError
from fastvtp.files import write_atomically

_CLIPS_PER_CHUNK = 16


@dataclass(frozen=True)
class Clip:
    """One clip of the data set before it is rendered; `id` is "<split>/<number>"."""

    id: str
    scene: Scene

    @property
    def video(self) -> str:
        return f"videos/{self.id}.mp4"


def generate_dataset(
    root: Path | str, config: SyntheticConfig | None = None, *, workers: int | None = None, progress: bool = True
) -> SyntheticDataset:
    """Generate the data set in `root`, or find it there, or complete what an interrupted call has left.

    Args:
        root: folder of the data set; made when absent.
        config: what to generate; default SyntheticConfig().
        workers: processes; default one per available core. The files do not depend on it. With more than one, a script
            must guard its entry point by `if __name__ == "__main__":`, as multiprocessing asks.
        progress: show a progress bar (needs tqdm).

    Of the processes of a group, all of which call this, the first generates it while the others wait.

    Raises:
        UserError: `root` holds something else or a data set made with other settings, or `workers` < 1.
    """
    from fastvtp import processes  # here, because it imports torch, which the processes that render do without

    return processes.first_alone(lambda: _generate(root, config, workers, progress))


def _generate(
    root: Path | str, config: SyntheticConfig | None, workers: int | None, progress: bool
) -> SyntheticDataset:
    root, config = Path(root), config or SyntheticConfig()
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    dataset = SyntheticDataset(root)
    finished, begun = root / "dataset.json", root / "dataset.incomplete.json"
    description = {"generator_version": GENERATOR_VERSION, **asdict(config)}
    description_json = (json.dumps(description, indent=2) + "\n").encode()
    for marker in (finished, begun):
        if marker.exists():
            _check_same(marker, description)
    if finished.exists():
        return dataset
    if not begun.exists() and root.exists() and any(root.iterdir()):
        raise UserError(f"{root}: expected an empty folder or a synthetic data set, found other files")

    root.mkdir(parents=True, exist_ok=True)
    write_atomically(begun, description_json)
    for split in ("train", "test"):
        (root / "videos" / split).mkdir(parents=True, exist_ok=True)
    clips = plan_clips(config)
    missing = [clip for split in clips.values() for clip in split if not (root / clip.video).exists()]
    _write_videos(root, missing, config, workers or cores(), progress)
    for split, path in (("train", dataset.train), ("test", dataset.test)):
        write_atomically(path, _json_lines(_caption_rows(clips[split], config.seed)))
    for split, path in (("train", dataset.train_questions), ("test", dataset.test_questions)):
        write_atomically(path, _json_lines(_question_rows(clips[split], config.seed)))
    write_atomically(dataset.words, "".join(f"{word}\n" for word in ENTITIES).encode())
    # Not a rename of `begun`: a second process generating the same set may have finished first.
    write_atomically(finished, description_json)
    begun.unlink(missing_ok=True)
    return dataset


def plan_clips(config: SyntheticConfig) -> dict[str, list[Clip]]:
    """Return the clips of the splits "test" and "train"; no scene occurs twice in the whole data set."""
    taken: set[Scene] = set()
    # The test split goes first, so that it stays the same when only num_train changes.
    return {
        split: [
            Clip(f"{split}/{index:06d}", scene)
            for index, scene in enumerate(sample_scenes(config.seed, split, count, config.twin_fraction, taken))
        ]
        for split, count in (("test", config.num_test), ("train", config.num_train))
    }


def encode_h264(frames: np.ndarray, *, fps: int, keyframe_interval: int, crf: int) -> bytes:
    """Return frames, uint8 RGB [T, H, W, 3], as an mp4 file with one H.264 stream and no B-frames."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    buffer = io.BytesIO()
    options = {"preset": "veryfast", "crf": str(crf), "g": str(keyframe_interval), "bf": "0", "sc_threshold": "0"}
    # With x264's macroblock tree, or its code for AVX-512, a clip comes out with other bytes now and then, and with
    # others on other machines.
    options |= {"mbtree": "0", "x264-params": "cpu-independent=1"}
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        # The matrix by which PyAV turns RGB into YUV; left unsaid, a decoder may guess BT.709.
        stream.codec_context.colorspace = Colorspace.ITU601
        stream.codec_context.color_range = ColorRange.MPEG
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _write_videos(root: Path, clips: list[Clip], config: SyntheticConfig, workers: int, progress: bool) -> None:
    chunks = [clips[start : start + _CLIPS_PER_CHUNK] for start in range(0, len(clips), _CLIPS_PER_CHUNK)]
    write = functools.partial(_write_chunk, root, config)
    with _progress_bar(len(clips), progress) as advance:
        for written in _map_unordered(write, chunks, min(workers, len(chunks))):
            advance(written)


def _write_chunk(root: Path, config: SyntheticConfig, clips: list[Clip]) -> int:
    for clip in clips:
        frames = render_scene(clip.scene, config.num_frames, config.height, config.width)
        video = encode_h264(frames, fps=config.fps, keyframe_interval=config.keyframe_interval, crf=config.crf)
        write_atomically(root / clip.video, video)
    return len(clips)


def _map_unordered(function: Callable[[list[Clip]], int], chunks: list[list[Clip]], workers: int) -> Iterator[int]:
    """Yield function(chunk) as the chunks get done, in this process when one worker is enough."""
    if workers <= 1:
        yield from map(function, chunks)
        return
    # Spawned and not forked: the caller may have started torch's or CUDA's threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts) as executor:
        try:
            for future in as_completed([executor.submit(function, chunk) for chunk in chunks]):
                yield future.result()
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def _ignore_interrupts() -> None:
    # Ctrl-C reaches the whole process group; the parent alone answers it, by cancelling the chunks not yet begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    if not shown or not total:
        yield lambda done: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc="synthetic clips", unit="clip") as bar:
        yield bar.update


def _caption_rows(clips: list[Clip], seed: int) -> Iterator[dict]:
    for clip in clips:
        caption = describe(clip.scene, random.Random(f"{seed}/caption/{clip.id}"))
        yield {"id": clip.id, "video": clip.video, "caption": caption, "scene": asdict(clip.scene)}


def _question_rows(clips: list[Clip], seed: int) -> Iterator[dict]:
    for clip in clips:
        for asked in ask(clip.scene, random.Random(f"{seed}/questions/{clip.id}")):
            row = {"question": asked.question, "answer": asked.answer, "type": asked.kind}
            yield {"id": clip.id, "video": clip.video, **row}


def _json_lines(rows: Iterable[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _check_same(marker: Path, wanted: dict) -> None:
    try:
        found = json.loads(marker.read_text())
        differing = [name for name in wanted if found.get(name) != wanted[name]]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{marker}: expected the description of a synthetic data set, found another file") from error
    if differing:
        listed = ", ".join(f"{name} {found.get(name)!r} instead of {wanted[name]!r}" for name in differing)
        raise UserError(
            f"{marker.parent}: holds a synthetic data set made with other settings ({listed}): "
            "delete it or choose another folder"
        )
