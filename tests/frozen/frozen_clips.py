"""Folders of tiny clips, and a loader of them for the towers of tests.frozen.towers."""

import json

import numpy as np

from tests.data.clips import write_clip
from tests.data.loaders import make_loader as open_loader

COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 40), "red": (210, 40, 30)}


def write_classes(folder, per_class=2, frames=8, names=tuple(COLOURS)):
    """One subfolder per colour; the clips of a class differ in brightness, and so do frames."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            brightness = 7 * number + 2 * np.arange(frames).reshape(-1, 1, 1, 1)
            pixels = np.clip(np.broadcast_to(COLOURS[name], (frames, 48, 64, 3)) + brightness, 0, 255)
            write_clip(folder / name / f"{number}.mp4", frames=pixels.astype(np.uint8))
    return folder


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_loader(views=(1, 1), batch_size=4):
    """What `extract_features` takes: a loader of some records."""
    clips = {"num_frames": 4, "image_size": 32, "num_workers": 0}
    return lambda records: open_loader(records, None, batch_size=batch_size, train=False, views=views, **clips)
