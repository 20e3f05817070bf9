"""What the report says of results that are not the whole: peers not timed, parts apart, sources that changed."""

from benchmarks.report import report
from tests.benchmarks.report.test_report import GPU, ROWS, checkout, devices, lines_of, put, row

__all__ = ["checkout"]

SOME_UNTIMED = (
    row(variant="videomae", median=400e-6),
    row(variant="compiled reference", note="missing: left out (--without compiled)"),
    row(variant="compiled peer", note="not reached: the run was stopped first"),
    row(variant="hf", note="missing: transformers"),
    row(variant="triton", median=20e-6),
)


def test_peers_that_were_not_timed_are_counted_and_taken_from_the_part_that_timed_them(checkout):
    put(checkout, "tubelets", SOME_UNTIMED)
    (line,) = lines_of(report.readme_section(devices(checkout)), "tubelet_embed")
    assert line[3:5] == ["videomae: 400 µs (2 not timed)", "20.0×"]

    compiled = (
        row(variant="videomae", median=500e-6),
        row(variant="compiled reference", median=40e-6),
        row(variant="compiled peer", median=10e-6),
        row(variant="triton", note="missing: left out (--with compiled)"),
    )
    put(checkout, "tubelets_compiled", compiled, {**GPU, "commit": "another"})
    assert len(lines_of(report.readme_section(devices(checkout)), "tubelet_embed")) == 1
    assert len(devices(checkout)[0].by_op()["tubelet_embed"]) == 2, "of another commit: a case of its own"

    put(checkout, "tubelets_compiled", compiled)
    (case,) = devices(checkout)[0].by_op()["tubelet_embed"]
    medians = {found.variant: found.median_s for found in case.rows}
    assert medians == {
        "videomae": 400e-6,
        "compiled reference": 40e-6,
        "compiled peer": 10e-6,
        "hf": None,
        "triton": 20e-6,
    }
    assert "timed in tubelets_compiled" in report.page_section(devices(checkout))
    (line,) = lines_of(report.readme_section(devices(checkout)), "tubelet_embed")
    assert line[3:5] == ["compiled peer: 10.0 µs", "0.50×"]
    put(checkout, "tests", [{"op": "tubelets", "failed": 1}])
    assert all(found.tests_failed for found in devices(checkout)[0].by_op()["tubelet_embed"])


def test_results_of_changed_sources_say_so(checkout):
    put(checkout, "tubelets", ROWS, {**GPU, "dirty": True})
    (line,) = lines_of(report.readme_section(devices(checkout)), "tubelet_embed")
    assert line[-1] == "NVIDIA H200, 2026-01-02, with uncommitted changes"
    assert "| c0ffeec0ff and changes |" in report.page_section(devices(checkout))
    put(checkout, "tubelets", ROWS, {**GPU, "dirty": None})
    assert "| c0ffeec0ff, changes unknown |" in report.page_section(devices(checkout))
    put(checkout, "tubelets", ROWS, {**GPU, "dirty": None, "commit": None, "sources": "abcdef"})
    assert "| sources abcdef, changes unknown |" in report.page_section(devices(checkout))
    put(checkout, "tubelets", ROWS, {**GPU, "dirty": False})
    assert "| c0ffeec0ff |" in report.page_section(devices(checkout))


def test_a_peer_that_no_released_code_is_like_says_so_beside_its_time(checkout):
    def step(variant, median):
        return row("train_step", "videoprism_stage2_base", variant, median)

    others = (row("train_step", "videomae_base", "released", 2.0), row("train_step", "videomae_base", "fastvtp", 1.0))
    put(checkout, "train_step", others)
    for text in (report.readme_section(devices(checkout)), report.page_section(devices(checkout))):
        assert "written by us" not in text

    untimed = row(
        "train_step", "videoprism_stage2_base", "unpacked, compiled", note="not reached: the run was stopped first"
    )
    put(checkout, "train_step", [*others, step("unpacked", 2.0), untimed, step("fastvtp", 1.0)])
    for text in (report.readme_section(devices(checkout)), report.page_section(devices(checkout))):
        assert "| unpacked: 2.00 s (written by us, computes all tokens; 1 not timed) | 2.00× |" in text
        assert "was never released" in text
        assert "| released: 2.00 s | 2.00× |" in text
