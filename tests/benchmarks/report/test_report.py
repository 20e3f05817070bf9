"""The report says what the results say, no more; README.md and docs/performance.md are what it makes of them."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.harness.record import Row
from benchmarks.report import report, tables
from benchmarks.report.plots import plots
from benchmarks.report.results import OPS, device_slug, load
from fastvtp.errors import UserError

pytest.importorskip("matplotlib")

GPU = {"date": "2026-01-02T03:04:05+00:00", "device": "NVIDIA H200", "device_type": "cuda", "commit": "c0ffee" * 6}
CPU = {**GPU, "device": "AMD EPYC", "device_type": "cpu"}
CEILINGS = {"bytes_per_s": 4e12, "flops_per_s": 800e12}
MARKED = "# Title\n\n<!-- performance -->\nold\n<!-- end of performance -->\n\nEnd.\n"


def row(op="tubelet_embed", case="VideoMAE-B", variant="triton", median=None, note="", **more) -> Row:
    """40 MB and 8 GFLOP: a floor of 10 µs, whichever bounds it."""
    given = {"model_bytes": 40_000_000, "model_flops": 8_000_000_000, "floor_s": 1e-5, "direction": "forward"} | more
    found = Row(op=op, case=case, variant=variant, shape={"batch": 64}, dtype="bfloat16", baseline="videomae", **given)
    if median is not None:
        found.median_s, found.p20_s, found.p80_s, found.wall_s = median, 0.9 * median, 1.1 * median, 1.2 * median
        found.fraction_of_floor, found.speedup, found.peak_bytes = found.floor_s / median, 400e-6 / median, 12_000_000
    found.note = note
    return found


ROWS = (
    row(variant="videomae", median=400e-6),
    row(variant="compiled reference", median=60e-6),
    row(variant="hf", note="missing: transformers cannot | be imported"),
    row(variant="broken", note="wrong: error 0.5, at most 0.03 allowed"),
    row(variant="triton", median=20e-6),
)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A made-up repository with the files that the report writes into."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(MARKED)
    return tmp_path


def put(checkout: Path, part: str, rows, environment=GPU) -> Path:
    slug = device_slug(environment["device"], environment["device_type"])
    path = checkout / "benchmarks" / "results" / slug / f"{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [asdict(found) if isinstance(found, Row) else found for found in rows]
    content = {"schema": 1, "environment": {**environment, "ceilings": CEILINGS}, "rows": entries}
    path.write_text(json.dumps(content))
    return path


def devices(checkout: Path):
    return load(checkout / "benchmarks" / "results")


def lines_of(text: str, op: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if f"`{op}` |" in line]


def test_readme_and_page_are_what_the_committed_results_say():
    found = report.differences(load(report.RESULTS), report.ROOT)
    assert found == [], "run python -m benchmarks.report --readme"


def test_without_results_every_op_is_not_measured_yet(checkout):
    section = report.readme_section(devices(checkout))
    for ops in OPS.values():
        for op in ops:
            assert lines_of(section, op) == [[f"`{op}`", "", "not measured yet", "", "", "", "GPU"]]
    assert "not measured yet" in report.page_section(devices(checkout))
    assert not re.search(r"\d×", section)


def test_summary_line_is_ours_against_the_fastest_peer(checkout):
    put(checkout, "tubelets", ROWS)
    (line,) = lines_of(report.readme_section(devices(checkout)), "tubelet_embed")
    assert line[:3] == ["`tubelet_embed`", "VideoMAE-B, forward, bfloat16", "20.0 µs"]
    assert line[3:] == ["compiled reference: 60.0 µs", "3.00×", "50%", "NVIDIA H200, 2026-01-02"]


def test_cpu_ratios_say_so_and_stand_beside_the_missing_gpu(checkout):
    put(checkout, "tubelets", [row(variant="videomae", median=0.4), row(variant="reference", median=0.2)], CPU)
    gpu, cpu = lines_of(report.readme_section(devices(checkout)), "tubelet_embed")
    assert gpu[2] == "not measured yet"
    assert cpu[2:] == ["200 ms", "videomae: 400 ms", "2.00× (CPU)", "0.0%", "CPU: AMD EPYC, 2026-01-02"]
    assert "## AMD EPYC (CPU)" in report.page_section(devices(checkout))


def test_kernels_without_a_time_are_not_replaced_by_the_reference(checkout):
    rows = [*ROWS[:4], row(variant="reference", median=50e-6), row(variant="triton", note="failed: OutOfResources: x")]
    put(checkout, "tubelets", rows)
    (line,) = lines_of(report.readme_section(devices(checkout)), "tubelet_embed")
    assert line[2:6] == ["failed", "reference: 50.0 µs", "", ""]


def test_no_speed_is_told_of_an_op_whose_tests_failed(checkout):
    put(checkout, "tubelets", ROWS)
    put(checkout, "tests", [{"op": "tubelets", "passed": 3, "failed": 1, "skipped": 0, "seconds": 1.5}])
    (line,) = lines_of(report.readme_section(devices(checkout)), "tubelet_embed")
    assert line[2:6] == ["tests failed", "", "", ""]
    page = report.page_section(devices(checkout))
    assert "µs" not in page
    assert "×" not in page
    assert ".svg" not in page
    assert "| tubelets | 3 | 1 | 0 | 1.50 |" in page
    put(checkout, "train_step", [row("train_step", variant="fastvtp", median=0.1, direction="step")])
    (line,) = lines_of(report.readme_section(devices(checkout)), "train_step")
    assert line[2] == "tests failed", "a step uses every op"


def test_page_names_every_peer_with_its_reason(checkout):
    put(checkout, "tubelets", ROWS)
    page = report.page_section(devices(checkout))
    variants = [line for line in page.splitlines() if line.startswith("| VideoMAE-B, forward, bfloat16")]
    assert len(variants) == len(ROWS)
    cells = {cells[1]: cells for cells in ([c.strip() for c in re.split(r"(?<!\\)\|", v)[1:-1]] for v in variants)}
    assert cells["hf"][-1] == r"missing: transformers cannot \| be imported"
    assert cells["broken"][2:] == [*[""] * 8, "wrong: error 0.5, at most 0.03 allowed"]
    assert cells["videomae"][2:] == [
        "400 µs",
        "360 µs–440 µs",
        "480 µs",
        "20.0×",
        "1.00×",
        "2.5%",
        "100 GB/s",
        "12.0",
        "",
    ]
    assert cells["triton"][5] == "ours"


def test_rate_is_of_what_bounds_the_floor(checkout):
    put(checkout, "attention", [row("varlen_attention", model_flops=80_000_000_000, floor_s=1e-4, median=2e-4)])
    nothing = row("nothing", model_bytes=0, model_flops=0, median=2e-5)
    put(checkout, "masking", [row("tube_mask", model_flops=0, median=2e-5), nothing])
    (device,) = devices(checkout)
    rates = {op: tables.rate(found[0], found[0].first) for op, found in device.by_op().items()}
    assert rates == {"varlen_attention": "400 TFLOP/s", "tube_mask": "2.00 TB/s", "nothing": ""}


@pytest.mark.parametrize(
    ("op", "case", "expected"),
    [("varlen_attention", "168 tokens each", "168 tokens each"), ("other", "small", "large")],
)
def test_headline_is_the_named_case_or_the_largest(op, case, expected, checkout):
    both = [
        row(op, name, median=1e-4, direction=direction, model_flops=flops)
        for name, flops in ((case, 10), ("large", 20))
        for direction in ("forward", "forward+backward")
    ]
    put(checkout, "attention", both)
    (device,) = devices(checkout)
    (found,) = tables.headline(device.by_op()[op])
    assert (found.first.case, found.first.direction) == (expected, "forward+backward")


def test_training_steps_are_all_named_and_fastvtp_is_no_peer_of_itself(checkout):
    rows = [
        row("train_step", model, variant, median, direction="step", model_bytes=0)
        for model in ("videomae_base", "simvtp_base")
        for variant, median in (("released, sdpa", 0.4), ("fastvtp", 0.2), ("fastvtp, compiled", 0.1))
    ]
    put(checkout, "train_step", rows)
    lines = lines_of(report.readme_section(devices(checkout)), "train_step")
    assert [line[1].split(",")[0] for line in lines] == ["videomae_base", "simvtp_base"]
    assert all(line[2:5] == ["100 ms", "released, sdpa: 400 ms", "4.00×"] for line in lines)
    assert "without weights and optimizer state" in report.page_section(devices(checkout))
    (drawn,) = plots(devices(checkout)[0]).values()
    assert [plot.name for plot in drawn] == ["nvidia-h200/train_step_throughput.svg"], "no bytes, no roofline"


def test_written_files_pass_the_check_and_any_change_fails_it(checkout, capsys):
    path = put(checkout, "tubelets", ROWS)
    assert report.main(["--check"], checkout) == 1
    assert report.main(["--readme"], checkout) == 0
    assert report.main(["--check"], checkout) == 0
    readme, page = ((checkout / name).read_text() for name in ("README.md", "docs/performance.md"))
    assert readme.startswith("# Title\n\n<!-- performance -->\n|")
    assert readme.endswith("<!-- end of performance -->\n\nEnd.\n")
    for link in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (checkout / "docs" / link).stat().st_size < 60_000

    path.write_text(path.read_text().replace("6e-05", "7e-05"))
    capsys.readouterr()
    assert report.main(["--check"], checkout) == 1
    named = capsys.readouterr().err
    for name in ("README.md", "docs/performance.md", "tubelet_embed_roofline.svg", "tubelet_embed_throughput.svg"):
        assert name in named


def test_output_is_the_same_in_every_run_and_stale_plots_go(checkout):
    path = put(checkout, "tubelets", ROWS)
    report.main(["--readme"], checkout)
    images = sorted((checkout / "docs" / "images").rglob("*.svg"))
    before = [image.read_bytes() for image in images]
    assert len(images) == 2
    for image in images:
        image.unlink()
    report.main(["--readme"], checkout)
    assert [image.read_bytes() for image in images] == before
    path.unlink()
    assert report.main(["--check"], checkout) == 1
    report.main(["--readme"], checkout)
    assert not any(image.exists() for image in images)
    assert report.main(["--check"], checkout) == 0


def test_forty_bars_or_fewer_are_drawn(checkout):
    rows = [
        row(case=f"case {i}", variant=v, median=1e-5 * (n + 2))
        for i in range(12)
        for n, v in enumerate(("triton", "peer", "slower", "videomae"))
    ]
    put(checkout, "tubelets", rows)
    report.main(["--readme"], checkout)
    drawn = (checkout / "docs/images/performance/nvidia-h200/tubelet_embed_throughput.svg").read_text()
    assert ">peer<" in drawn
    assert ">slower<" not in drawn
    assert "<details>" in (checkout / "docs/performance.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"schema 2, expected 1"),
        ({"rows": None}, r"'rows'"),
        ({"rows": [{"op": "tubelet_embed"}]}, r"row 1 is no benchmark's row"),
        ({"environment": {}}, r"no 'device'"),
        ({"environment": GPU}, r"no 'ceilings'"),
    ],
)
def test_other_content_is_refused_by_name(change, message, checkout):
    path = put(checkout, "tubelets", ROWS)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        devices(checkout)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_files_smoke_runs_and_missing_markers_end_in_one_line(checkout, capsys):
    def last_line(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            report.main(arguments, checkout)
        return capsys.readouterr().err.splitlines()[-1]

    path = put(checkout, "tubelets", ROWS, {**GPU, "smoke": True})
    assert f"{path}: a smoke run" in last_line("--readme")
    assert report.main([], checkout) == 0, "printing a smoke run is fine"
    path.write_text("{")
    assert f"{path}: not JSON" in last_line()
    path.unlink()
    (checkout / "README.md").write_text("# No markers\n")
    assert "README.md: expected one line <!-- performance -->" in last_line("--readme")


def test_slugs():
    assert device_slug("NVIDIA H200", "cuda") == "nvidia-h200"
    assert device_slug("AMD EPYC 9B14 96-Core Processor", "cpu") == "cpu-amd-epyc-9b14-96-core-processor"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3.12e-5, "31.2 µs"), (9.999e-4, "1.00 ms"), (0.0123, "12.3 ms"), (2.5, "2.50 s"), (1234.0, "1234 s"), (None, "")],
)
def test_seconds(value, expected):
    assert tables.seconds(value) == expected
