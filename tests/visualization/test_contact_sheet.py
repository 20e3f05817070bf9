import numpy as np
import pytest

from fastvtp.visualization.contact_sheet import MOST_CHARACTERS, MOST_PIXELS_ACROSS, SheetClip, contact_sheet


def clip(num_frames=3, height=20, width=32, **texts):
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        frames[t] = (200, 3 * t, 7)
    made = {"marks": [f"{t} s" for t in range(num_frames)], "title": "a", "details": "b", "caption": "c d", **texts}
    return SheetClip(frames, **made)


def places(sheet, colour):
    """Rows and columns of the box that holds every pixel of this colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(2))
    assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_frames_stand_in_a_row_at_their_own_size_and_clips_below_each_other():
    one, two = clip(), clip(num_frames=2, height=33, width=16)
    two.frames[..., 2] = 99
    sheet = contact_sheet([one, two], "heading")
    boxes = [places(sheet, (200, 3 * t, 7)) for t in range(3)]
    assert {(bottom - top, right - left) for top, bottom, left, right in boxes} == {(20, 32)}
    assert len({box[0] for box in boxes}) == 1
    assert boxes[0][3] < boxes[1][2] < boxes[1][3] < boxes[2][2]
    top, bottom, left, right = places(sheet, (200, 0, 99))
    assert (bottom - top, right - left) == (33, 16)
    assert top > boxes[0][1]


def test_a_long_clip_is_drawn_smaller_and_a_long_caption_wraps():
    plain, long = (contact_sheet([clip(caption=" ".join(["word"] * number))]) for number in (3, 300))
    assert (long.width, long.height > plain.height + 100) == (plain.width, True)
    wide = contact_sheet([clip(num_frames=64, height=112, width=112, marks=[])], "heading")
    assert wide.width <= MOST_PIXELS_ACROSS + 200
    rows, columns = np.nonzero((np.asarray(wide) == (200, 0, 7)).all(2))
    assert 50 < np.ptp(rows) + 1 < 70
    assert 50 < np.ptp(columns) + 1 < 70


def test_what_is_no_clip_is_refused():
    with pytest.raises(ValueError, match="needs a clip"):
        contact_sheet([])
    with pytest.raises(ValueError, match=r"frames must be uint8 \[T, H, W, 3\], got float64"):
        contact_sheet([SheetClip(np.zeros((2, 4, 4, 3)), [], "", "", "")])


def test_a_huge_caption_is_cut():
    sheet = contact_sheet([clip(caption="word " * 100_000)])
    assert sheet.height < contact_sheet([clip(caption="word " * (MOST_CHARACTERS // 5))]).height + 100
