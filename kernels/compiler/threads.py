"""Parallel kernels on the threads of an OpenMP runtime already in the process (PyTorch's).

OpenMP threads spin for a while after a parallel operator, awaiting the next. Numba's thread pool,
or one of ours, would compete with them for the cores. On these threads a kernel starts within
microseconds.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def in_parts(typing_context, entry, parts, kernel, arguments):
    """Call `kernel(part, parts, *arguments)` for parts 0..parts-1; return when all are done.

    `entry`: the address of the runtime's GOMP_parallel (in the runtimes of GNU, LLVM and Intel),
    which runs the parts on up to `parts` threads; 0 runs them all on the calling thread. `kernel`:
    a function compiled by `inline_jit` that does not raise. `arguments`: a tuple.
    """
    integer, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    kernel_signature = types.void(types.int64, types.int64, *arguments)
    region_type = ir.FunctionType(ir.VoidType(), [pointer])

    def generate(context, builder, signature, values):
        entry_value, parts_value, _, arguments_value = values
        # Shared by the threads: the next part's number, the number of parts, the arguments.
        shared_type = ir.LiteralStructType([integer, integer, arguments_value.type])
        shared = cgutils.alloca_once(builder, shared_type)
        for field, value in enumerate((integer(0), parts_value, arguments_value)):
            builder.store(value, cgutils.gep_inbounds(builder, shared, 0, field))
        region = _region(
            context, builder.module, shared_type, kernel, kernel_signature, region_type
        )
        data = builder.bitcast(shared, pointer)
        with builder.if_else(cgutils.is_null(builder, entry_value)) as (alone, together):
            with alone:
                builder.call(region, [data])
            with together:
                count = ir.IntType(32)
                kind = ir.FunctionType(
                    ir.VoidType(), [region_type.as_pointer(), pointer, count, count]
                )
                function = builder.inttoptr(entry_value, kind.as_pointer())
                builder.call(function, [region, data, builder.trunc(parts_value, count), count(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, kernel, arguments), generate


def _region(context, module, shared_type, kernel, signature, region_type):
    """Build the function that every thread runs: take the next part until none is left.

    Parts are taken from a counter because the runtime may start fewer threads than asked for.
    """
    compiled = kernel.dispatcher.get_compile_result(signature)
    context.add_linking_libs([compiled.library])
    region = ir.Function(module, region_type, module.get_unique_name(f"{module.name}.in_parts"))
    region.linkage = "internal"
    builder = ir.IRBuilder(region.append_basic_block("entry"))
    # entry: unpack what the threads share.
    shared = builder.bitcast(region.args[0], shared_type.as_pointer())
    parts = builder.load(cgutils.gep_inbounds(builder, shared, 0, 1))
    arguments = builder.load(cgutils.gep_inbounds(builder, shared, 0, 2))
    again, work, done = (region.append_basic_block(label) for label in ("again", "work", "done"))
    builder.branch(again)
    # again: part = next++; go on to work while part < parts.
    builder.position_at_end(again)
    part = builder.atomic_rmw(
        "add", cgutils.gep_inbounds(builder, shared, 0, 0), ir.IntType(64)(1), "monotonic"
    )
    builder.cbranch(builder.icmp_signed("<", part, parts), work, done)
    # work: kernel(part, parts, *arguments).
    builder.position_at_end(work)
    unpacked = [builder.extract_value(arguments, i) for i in range(len(signature.args) - 2)]
    function = context.declare_function(module, compiled.fndesc)
    context.call_conv.call_function(
        builder, function, types.none, signature.args, [part, parts, *unpacked]
    )
    builder.branch(again)
    builder.position_at_end(done)
    builder.ret_void()
    return region
