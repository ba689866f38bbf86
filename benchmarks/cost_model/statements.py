"""What a kernel's source says about one of its lines."""

import ast
import copy
import functools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lal_triton.benchmarks.cost_model.paths import Line, Range, Source
from lal_triton.kernels import configs


def source_of(kernel: Any, arguments: Mapping[str, Any]) -> Source:
    """For a launch with these arguments.

    The functions that a kernel calls are compiled into it, and no more than file and line is left of them: a name in
    the `range` of a loop has to be that of an argument of the kernel, be assigned in the function or in the kernel, or
    be a parameter of a function that the kernel itself calls. Of `tl.where(condition, x, y)` it is taken to be x.
    """
    path = Path(kernel.fn.__code__.co_filename)
    caller = parse(path).functions[kernel.fn.__name__]
    known = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    known |= {field for name in known for field in getattr(arguments[name], "_fields", ())}

    def file(line: Line) -> "File":
        beside = path.with_name(Path(line[0]).name)  # what is in Triton's cache may have come from another folder
        return parse(beside if beside.exists() else Path(line[0]))

    @functools.cache
    def loop(line: Line) -> Range | None:
        return file(line).loop(line[1], arguments, known, caller)

    @functools.cache
    def rare(line: Line) -> bool:
        return line[1] in file(line).rare

    return Source(loop, rare)


@functools.cache
def parse(path: Path) -> "File":
    return File(path)


class Function:
    def __init__(self, definition: ast.FunctionDef, marked: Collection[int]) -> None:
        self.name, self.definition = definition.name, definition
        self.parameters = [parameter.arg for parameter in definition.args.args]
        constants = {parameter.arg for parameter in definition.args.args if is_constexpr(parameter.annotation)}
        self.assigned: dict[str, ast.expr] = {}  # what names are first set to
        self.calls: dict[str, list[ast.expr]] = {}  # the positional arguments of the first call of each function
        self.loops: list[ast.For | ast.While] = []
        self.rare: list[ast.stmt] = []  # what one of the programs runs, or a comment calls rare
        for node in ast.walk(definition):
            if isinstance(node, ast.For | ast.While):
                self.loops.append(node)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.assigned.setdefault(node.targets[0].id, node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.assigned.setdefault(node.target.id, node.value)
                constants.update([node.target.id] if is_constexpr(node.annotation) else [])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                self.calls.setdefault(node.func.id, node.args)
            elif isinstance(node, ast.If) and (node.lineno in marked or singles_out(node.test, constants)):
                self.rare += node.body

    def given_by(self, caller: "Function") -> dict[str, ast.expr]:
        return dict(zip(self.parameters, caller.calls.get(self.name, ()), strict=False))


class File:
    def __init__(self, path: Path) -> None:
        self._name = path.name
        source = path.read_text() if path.exists() else ""
        marked = {number for number, line in enumerate(source.splitlines(), 1) if line.endswith(":  # rare")}
        definitions = ast.parse(source).body
        functions = [Function(node, marked) for node in definitions if isinstance(node, ast.FunctionDef)]
        self._assigned: dict[str, ast.expr] = {
            node.targets[0].id: node.value
            for node in definitions
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        self.functions = {function.name: function for function in functions}
        self._loops = {loop.lineno: (loop, function) for function in functions for loop in function.loops}
        self.rare = {line for function in functions for one in function.rare for line in lines_of(one)}
        for name, lines in self._called_at(definitions).items():
            if lines <= self.rare and name in self.functions:
                self.rare.update(lines_of(self.functions[name].definition))

    @staticmethod
    def _called_at(definitions: Collection[ast.stmt]) -> dict[str, set[int]]:
        """The lines of the calls of each function."""
        found: dict[str, set[int]] = {}
        for node in (node for one in definitions for node in ast.walk(one)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.setdefault(node.func.id, set()).add(node.lineno)
        return found

    def loop(self, line: int, arguments: Mapping[str, Any], known: Collection[str], caller: Function) -> Range | None:
        """The range of a `for`; a `while`, whose trips the data decide, counts as one."""
        if line not in self._loops:
            return None
        statement, function = self._loops[line]
        if isinstance(statement, ast.While):
            return Range(1, 0, constant=False)
        assert isinstance(statement.iter, ast.Call)
        assigned = {**self._assigned, **function.given_by(caller), **caller.assigned, **function.assigned}
        names = Names(arguments, assigned)
        try:
            values = [int(names.evaluate(argument)) for argument in statement.iter.args]
        except (NameError, AttributeError, TypeError) as error:
            raise ValueError(f"cannot evaluate the range at {self._name}:{line}: {error}") from error
        start, stop, step = (0, *values, 1) if len(values) == 1 else (*values, 1)[:3]
        trips = max(0, math.ceil((stop - start) / step))
        return Range(trips, abs(step), constant=names.asked.isdisjoint(arguments.keys() - known))


def lines_of(statement: ast.stmt) -> range:
    return range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)


def is_constexpr(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation) == "tl.constexpr"


def singles_out(test: ast.expr, constants: Collection[str]) -> bool:
    """Whether a test is an equality of numbers that differ from program to program."""
    if not (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq)):
        return False
    return not any(isinstance(node, ast.Name) and node.id in constants for node in ast.walk(test))


class Names(dict[str, Any]):
    """What the names of an expression stand for: arguments, and what is computed from them."""

    def __init__(self, arguments: Mapping[str, Any], assigned: Mapping[str, ast.expr]) -> None:
        super().__init__(arguments)
        self["tl"] = SimpleNamespace(
            cdiv=lambda a, b: -(-a // b), minimum=min, maximum=max, constexpr=int, program_id=lambda axis: 0
        )
        self["configs"] = configs
        self._assigned = dict(assigned)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Any:
        self[name] = self.evaluate(self._assigned.pop(name))  # KeyError: Python looks among its own
        return self[name]

    def evaluate(self, expression: ast.expr) -> Any:
        whole = ast.fix_missing_locations(ast.Expression(Plain().visit(copy.deepcopy(expression))))
        return eval(compile(whole, "<range>", "eval"), {}, self)


class Plain(ast.NodeTransformer):
    """`x` for `x.to(...)` and for `tl.where(condition, x, y)`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Attribute(value=x, attr="to")):
                return x
            case ast.Call(func=ast.Attribute(attr="where"), args=[_, x, _]):
                return x
        return node
