"""What the launchers would launch: every kernel with its arguments, recorded instead of run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

OPTIONS = ("num_warps", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    kernel: Any  # JITFunction, or InterpretedFunction under the interpreter
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def source(self) -> triton.compiler.ASTSource:
        """As the JIT would compile it: types, integers that are 1 as constants, divisibility by 16."""
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            aligned = True
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = "*" + POINTER_TYPES[value.dtype]
            elif isinstance(value, int):
                signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                aligned = value % 16 == 0
            else:
                signature[parameter.name] = parameter.annotation_type
                aligned = False
            if aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        return triton.compiler.ASTSource(self.kernel, signature, constants, attributes)

    def key(self) -> str:
        """Equal for launches that compile to the same code."""
        source = self.source()
        return f"{self.name} {source.signature} {source.constants} {source.attrs} {self.options}"

    def run_program(self, index: int) -> None:
        """One program of the grid, under the interpreter: for sizes of which nobody wants to run all."""
        from triton.runtime import interpreter

        constants = interpreter.GridExecutor(self.kernel.fn, self.kernel.arg_names, (1,), []).constexprs
        arguments = {
            name: value if name in constants else interpreter._implicit_cvt(value)
            for name, value in self.arguments.items()
        }
        interpreter.interpreter_builder.set_grid_dim(*self.grid, 1, 1)
        interpreter.interpreter_builder.set_grid_idx(index, 0, 0)
        scope = interpreter._patch_lang(self.kernel.fn)
        try:
            self.kernel.rewrite()(**arguments)
        finally:
            scope.restore()


POINTER_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int64: "i64",
}


@contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    def record(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        names = self.arg_names
        options = {k: kwargs.pop(k) for k in OPTIONS if k in kwargs}
        assert not set(kwargs) - set(names), kwargs
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        launches.append(Launch(self, grid, dict(bound.arguments), options))

    saved = [(cls, cls.run) for cls in (JITFunction, InterpretedFunction)]
    for cls, _ in saved:
        cls.run = record
    try:
        yield
    finally:
        for cls, run in saved:
            cls.run = run


def record(launcher: Callable[..., Any], *args: Any) -> list[Launch]:
    """The launches of `launcher(*args)`, for instance on meta tensors."""
    launches: list[Launch] = []
    with _recording(launches):
        launcher(*args)
    return launches
