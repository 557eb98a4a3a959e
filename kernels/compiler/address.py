"""Calls of a kernel by its address: compiled once, called from kernels that are compiled apart.

Numba compiles a kernel's callees into it, so that a large callee of several kernels is compiled for
each of them. A kernel that gets a callee's address calls its machine code instead. The two may then
be compiled in different processes at once, and which of several callees runs is chosen at run time.
"""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def address_of(kernel: Any, *arguments: object) -> int:
    """The address of a kernel's machine code for arguments of these types, compiled if needed.

    The code stays in memory as long as `kernel`. Pass the address to a kernel that calls it with
    `call_kernel`.
    """
    signature = tuple(map(numba.typeof, arguments))
    kernel.compile(signature)
    compiled = kernel.overloads[signature]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


@intrinsic
def call_kernel(typing_context, address, arguments):
    """Call the kernel at `address` (int64) with a tuple of arguments; returns its result, an int64,
    or 0 for None.

    Nothing checks that the kernel there was compiled for the arguments' types and returns either.
    """
    result = types.int64(types.intp, arguments)

    def generate(context, builder, signature, values):
        # Numba's own calling convention: pointers to the result and to an exception, then each
        # argument taken apart into its fields.
        kinds = tuple(signature.args[1])
        packer = context.get_arg_packer(kinds)
        parts = packer.as_arguments(builder, cgutils.unpack_tuple(builder, values[1], len(kinds)))
        returned = cgutils.alloca_once(builder, ir.IntType(64))
        raised = cgutils.alloca_once(builder, ir.IntType(8).as_pointer())
        function = ir.FunctionType(
            ir.IntType(32),
            [returned.type, raised.type, *(part.type for part in parts)],
        )
        pointer = builder.inttoptr(values[0], function.as_pointer())
        builder.call(pointer, [returned, raised, *parts])
        return builder.load(returned)

    return result, generate
