import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.evaluation.views import (
    ViewMean,
    average_over_views,
    left_out,
)
from tests.evaluation.stubs import batches

RECORDS = [VideoRecord(name, f"/{name}.mp4", (f"clip {name}",)) for name in "abc"]


def averaged(sample_ids, size, score=lambda batch: batch.video[:, 0, 0, 0, 0].float()):
    return average_over_views(
        batches(RECORDS, sample_ids, size), RECORDS, score, description="averaging", progress=False
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_views_are_averaged_wherever_batches_end(size):
    means = averaged([2, 2, 2, 0, 0, 0], size)
    assert {index: float(mean) for index, mean in means.items()} == {2: 1, 0: 4}
    assert list(means) == [2, 0]  # in the order of the loader


def test_means_do_not_depend_on_batches_bit_for_bit():
    rows = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    results = []
    for size in (1, 5, 12):
        means = ViewMean()
        for part in range(0, 12, size):
            means.add([0] * len(rows[part : part + size]), rows[part : part + size])
        results.append(means.means()[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_add_names_the_places_of_new_clips():
    means = ViewMean()
    assert means.add([4, 4, 1], torch.zeros(3)) == [0, 2]
    assert means.add([1, 3], torch.zeros(2)) == [1]


def test_adding_leaves_the_rows_as_they_were():
    rows, means = torch.ones(2, 1), ViewMean()
    means.add([0, 0], rows)
    assert rows.tolist() == [[1], [1]]


def test_a_clip_that_lacks_views_is_left_out():
    assert list(averaged([0, 0, 1, 2, 2], 2)) == [0, 2]
    assert left_out([*RECORDS, RECORDS[1]], [0, 2]) == ["/b.mp4"]
    assert left_out(RECORDS, range(3)) == []


def test_an_empty_loader_and_a_loader_of_another_list_are_refused():
    with pytest.raises(ValueError, match="no clip could be decoded: averaging has nothing to score"):
        averaged([], 2)
    others = [*RECORDS[:2], VideoRecord("d", "/d.mp4", ("clip d",))]
    for sample_ids in ([0, 2], [0, 3]):
        loader = batches([*others, others[0]], sample_ids, 2)
        with pytest.raises(ValueError, match="the loader reads another list: its clip"):
            average_over_views(loader, RECORDS, lambda batch: batch.video, description="x", progress=False)
