"""The control-flow graph of a disassembled kernel, and its natural loops."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lal_triton.benchmarks.cost_model.sass import Instruction


class Loop(NamedTuple):
    header: int
    latches: frozenset[int]  # blocks that branch back to it
    blocks: frozenset[int]


class Graph:
    """Blocks of instructions, numbered in the order of the code, and what can follow each of them."""

    def __init__(self, instructions: Sequence[Instruction], labels: dict[str, int]) -> None:
        starts = {0, *labels.values()}
        starts.update(i + 1 for i, one in enumerate(instructions) if one.name in ("BRA", "EXIT", "RET", "BSYNC"))
        bounds = sorted(start for start in starts if start < len(instructions))
        self.blocks = [instructions[i:j] for i, j in zip(bounds, [*bounds[1:], len(instructions)], strict=True)]
        self.labels = {label: bounds.index(i) for label, i in labels.items() if i < len(instructions)}
        self.next = list(self._successors())
        self.order, back = self._walk()
        self.forward = [[b for b in after if (a, b) not in back] for a, after in enumerate(self.next)]
        self.loops = list(self._find_loops(back))

    def instructions(self, loop: Loop) -> list[Instruction]:
        """Of an iteration, in their order."""
        blocks = sorted(loop.blocks, key=lambda block: (block < loop.header, block))
        return [one for block in blocks for one in self.blocks[block]]

    def after(self, block: int) -> set[int]:
        """What can follow a block without going back."""
        reached: set[int] = set()
        found = list(self.forward[block])
        while found:
            block = found.pop()
            if block not in reached:
                reached.add(block)
                found += self.forward[block]
        return reached

    def around(self, block: int) -> Loop | None:
        """The innermost loop around a block; around that loop, if it is the header of one."""
        loops = [loop for loop in self.loops if block in loop.blocks and block != loop.header]
        return min(loops, key=lambda loop: len(loop.blocks), default=None)

    def _successors(self) -> Iterator[list[int]]:
        converges = {}
        for i, block in enumerate(self.blocks):
            converges.update({one.operands[0]: one.target for one in block if one.name == "BSSY"})
            last = block[-1]
            after = [i + 1] if i + 1 < len(self.blocks) else []
            if last.name in ("EXIT", "RET"):
                yield after if last.conditional else []
            elif last.name in ("BRA", "BSYNC") and last.opcode != "BRA.DIV":  # for a warp whose threads are apart
                target = self.labels[last.target if last.name == "BRA" else converges[last.operands[0]]]
                yield [*after, target] if last.conditional else [target]
            else:
                yield after

    def _walk(self) -> tuple[list[int], set[tuple[int, int]]]:
        """What the kernel and its subroutines can reach, each block after all that follow, and the edges back."""
        calls = [self.labels[one.target] for block in self.blocks for one in block if one.name == "CALL"]
        order: list[int] = []
        back: set[tuple[int, int]] = set()
        open_: set[int] = set()
        seen: set[int] = set()
        for root in [0, *calls]:
            stack = [(root, iter([root]))]
            while stack:
                block, rest = stack[-1]
                after = next(rest, None)
                if after is None:
                    stack.pop()
                    if stack:
                        open_.discard(block)
                        order.append(block)
                elif after in open_:
                    back.add((block, after))
                elif after not in seen:
                    seen.add(after)
                    open_.add(after)
                    stack.append((after, iter(self.next[after])))
        return order, back

    def _find_loops(self, back: set[tuple[int, int]]) -> Iterator[Loop]:
        before: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for after in self.next[block]:
                before[after].append(block)
        for header in sorted({header for _, header in back}):
            latches = frozenset(a for a, b in back if b == header)
            blocks, found = {header}, list(latches)
            while found:
                block = found.pop()
                if block not in blocks:
                    blocks.add(block)
                    found += before[block]
            yield Loop(header, latches, frozenset(blocks))
