"""Compile kernels as `compile_kernels` does and print the functions that would be shared under Triton 3.5 and 3.6.

Those name a function by its constants and by the types of all values together, whichever tuples hold them: two calls
that differ in their tuples alone run the code of the first.
"""

import collections

import compile_kernels
from triton.compiler.code_generator import CodeGenerator

CALLS = collections.defaultdict(set)


def describe(argument):
    """Tuples as brackets around their values."""
    if hasattr(argument, "value"):  # a constexpr, whose own tuples are part of the name
        return repr(argument.value).replace("(", "<").replace(")", ">")
    if isinstance(argument, tuple) or hasattr(argument, "values"):
        return "(" + " ".join(map(describe, argument)) + ")"
    return str(getattr(argument, "type", argument))


def record(self, function, args, kwargs, *rest, call=CodeGenerator.call_JitFunction, **more):
    arguments = " ".join(map(describe, (*args, *kwargs.values())))
    CALLS[function.__name__, arguments.replace("(", "").replace(")", "")].add(arguments)
    return call(self, function, args, kwargs, *rest, **more)


def main():
    CodeGenerator.call_JitFunction = record
    compile_kernels.main()
    print(f"{len(CALLS)} functions")
    for (name, _), calls in CALLS.items():
        if len(calls) > 1:
            print(f"shared: {name}: {sorted(calls)}")


if __name__ == "__main__":
    main()
