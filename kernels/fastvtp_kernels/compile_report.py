"""What the compiler makes of every shipped kernel: registers, spills, shared memory, tensor cores, width of the loads.

    python -m fastvtp_kernels.compile_report [--arch sm_80 sm_90 gfx942] [--json FILE] [--page FILE] [--jobs N]

Needs Triton, but neither a GPU nor a driver: the real launchers run on the meta device for each architecture in turn,
and what they would launch is compiled and disassembled. Ends with status 1 if a kernel spills registers, needs more
shared memory than the device has, or multiplies matrices without tensor cores, which only float32 in full precision may
and must: no tensor core can do that.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .tuning import ANY, TABLE, targeting

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# 99 KiB of shared memory: every line of the table is compiled for them too, but not every option, dtype and width.
SMALLER_ARCHITECTURES = ("sm_89", "sm_120")
# Bytes that one block may have (CUDA C++ Programming Guide, table of compute capabilities; CDNA3 ISA).
SHARED_LIMIT = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_87": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_103": 232448,
    "sm_110": 232448,
    "sm_120": 101376,
    "sm_121": 101376,
    "gfx942": 65536,
}
PAGE_MARKERS = ("<!-- compile report -->", "<!-- end of compile report -->")
_TENSOR_CORE = re.compile(r"\b(U?TC\w*MMA|HGMMA|HMMA|IGMMA|IMMA|v_mfma\w*|v_wmma\w*)")
# A load's width in bits by the suffix of its opcode; no suffix means 32.
_LOAD = re.compile(r"\b(?:LDG|LDGSTS)\.E((?:\.\w+)*)|\bglobal_load_(\w+)|\bbuffer_load_(\w+)")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
_AMD_WIDTHS = {"ubyte": 8, "sbyte": 8, "ushort": 16, "short": 16, "dword": 32, "dwordx2": 64, "dwordx4": 128}


@dataclass(frozen=True)
class Row:
    """One kernel as one launch compiles it for one architecture."""

    case: str
    kernel: str
    arch: str
    tile: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_core: dict[str, int]
    """Opcode to number of instructions."""
    load_bits: dict[int, int]
    """Width of a global load to number of instructions."""
    exact_fp32_dot: bool
    has_dot: bool
    entry: str = ""
    """Line and column of the table of tiles that this kernel ran with."""

    def faults(self) -> list[str]:
        """Say what about this kernel must not be shipped, one line each."""
        found = []
        name = f"{self.arch} {self.case}: {self.kernel} ({self.tile})"
        if self.spilled_bytes:
            found.append(f"{name} spills {self.spilled_bytes} bytes")
        if self.shared_bytes > SHARED_LIMIT[self.arch]:
            found.append(f"{name} needs {self.shared_bytes} bytes of shared memory, {SHARED_LIMIT[self.arch]} exist")
        if self.has_dot and not self.exact_fp32_dot and not self.tensor_core:
            found.append(f"{name} has a dot, but no tensor-core instruction")
        # AMD's matrix cores have an exact float32 mode. NVIDIA's have none, yet Triton 3.7 uses them on sm_100 whenever
        # the tile fits: TF32 in silence.
        if self.exact_fp32_dot and any(not re.search(r"^v_mfma\w*x\d+_?f32$", opcode) for opcode in self.tensor_core):
            found.append(f"{name} multiplies float32 on tensor cores, which cannot hold its precision")
        return found


class _OfflineDriver:
    """Stands in for Triton's driver: a target without a device."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target.arch)

    def get_current_stream(self, device: str) -> int:
        return 0


def compile_case(number: int, arch: str) -> list[Row]:
    """Compile case `number` of `compile_cases.cases` for one architecture.

    Raises:
        RuntimeError: kernels are set to run in the interpreter (TRITON_INTERPRET).
    """
    from triton.runtime import driver

    from .compile_cases import cases
    from .interpreter import interpreting
    from .launching import compile_only

    if interpreting():
        raise RuntimeError("TRITON_INTERPRET is set: nothing is compiled; unset it")
    case = list(cases())[number]
    offline: Any = _OfflineDriver(arch)
    driver.set_active(offline)
    with targeting(arch), compile_only() as compiled:
        case.run()
    return [_inspect(case.name, arch, *entry) for entry in compiled]


def _inspect(case: str, arch: str, kernel: str, tile: Any, binary: Any) -> Row:
    resources, assembly = _disassemble_amd(binary) if arch.startswith("gfx") else _disassemble_nvidia(binary)
    tensor_core: dict[str, int] = {}
    for opcode in _TENSOR_CORE.findall(assembly):
        tensor_core[opcode] = tensor_core.get(opcode, 0) + 1
    load_bits: dict[int, int] = {}
    for bits in _load_widths(assembly):
        load_bits[bits] = load_bits.get(bits, 0) + 1
    dots = [line for line in binary.asm["ttir"].splitlines() if "tt.dot " in line]
    exact = [line for line in dots if "tf32" not in line and re.search(r"xf32> \* tensor<\w+xf32>", line)]
    return Row(
        case,
        kernel.lstrip("_"),
        arch,
        str(tile),
        *resources,
        binary.metadata.shared,
        tensor_core,
        dict(sorted(load_bits.items())),
        exact_fp32_dot=bool(exact),
        has_dot=bool(dots),
        entry=tile.entry,
    )


def _load_widths(assembly: str) -> Iterator[int]:
    for suffixes, flat, buffer in _LOAD.findall(assembly):
        if flat or buffer:
            yield _AMD_WIDTHS.get((flat or buffer).split("_")[0], 32)
        else:
            yield next((_WIDTHS[part] for part in suffixes.split(".") if part in _WIDTHS), 32)


def _disassemble_nvidia(binary: Any) -> tuple[tuple[int, int], str]:
    """Return (registers, bytes of stack) and the SASS; the stack holds nothing but spills.

    By the tools in Triton's package.
    """
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        sass = subprocess.run([tools / "nvdisasm", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no registers: {usage.stdout[:200]!r}")
    return (int(found[1]), int(found[2])), sass.stdout


def _disassemble_amd(binary: Any) -> tuple[tuple[int, int], str]:
    assembly = binary.asm["amdgcn"]

    def count(key: str) -> int:
        return int(re.findall(rf"\.{key}:\s+(\d+)", assembly)[0])

    spilled = 4 * (count("vgpr_spill_count") + count("sgpr_spill_count"))
    return (count("vgpr_count"), spilled), assembly


def report(
    architectures: tuple[str, ...] = (*ARCHITECTURES, *SMALLER_ARCHITECTURES), jobs: int | None = None
) -> list[Row]:
    """Compile every case for every architecture, in `jobs` processes (default: one per processor)."""
    from .compile_cases import cases

    work = [
        (number, arch)
        for arch in architectures
        for number, case in enumerate(cases())
        if case.everywhere or arch not in SMALLER_ARCHITECTURES
    ]
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
        rows: list[Row] = []
        for done, found in enumerate(pool.map(compile_case, *zip(*work, strict=True)), start=1):
            rows += found
            print(f"\r{done}/{len(work)} launches compiled", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def table(rows: list[Row]) -> str:
    """Write Markdown: a line per kernel and launch, the architectures side by side."""
    architectures = list(dict.fromkeys(row.arch for row in rows))
    together: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        together.setdefault((row.case, row.kernel), []).append(row)
    lines = [
        f"Side by side: {', '.join(architectures)} (-: not launched or not compiled there). "
        "Loads: widest global load in bits.",
        "",
        "| launch | kernel | tile | registers | spilled bytes | shared KiB | tensor-core instructions | loads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (case, kernel), group in together.items():
        tiles = list(dict.fromkeys(row.tile for row in group))
        tensor_cores = [
            " ".join(f"{count} {opcode}" for opcode, count in row.tensor_core.items())
            or ("none: exact fp32" if row.exact_fp32_dot else "-")
            for row in group
        ]
        by_architecture = [[row for row in group if row.arch == arch] for arch in architectures]

        def side_by_side(number: Callable[[Row], float], groups: list[list[Row]] = by_architecture) -> str:
            return " / ".join(", ".join(f"{number(row):.0f}" for row in rows) or "-" for rows in groups)

        columns = [
            case,
            f"`{kernel}`",
            "; ".join(tiles),
            side_by_side(lambda row: row.registers),
            side_by_side(lambda row: row.spilled_bytes),
            side_by_side(lambda row: row.shared_bytes / 1024),
            " / ".join(dict.fromkeys(tensor_cores)),
            side_by_side(lambda row: max(row.load_bits, default=0)),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def sources() -> str:
    """Return a digest of everything that the machine code depends on: comments, docstrings and layout aside."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        if "import triton" in text or path.name in ("tuning.py", "compile_cases.py", "problem.py"):
            digest.update(path.relative_to(folder).as_posix().encode())
            before, docstring = tokenize.NEWLINE, False
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type in (tokenize.COMMENT, tokenize.NL):
                    continue
                # A string that begins a statement is there for readers, and so is the end of its line.
                starts = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
                docstring = (docstring and token.type == tokenize.NEWLINE) or (starts and token.type == tokenize.STRING)
                if not docstring:
                    digest.update(token.string.encode())
                before = token.type
    return digest.hexdigest()[:16]


def not_compiled(rows: list[Row]) -> list[str]:
    """Name the entries of the table of tiles that no case launched on an architecture of the report, one line each."""
    compiled = {(row.entry, row.arch, row.tile) for row in rows}
    return [
        f"{arch} {kernel} {column}: no case launches {tile}"
        for arch in dict.fromkeys(row.arch for row in rows)
        for kernel, columns in TABLE.items()
        for column, entries in columns.items()
        if (tile := entries.get(arch, entries.get(ANY))) is not None
        and (f"{kernel} {column}", arch, str(tile)) not in compiled
    ]


def with_table(page: str, rows: list[Row]) -> str:
    """Return the page with the table between its markers, and the digest of the sources that it is of.

    Raises:
        ValueError: a marker is missing.
    """
    import triton

    start, end = PAGE_MARKERS
    if start not in page or end not in page:
        raise ValueError(f"the page has no lines {start} and {end} to put the table between")
    before, after = page.split(start)[0], page.split(end)[1]
    return f"{before}{start}\nTriton {triton.__version__}, sources {sources()}. {table(rows)}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastvtp_kernels.compile_report", description="What the compiler makes of the kernels."
    )
    everything = (*ARCHITECTURES, *SMALLER_ARCHITECTURES)
    parser.add_argument("--arch", nargs="+", default=list(everything), choices=sorted(SHARED_LIMIT), metavar="ARCH")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per processor)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row, with counts of all load widths")
    parser.add_argument("--page", type=Path, metavar="FILE", help="replace the table between this page's markers")
    options = parser.parse_args(arguments)
    rows = report(tuple(options.arch), options.jobs)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if options.page is not None:
        options.page.write_text(with_table(options.page.read_text(), rows))
    print(table(rows))
    faults = [fault for row in rows for fault in row.faults()] + not_compiled(rows)
    print(
        "\n".join(faults) if faults else f"\n{len(rows)} kernels: no spills, shared memory fits, dots on tensor cores"
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
