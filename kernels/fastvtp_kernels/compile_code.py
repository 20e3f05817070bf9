"""Reads what the compiler made of a kernel: NVIDIA's machine code as nvdisasm prints it, its instructions and loops.

And of the forms before it, what says how to read it: the products of Triton's own, the loops of PTX. Loops are those of
the control flow, not of the text: the slow path of a division stands behind the last exit and jumps back, which is no
loop, and a loop may be left and closed by predicated branches in any order.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
TENSOR_CORE = re.compile(r"\b(U?TC\w*MMA|HGMMA|HMMA|IGMMA|IMMA|QGMMA|v_mfma\w*|v_wmma\w*)")
# These share the unit of the special functions; I2FP and F2FP do not.
_CONVERSION_UNIT = ("I2F", "F2I", "F2F")
_CONVERSIONS = (*_CONVERSION_UNIT, "I2FP", "F2FP")
_SHARED_STORES, _SHARED_LOADS = ("STS", "STSM"), ("LDS", "LDSM")
# Bytes of one thread by the suffix of the opcode; none means 4. A matrix of LDSM and STSM is 128 bytes of a warp.
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_MATRICES = {"M88": 1, "2": 2, "4": 4}
LONGEST_WAIT = 8
"""Instructions of a loop that only waits."""


class Instruction(NamedTuple):
    opcode: str
    """With its suffixes: "HGMMA.64x64x16.F32.BF16"."""
    operands: str
    predicated: bool
    target: str
    """Label that it names, "" where it names none."""

    @property
    def name(self) -> str:
        """The opcode without suffixes."""
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class Counts:
    """How many instructions of each sort a piece of code has."""

    instructions: int = 0
    tensor: int = 0
    tensor_flops: int = 0
    """Of one warp, where the opcode tells: not on sm_100."""
    waits: int = 0
    """WARPGROUP.DEPBAR: a warpgroup waits for its products."""
    special: int = 0
    """Exponentials, logarithms, reciprocals, roots: MUFU."""
    conversions: int = 0
    slow: int = 0
    """Special functions and the conversions that their unit does."""
    shared_stores: int = 0
    shared_loads: int = 0
    shared_bytes: int = 0
    """That a warp moves between registers and shared memory."""
    barriers: int = 0
    """Of a block, and waits for the arrival of asynchronous copies and products."""
    local: int = 0
    """Loads and stores of spilled registers."""
    memory: int = 0
    """Loads and stores of global memory."""

    def times(self, factor: float, other: "Counts") -> dict[str, float]:
        """Return self + factor * other, by field."""
        return {name: value + factor * getattr(other, name) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Code:
    """What the report keeps of one kernel's machine code."""

    program: Counts
    """Everything that can be reached, each instruction once."""
    main: Counts = field(default_factory=Counts)
    """One pass of the main loop: of the innermost loops the one with most products, then the shortest (a masked twin is
    longer); without products the longest. No instructions: there is no loop."""
    loops: Counts = field(default_factory=Counts)
    """One pass of every innermost loop, of those with products where there are any."""
    spills_in_loops: int = 0
    """Loads and stores of spilled registers in any loop."""
    unrolled: int = 1
    """How many passes of the source one of the main loop makes."""


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Return the instructions, and the label of each place that has one."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := _LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            predicate, opcode, operands = found.groups()
            target = _TARGET.search(operands)
            instructions.append(Instruction(opcode, operands, predicate is not None, target[1] if target else ""))
    return instructions, labels


def _is_branch(instruction: Instruction) -> bool:
    return instruction.name in ("BRA", "JMP") and bool(instruction.target)


def _is_conditional(instruction: Instruction) -> bool:
    # `@P0 BRA label` and `BRA P0, label` alike; of several operands the last is the label.
    return instruction.predicated or "," in instruction.operands.split("`")[0]


def _successors(instructions: Sequence[Instruction], labels: dict[str, int], place: int) -> list[int]:
    instruction = instructions[place]
    after = [place + 1] if place + 1 < len(instructions) else []
    if _is_branch(instruction) and instruction.target in labels:
        target = labels[instruction.target]
        return [target, *after] if _is_conditional(instruction) else [target]
    # BSSY and BSYNC mark where threads meet again; the way there is that of the branches between them.
    ends = instruction.name in ("EXIT", "RET", "BRX", "JMX") and not instruction.predicated
    return [] if ends else after


class _Flow:
    """Blocks of instructions that run one after another, and the ways between them."""

    def __init__(self, instructions: Sequence[Instruction], labels: dict[str, int]) -> None:
        jumps = {place: _successors(instructions, labels, place) for place in range(len(instructions))}
        reachable, open_places = set(), [0] if instructions else []
        while open_places:
            place = open_places.pop()
            if place not in reachable:
                reachable.add(place)
                open_places += [after for after in jumps[place] if after < len(instructions)]
        entered = {0} | {after for place in reachable if jumps[place] != [place + 1] for after in jumps[place]}
        self.blocks: dict[int, range] = {}
        """First place to all places of a block."""
        self.after: dict[int, list[int]] = {}
        for first in sorted(entered & reachable):
            last = first
            while jumps[last] == [last + 1] and last + 1 not in entered:
                last += 1
            self.blocks[first] = range(first, last + 1)
            self.after[first] = [after for after in jumps[last] if after < len(instructions)]
        self.before: dict[int, list[int]] = {block: [] for block in self.blocks}
        for block, targets in self.after.items():
            for target in targets:
                self.before[target].append(block)

    def _dominators(self) -> dict[int, set[int]]:
        """Return the blocks through which every way from the entry to a block leads, itself included."""
        everything = set(self.blocks)
        found = {block: {block} if block == 0 else everything for block in self.blocks}
        changed = True
        while changed:
            changed = False
            for block in self.blocks:
                if block:
                    ways = [found[before] for before in self.before[block]]
                    now = {block} | (set.intersection(*ways) if ways else set())
                    changed |= now != found[block]
                    found[block] = now
        return found

    def loops(self) -> list[set[int]]:
        """Return the blocks of every loop: a way leads back to its first, through which it is entered."""
        dominators, bodies = self._dominators(), {}
        for block, targets in self.after.items():
            for head in targets:
                if head in dominators[block]:
                    body, open_blocks = bodies.setdefault(head, {head}), [block]
                    while open_blocks:
                        inside = open_blocks.pop()
                        if inside not in body:
                            body.add(inside)
                            open_blocks += self.before[inside]
        return [bodies[head] for head in sorted(bodies)]


def _moved_bytes(instruction: Instruction) -> int:
    suffixes = instruction.opcode.split(".")[1:]
    if instruction.name in ("LDSM", "STSM"):
        return 128 * max((_MATRICES[part] for part in suffixes if part in _MATRICES), default=1)
    return 32 * next((_BYTES[part] for part in suffixes if part in _BYTES), 4)


def _flops(instruction: Instruction) -> int:
    """Return the FLOP of one warp's part of a product."""
    if found := re.search(r"\.(\d+)x(\d+)x(\d+)", instruction.opcode):
        rows, columns, depth = map(int, found.groups())
        return 2 * rows * columns * depth // 4
    if found := re.match(r"[HI]MMA\.(16)(8)(\d+)\b", instruction.opcode):
        rows, columns, depth = map(int, found.groups())
        return 2 * rows * columns * depth
    return 0


def count(instructions: Iterable[Instruction]) -> Counts:
    totals = dict.fromkeys(Counts.__dataclass_fields__, 0)
    for instruction in instructions:
        name = instruction.name
        if name == "NOP":
            continue
        totals["instructions"] += 1
        if TENSOR_CORE.match(name):
            totals["tensor"] += 1
            totals["tensor_flops"] += _flops(instruction)
        totals["waits"] += instruction.opcode.startswith("WARPGROUP.DEPBAR")
        totals["special"] += name == "MUFU"
        totals["conversions"] += name in _CONVERSIONS
        totals["slow"] += name == "MUFU" or name in _CONVERSION_UNIT
        totals["shared_stores"] += name in _SHARED_STORES
        totals["shared_loads"] += name in _SHARED_LOADS
        if name in _SHARED_STORES or name in _SHARED_LOADS:
            totals["shared_bytes"] += _moved_bytes(instruction)
        totals["barriers"] += name == "BAR" or instruction.opcode.startswith("SYNCS.PHASECHK")
        totals["local"] += name in ("LDL", "STL")
        totals["memory"] += name in ("LDG", "STG", "LDGSTS")
    return Counts(**totals)


def _only_waits(body: Sequence[Instruction]) -> bool:
    """Tell whether a loop does nothing but ask whether a barrier or tensor memory is free yet."""
    if len(body) > LONGEST_WAIT or any(TENSOR_CORE.match(part.name) for part in body):
        return False
    return any(part.name in ("SYNCS", "NANOSLEEP") for part in body)


# What PTX has one of where machine code has one, unless ptxas unrolled a loop.
_PTX_PRODUCT = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b")
_PTX_MEMORY = re.compile(r"\b(?:ld\.global|st\.global|cp\.async\.c[ag])\b")


def _ptx_loops(ptx: str) -> list[str]:
    """Return the innermost loops of PTX, each from its label to the branch back to it."""
    lines = ptx.splitlines()
    labels = {found[1]: place for place, line in enumerate(lines) if (found := re.match(r"\s*(\$L\w+):", line))}
    branches = ((place, re.search(r"\bbra(?:\.uni)?\s+(\$L\w+)", line)) for place, line in enumerate(lines))
    loops = {(labels[to[1]], place) for place, to in branches if to and labels.get(to[1], place) < place}
    innermost = [
        (first, last)
        for first, last in loops
        if not any(first <= begin and end <= last and (begin, end) != (first, last) for begin, end in loops)
    ]
    return ["\n".join(lines[first : last + 1]) for first, last in innermost]


def _unrolled(main: Counts, ptx: str) -> int:
    """Return how often ptxas repeated the main loop's body, by the products or else the memory accesses in it."""
    here, kind = (main.tensor, _PTX_PRODUCT) if main.tensor else (main.memory, _PTX_MEMORY)
    before = max((len(kind.findall(loop)) for loop in _ptx_loops(ptx)), default=0)
    return max(1, round(here / before)) if before else 1


def read(text: str, ptx: str = "") -> Code:
    """Return what counts of a kernel, given its disassembly and the PTX it was made of."""
    instructions, labels = parse(text)
    flow = _Flow(instructions, labels)

    def of(blocks: Iterable[int]) -> Counts:
        return count(instructions[place] for block in blocks for place in flow.blocks[block])

    loops = [loop for loop in flow.loops() if not _only_waits([instructions[p] for b in loop for p in flow.blocks[b]])]
    innermost_blocks = [loop for loop in loops if not any(other < loop for other in loops)]
    innermost = [of(loop) for loop in innermost_blocks]
    with_products = [loop for loop in innermost if loop.tensor]
    main = Counts()
    if with_products:
        main = max(with_products, key=lambda loop: (loop.tensor, -loop.instructions))
    elif innermost:
        main = max(innermost, key=lambda loop: loop.instructions)
    spills = of(set().union(*loops)).local
    counted = [block for block, loop in zip(innermost_blocks, innermost, strict=True) if loop.tensor]
    together = of(set().union(*(counted or innermost_blocks)))
    return Code(of(flow.blocks), main, together, spills, _unrolled(main, ptx))


_DOT = re.compile(r"tt\.dot .*: tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x\w+>")


def products(ttir: str, roles: int = 1) -> tuple[float, float]:
    """Return the FLOP of the products in one pass of the loop with most of them, and outside all loops.

    From Triton's own form of the kernel, before any architecture. Of several roles: the mean of as many loops.
    """
    outside, depth = 0.0, 0
    open_loops: list[tuple[int, float]] = []
    passes = [0.0] * roles
    for line in ttir.splitlines():
        if re.search(r"\bscf\.(for|while)\b", line):
            open_loops.append((depth, 0.0))
        if dot := _DOT.search(line):
            rows, inner, columns = map(int, dot.groups())
            if open_loops:
                open_loops[-1] = open_loops[-1][0], open_loops[-1][1] + 2.0 * rows * inner * columns
            else:
                outside += 2.0 * rows * inner * columns
        depth += line.count("{") - line.count("}")
        while open_loops and depth <= open_loops[-1][0]:
            passes.append(open_loops.pop()[1])
    return sum(sorted(passes)[-roles:]) / roles, outside
