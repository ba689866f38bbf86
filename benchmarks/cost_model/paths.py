"""What one thread of a kernel executes, counted in its disassembly.

A natural loop of the control-flow graph is told by its branch back, which has the source line of the loop's statement,
of which `statements` knows the trips. An iteration, and the kernel around its loops, is one path through the graph, on
which an inner loop counts as its iteration times its trips. Where ways part, the path is taken that does least of what
only one program does, or a comment calls rare; then the one that runs more loops; of those with the same loops the one
with fewer calls of subroutines, which are the slow paths of divisions and roots; then the one with more loads, so that
what is masked counts; then the one with the shorter loops, which are those of a tile inside the image; then the one
with more stores and special functions; and then the shorter one. A subroutine that has to be called counts as its own
path.

An unrolled loop leaves trips to copies of its iteration: loops of the same statement, or code outside of loops, with
the same lines of loads, stores and special functions (its work) before or after it. How often it was unrolled is how
much more of each of them it has than its shortest copy, if its counter, a register that a comparison in the loop reads,
goes on by a multiple of that. Where the trips are known to the compiler there need not be a copy; then it is the
largest number that divides the trips, the counter's step and the work of each line. An unrolled loop counts as
trips / unrolling iterations, and its copies not at all.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lal_triton.benchmarks.cost_model.control_flow import Graph, Loop
from lal_triton.benchmarks.cost_model.sass import LOADS, WORK, Line, counter_steps, parse


class Range(NamedTuple):
    trips: int
    step: int
    constant: bool  # whether the compiler knows it


class Source(NamedTuple):
    """What the source says about a line: the range of the loop that is there, and whether few programs run it."""

    loop: Callable[[Line], Range | None]
    rare: Callable[[Line], bool]


class Path(NamedTuple):
    """What a thread executes on its way."""

    instructions: float = 0.0
    loads: float = 0.0
    exps: float = 0.0
    rare: float = 0.0  # instructions of lines that few programs run
    trips: float = 0.0  # of all loops
    calls: float = 0.0
    looped: float = 0.0  # instructions in loops
    work: float = 0.0  # loads, stores and special functions outside of loops

    def then(self, other: "Path") -> "Path":
        return Path(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Path":
        return Path(*(factor * a for a in self))

    @property
    def rank(self) -> tuple[float, ...]:
        return -self.rare, self.trips, -self.calls, self.loads, -self.looped, self.work, -self.instructions


def count(disassembly: str, source: Source) -> Path:
    """The path of a thread through a kernel, as it is disassembled."""
    return Kernel(Graph(*parse(disassembly)), source).path(0)


class Kernel:
    def __init__(self, graph: Graph, source: Source) -> None:
        self.graph, self._source = graph, source
        found = {loop: self._find_copies(loop) for loop in graph.loops}
        self.unrolled = {loop: unrolled for loop, (unrolled, _) in found.items()}
        self.copies = {block for _, copies in found.values() for block in copies}

    def path(self, entry: int) -> Path:
        """From a block to the end of the kernel, or of the subroutine that it begins."""

        def ends(block: int) -> bool:
            return self.graph.blocks[block][-1].name in ("EXIT", "RET") or not self.graph.next[block]

        return self._best(entry, frozenset((entry, *self.graph.after(entry))), ends)

    def iteration(self, loop: Loop) -> Path:
        return self._best(loop.header, loop.blocks, loop.latches.__contains__)

    def _best(self, entry: int, region: frozenset[int], ends: Callable[[int], bool]) -> Path:
        """The path of the highest rank from `entry`, within a region, through a block that `ends` it."""
        inner = [loop for loop in self.graph.loops if loop.blocks <= region and loop.header != entry]
        heads = {a.header: a for a in inner if not any(a.blocks < b.blocks for b in inner)}
        hidden = {block for header, loop in heads.items() for block in loop.blocks if block != header}
        best: dict[int, Path] = {}
        for block in self.graph.order:  # what follows comes first
            if block not in region or block in hidden:
                continue
            here = heads[block].blocks if block in heads else frozenset((block,))
            own = self._repeated(heads[block]) if block in heads else self._straight(block)
            ways = [best[b] for a in here for b in self.graph.forward[a] if b in best and b not in here]
            if any(map(ends, here)):
                ways.append(Path())
            if ways:
                best[block] = own.then(max(ways, key=lambda way: way.rank))
        return best[entry]

    def _repeated(self, loop: Loop) -> Path:
        if loop.blocks <= self.copies:
            return Path()
        trips = self.range(loop).trips
        whole = self.iteration(loop).times(trips / self.unrolled[loop])
        return whole._replace(trips=whole.trips + trips, looped=whole.instructions, work=0.0)

    def _straight(self, block: int) -> Path:
        if block in self.copies:
            return Path()
        total = Path()
        for one in self.graph.blocks[block]:
            if one.name == "CALL":
                total = total.then(self.path(self.graph.labels[one.target])).then(Path(calls=1))
            own = Path(
                instructions=1,
                loads=one.name in LOADS,
                exps=one.opcode == "MUFU.EX2",
                rare=self._source.rare(one.line),
                work=one.name in WORK,
            )
            total = total.then(own)
        return total

    def line(self, loop: Loop) -> Line:
        """Of the loop's statement: that of its branch back, or of most instructions, and of no loop inside."""
        inner = [other for other in self.graph.loops if other.blocks < loop.blocks]
        taken = {self.line(other) for other in inner}
        own = loop.blocks.difference(*(other.blocks for other in inner))
        lines = [self.graph.blocks[latch][-1].line for latch in sorted(loop.latches)]
        counted = Counter(one.line for block in own for one in self.graph.blocks[block])
        lines += [line for line, _ in counted.most_common()]
        return next((line for line in lines if line not in taken and self._source.loop(line)), lines[0])

    def range(self, loop: Loop) -> Range:
        line = self.line(loop)
        found = self._source.loop(line)
        if found is None:
            raise ValueError(f"cannot tell how often the loop at {line[0]}:{line[1]} runs")
        return found

    def _find_copies(self, loop: Loop) -> tuple[int, set[int]]:
        """How often a loop was unrolled, and the blocks that take the trips it leaves."""
        trips, step, constant = self.range(loop)
        if not step:
            return 1, set()
        steps = {counted // step for counted in counter_steps(self.graph.instructions(loop))}
        work = self._work(loop.blocks)
        unrolled = 1
        copies: set[int] = set()
        for piece in self._beside(loop):
            part = self._work(piece)
            if part and all(part[line] <= work[line] for line in part):
                more = max(work[line] // part[line] for line in part)
                if more > 1 and all(counted % more == 0 for counted in steps):
                    unrolled = max(unrolled, more)
                    copies |= piece
        if constant and not copies:
            unrolled = math.gcd(trips, *steps, *work.values())
        return unrolled, copies

    def _beside(self, loop: Loop) -> Iterator[frozenset[int]]:
        """Loops of the same statement and other blocks that come before or after a loop, and are in no other loop."""
        graph = self.graph
        headers = {other.header: other for other in graph.loops}
        around = graph.around(loop.header)
        near = graph.after(loop.header) | {block for block in graph.order if loop.header in graph.after(block)}
        for block in near:
            if graph.around(block) == around:
                other = headers.get(block)
                if other is None:
                    yield frozenset((block,))
                elif self.line(other) == self.line(loop):
                    yield other.blocks

    def _work(self, blocks: Iterable[int]) -> Counter[Line]:
        return Counter(one.line for block in blocks for one in self.graph.blocks[block] if one.name in WORK)
