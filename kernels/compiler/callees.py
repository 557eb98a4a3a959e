"""Compilation of callees without machine code: a kernel's callees become part of it.

Numba optimises each callee on its own and emits its machine code, which nothing ever runs: LLVM
copies the callee into its callers and compiles it there once more. Here a library gets machine code
only when someone asks for the address of one of its functions, which Numba does for functions that
Python can call.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from numba.core import codegen


class _LinkedLibrary(codegen.JITCodeLibrary):  # type: ignore[misc]
    """The code of one function: a module to link into callers, and machine code on demand."""

    _runs = False
    """Whether the address of a function is needed, and so its machine code."""

    def get_pointer_to_function(self, name: str) -> int:
        if not self._finalized:
            try:
                self._runs = not self._final_module.get_function(name).is_declaration
            except NameError:  # no wrapper for Python: only other compiled functions call this one
                return 0
        return super().get_pointer_to_function(name)

    def _set_compiled_object(self, value: bytes) -> None:
        self._runs = True  # from the cache
        super()._set_compiled_object(value)

    def _optimize_final_module(self) -> None:
        if self._runs:
            super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        if self._runs:
            super()._finalize_final_module()
            return
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@contextlib.contextmanager
def without_machine_code(target: Any) -> Iterator[None]:
    """Within the block, functions without a wrapper for Python get no machine code.

    `target`: Numba's target context. Hold Numba's compiler lock.
    """
    generator = target.codegen()
    if "_library_class" in vars(generator):  # a kernel that calls this one is being compiled
        yield
        return

    def set_env(name: str, env: Any) -> None:
        if generator._engine.is_symbol_defined(name):
            type(generator).set_env(generator, name, env)

    generator._library_class, generator.set_env = _LinkedLibrary, set_env
    try:
        yield
    finally:
        del generator._library_class, generator.set_env
