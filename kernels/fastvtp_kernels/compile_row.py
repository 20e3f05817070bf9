"""One kernel as one launch compiles it for one architecture: what the compiler made, and what is wrong with it."""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compile_code import TENSOR_CORE, Code, Counts, read
from .compile_device import SHARED_LIMIT, resident_blocks
from .compile_work import Work, work_of
from .launching import Compiled

# A load's width in bits by the suffix of its opcode; no suffix means 32.
_LOAD = re.compile(r"\b(?:LDG|LDGSTS)\.E((?:\.\w+)*)|\bglobal_load_(\w+)|\bbuffer_load_(\w+)")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
_AMD_WIDTHS = {"ubyte": 8, "sbyte": 8, "ushort": 16, "short": 16, "dword": 32, "dwordx2": 64, "dwordx4": 128}
FEW_SPILLED_BYTES = 128
"""So many may be stored and loaded once, outside loops: cheaper than a tile that needs fewer registers."""


@dataclass(frozen=True)
class Row:
    """One kernel as one launch compiles it for one architecture."""

    case: str
    kernel: str
    arch: str
    tile: str
    num_warps: int
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
    tf32_dot: bool = False
    tensor_columns: int = 0
    """Of tensor memory (sm_100)."""
    serialised: tuple[str, ...] = ()
    """Codes by which ptxas says that products of a warpgroup wait for each other: C7515 or the like."""
    injected: tuple[str, ...] = ()
    """Codes by which it says that it put a fence (C7519) or a wait (C7517) between products. A fault where the waits
    are as many as the products; a fence alone costs an instruction."""
    code: Code | None = None
    """None: of AMD's machine code nothing is counted."""
    work: Work | None = None

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Row":
        """Return the row that `dataclasses.asdict` and JSON made `entry` of."""
        code, work = entry["code"], entry["work"]
        if code is not None:
            parts = {name: Counts(**code[name]) for name in ("program", "main", "loops")}
            code = Code(**{**code, **parts})
        return cls(
            **{
                **entry,
                "load_bits": {int(bits): count for bits, count in entry["load_bits"].items()},
                "serialised": tuple(entry["serialised"]),
                "injected": tuple(entry["injected"]),
                "code": code,
                "work": None if work is None else Work(**work),
            }
        )

    @property
    def is_serialised(self) -> bool:
        """Whether products of a warpgroup wait for each other one by one: as ptxas says, or as the code does."""
        program = self.code.program if self.code else Counts()
        waits = "HGMMA" in self.tensor_core and program.tensor >= 8 and program.waits >= program.tensor
        return bool(self.serialised) or waits

    @property
    def resident(self) -> int:
        """How many programs a multiprocessor holds; 0 where that is not known (AMD)."""
        if self.code is None:
            return 0
        return resident_blocks(self.arch, self.registers, self.shared_bytes, self.num_warps, self.tensor_columns)

    def faults(self) -> list[str]:
        """Say what about this kernel must not be shipped, one clause each."""
        found = []
        if self.code is None and self.spilled_bytes:
            found.append(f"spills {self.spilled_bytes} bytes")
        elif self.code is not None and self.code.spills_in_loops:
            found.append(f"spills in a loop, {self.code.spills_in_loops} loads and stores")
        elif self.spilled_bytes > FEW_SPILLED_BYTES:
            found.append(f"spills {self.spilled_bytes} bytes, more than {FEW_SPILLED_BYTES}")
        if self.is_serialised and self.arch == "sm_90" and not self.tf32_dot:
            said = ", ".join(self.serialised) or "a wait after every product"
            found.append(f"has serialised products ({said})")
        if self.shared_bytes > SHARED_LIMIT[self.arch]:
            found.append(f"needs {self.shared_bytes} bytes of shared memory, {SHARED_LIMIT[self.arch]} exist")
        if self.has_dot and not self.exact_fp32_dot and not self.tensor_core:
            found.append("has a dot, but no tensor-core instruction")
        # AMD's matrix cores have an exact float32 mode. NVIDIA's have none, yet Triton 3.7 uses them on sm_100 whenever
        # the tile fits: TF32 in silence.
        if self.exact_fp32_dot and any(not re.search(r"^v_mfma\w*x\d+_?f32$", opcode) for opcode in self.tensor_core):
            found.append("multiplies float32 on tensor cores, which cannot hold its precision")
        if self.work is None:
            found.append("has no line in compile_work.WORK, which says what its element is")
        return found


def faults(rows: Sequence[Row]) -> list[str]:
    """Say what must not be shipped, one line for each fault of a kernel and tile, with the launches that have it."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        for fault in row.faults():
            cases.setdefault(f"{row.arch} {row.kernel} ({row.tile}) {fault}", []).append(row.case)
    return [f"{fault}: {', '.join(dict.fromkeys(found))}" for fault, found in cases.items()]


def inspect(case: str, arch: str, compiled: Compiled) -> Row:
    """Disassemble what was compiled in place of one launch."""
    binary = compiled.binary
    code = None
    if arch.startswith("gfx"):
        resources, assembly = _disassemble_amd(binary)
    else:
        resources, assembly = _disassemble_nvidia(binary)
        code = read(assembly, binary.asm["ptx"])
    tensor_core: dict[str, int] = {}
    for opcode in TENSOR_CORE.findall(assembly):
        tensor_core[opcode] = tensor_core.get(opcode, 0) + 1
    load_bits: dict[int, int] = {}
    for bits in _load_widths(assembly):
        load_bits[bits] = load_bits.get(bits, 0) + 1
    dots = [line for line in binary.asm["ttir"].splitlines() if "tt.dot " in line]
    tf32 = [line for line in dots if "tf32" in line]
    exact = [line for line in dots if "tf32" not in line and re.search(r"xf32> \* tensor<\w+xf32>", line)]
    serialised, injected = said_of_products(assemble(binary.asm["ptx"])[0]) if "HGMMA" in tensor_core else ((), ())
    return Row(
        case,
        compiled.kernel.lstrip("_"),
        arch,
        str(compiled.tile),
        compiled.tile.num_warps,
        *resources,
        binary.metadata.shared,
        tensor_core,
        dict(sorted(load_bits.items())),
        exact_fp32_dot=bool(exact),
        has_dot=bool(dots),
        entry=compiled.tile.entry,
        tf32_dot=bool(tf32),
        tensor_columns=getattr(binary.metadata, "tmem_size", None) or 0,
        serialised=serialised,
        injected=injected,
        code=code,
        work=work_of(compiled),
    )


def _load_widths(assembly: str) -> Iterator[int]:
    for suffixes, flat, buffer in _LOAD.findall(assembly):
        if flat or buffer:
            yield _AMD_WIDTHS.get((flat or buffer).split("_")[0], 32)
        else:
            yield next((_WIDTHS[part] for part in suffixes.split(".") if part in _WIDTHS), 32)


def _tools() -> Path:
    """Return the folder of NVIDIA's tools in Triton's package."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def assemble(ptx: str) -> tuple[str, bytes]:
    """Return what ptxas says while it compiles PTX for the target that this names, and the machine code.

    Triton runs it too, and throws away what it says.
    """
    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    if target is None:
        raise ValueError("PTX without a line .target")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [_tools() / "ptxas", "-v", "-lineinfo", f"--gpu-name={target[1]}", source, "-o", made]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        return said.stdout + said.stderr, made.read_bytes()


def said_of_products(log: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the codes of a ptxas log's lines on products of a warpgroup: serialised, and fenced or waited for."""
    lines = [line for line in log.splitlines() if re.search("wgmma|GMMA", line)]
    serialised, injected = (
        tuple(sorted({code for line in lines if word in line for code in re.findall(r"\((C\d+)\)", line) or ["wgmma"]}))
        for word in ("serialized", "injected")
    )
    return serialised, injected


def _disassemble_nvidia(binary: Any) -> tuple[tuple[int, int], str]:
    """Return (registers, bytes of stack) and the SASS; the stack holds nothing but spills."""
    tools = _tools()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        assembly = subprocess.run([tools / "nvdisasm", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no registers: {usage.stdout[:200]!r}")
    return (int(found[1]), int(found[2])), assembly.stdout


def _disassemble_amd(binary: Any) -> tuple[tuple[int, int], str]:
    assembly = binary.asm["amdgcn"]

    def count(key: str) -> int:
        return int(re.findall(rf"\.{key}:\s+(\d+)", assembly)[0])

    spilled = 4 * (count("vgpr_spill_count") + count("sgpr_spill_count"))
    return (count("vgpr_count"), spilled), assembly
