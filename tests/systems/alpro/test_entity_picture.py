from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastvtp.systems.alpro.pictures import EntityExample, entity_picture, save_entity_picture

EXAMPLE = EntityExample(
    frame=np.full((64, 64, 3), (0, 0, 200), np.uint8), crop=(16, 0, 48, 32), caption="a blue square",
    model={"square": 0.9, "star": 0.1}, prompter={"star": 0.5, "ring": 0.2}, ignored=False,
)  # fmt: skip


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(-1).sum())


def test_the_crop_is_outlined_and_the_rest_paler():
    picture = np.asarray(entity_picture([EXAMPLE], frame_size=64))
    frame = picture[24:88, 24:88]
    assert frame[32, 16].tolist() == [0, 0, 200]
    assert frame[8, 48].tolist() == [127, 127, 227]
    for row, column in ((16, 5), (47, 5), (30, 0), (30, 31)):
        assert frame[row, column].tolist() == [0xD4, 0x35, 0x1C]


def test_bars_are_as_long_as_probabilities():
    first = entity_picture([EXAMPLE])
    for colour, name in (((0x54, 0xAE, 0xFF), "model"), ((0x8C, 0x95, 0x9F), "prompter")):
        halved = replace(EXAMPLE, **{name: {entity: p / 2 for entity, p in getattr(EXAMPLE, name).items()}})
        assert count(entity_picture([halved]), colour) == pytest.approx(count(first, colour) / 2, rel=0.05)


def test_the_longest_bar_leaves_room_for_its_share_and_the_shortest_is_not_nothing():
    sure = replace(EXAMPLE, model={"square": 1.0, "star": 0.0}, prompter={"star": 1.0})
    picture = np.asarray(entity_picture([sure]))
    assert (picture[:, -25:] == 255).all()  # the margin and one column more: nothing is cut off
    assert (picture[:, -34:-25] != 255).any()
    none, some = (entity_picture([replace(EXAMPLE, model={"star": share})]) for share in (0.0, 0.0049))
    assert np.array_equal(np.asarray(none), np.asarray(some))  # "< 1 %" of either
    assert not np.array_equal(np.asarray(none), np.asarray(entity_picture([replace(EXAMPLE, model={"star": 0.006})])))


def test_an_ignored_crop_is_said_to_be():
    first, second = (np.asarray(entity_picture([replace(EXAMPLE, ignored=flag)])) for flag in (False, True))
    assert first.shape == second.shape
    assert (first != second).any()


def test_clips_fill_rows_of_columns(tmp_path):
    save_entity_picture(tmp_path / "entities.png", [EXAMPLE] * 3, columns=2)
    one, three = entity_picture([EXAMPLE]), Image.open(tmp_path / "entities.png")
    assert three.width > 1.9 * (one.width - 48)
    assert three.height > 1.9 * (one.height - 48)
    with pytest.raises(ValueError, match=r"is a \.png"):
        save_entity_picture(tmp_path / "entities.jpg", [EXAMPLE])
