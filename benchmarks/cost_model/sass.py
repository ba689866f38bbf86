"""The instructions of a kernel for NVIDIA GPUs, from its disassembly."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Line = tuple[str, int]  # file, line

LOADS = {"LD", "LDG", "LDS", "LDSM", "LDGSTS"}
WORK = {*LOADS, "ST", "STG", "STS", "STSM", "ATOMG", "ATOMS", "RED", "MUFU", "HMMA", "HGMMA"}


class Instruction(NamedTuple):
    line: Line
    guard: str  # such as "@!P0", or nothing
    opcode: str
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> str:
        """The label that a branch or a call goes to, or where a BSSY converges."""
        return next((operand[2:-1] for operand in self.operands if operand.startswith("`(")), "")

    @property
    def conditional(self) -> bool:
        return bool(self.guard) or (self.name == "BRA" and len(self.operands) > 1)


def parse(disassembly: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions that `nvdisasm --print-line-info` prints, and how many of them are before each label."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    line = ("", 0)
    for text in disassembly.splitlines():
        if found := re.match(r'\s*//## File "(.+?)", line (\d+)', text):
            line = found[1], int(found[2])
        elif found := re.match(r"([.$\w]+):\s*$", text):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@\S+)?\s*([A-Z][\w.]*)\s*(.*?)\s*;", text):
            operands = tuple(operand for operand in re.split(r",\s*|\s+(?=`)", found[3]) if operand)
            instructions.append(Instruction(line, found[1] or "", found[2], operands))
    return instructions, labels


def counter_steps(instructions: Iterable[Instruction]) -> set[int]:
    """By how much the registers that a comparison reads go on when these instructions have run once."""
    values: dict[str, tuple[str, int]] = {}  # a register of the start, and what was added to it
    compared: set[str] = set()
    for one in instructions:
        operands = [operand.removesuffix(".reuse") for operand in one.operands]
        if one.name in ("ISETP", "UISETP"):
            compared.update(values.get(r, (r, 0))[0] for r in operands if is_register(r))
        elif operands and is_register(operands[0]):
            register, *sources = (operand for operand in operands if not re.fullmatch(r"!?U?P(\d|T)", operand))
            values[register] = added(one, sources, values)
    steps = {register: step for register, (start, step) in values.items() if start == register and step}
    return {abs(step) for register, step in steps.items() if register in compared}


def is_register(operand: str) -> bool:
    return re.fullmatch(r"U?R\d+", operand) is not None


def added(one: Instruction, sources: Sequence[str], values: dict[str, tuple[str, int]]) -> tuple[str, int]:
    """What an instruction gives, where it copies a register or adds a constant to it."""
    nothing = "", 0
    plain = one.opcode in ("MOV", "IMAD.MOV", "IMAD.MOV.U32", "IMAD.U32", "UMOV", "IADD3", "UIADD3", "VIADD")
    parts = [source for source in sources if source not in ("RZ", "URZ")]
    registers = [part for part in parts if is_register(part)]
    numbers = [int(part, 16) for part in parts if re.fullmatch(r"-?0x[0-9a-f]+", part)]
    if one.guard or not plain or len(registers) != 1 or len(registers) + len(numbers) != len(parts):
        return nothing
    start, step = values.get(registers[0], (registers[0], 0))
    return start, (step + sum(numbers) + 2**31) % 2**32 - 2**31  # 0xffffffff is -1
