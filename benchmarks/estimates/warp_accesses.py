"""The addresses that one warp of a compiled kernel reads and writes, found without a GPU.

The width of an instruction says what one thread moves; only the addresses of all 32 say whether the
warp's lie together. `warp_accesses` computes them from the PTX: it follows the integer instructions
once from top to bottom for 32 lanes, branches and loops as straight lines, and leaves what depends
on loaded values unknown.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

LANES = 32
LINE = 128
"""Bytes of a cache line: what a warp's access fetches at a time."""
Values = np.ndarray | None
"""A register of all lanes, int64 or bool; None where it is unknown."""


@dataclass(frozen=True)
class Access:
    """One load or store of global memory by one warp."""

    instruction: str
    """Such as `ld.global.v4.b32`."""
    argument: str
    """The kernel's pointer argument; empty if unknown."""
    width: int
    """Bytes a lane."""
    addresses: Values
    """Bytes, of the lanes that take part; None if they are unknown."""

    @property
    def spread(self) -> float:
        """Cache lines that the warp touches, over the least that would hold as many bytes.

        1 where the lanes' addresses follow each other (or are the same); NaN where unknown.
        """
        if self.addresses is None:
            return float("nan")
        touched = np.unique(self.addresses[:, None] + np.arange(self.width))
        if not touched.size:
            return 1.0
        return len(np.unique(touched // LINE)) / -(-touched.size // LINE)


COMPARISONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def warp_accesses(
    ptx: str, parameters: Mapping[str, int | None], *, program: int = 0, programs: int = 1
) -> list[Access]:
    """The global loads and stores of warp 0 of a program, in the order of the text.

    `parameters`: the kernel's arguments in order, None for pointers; `programs`: of the grid.
    """
    registers: dict[str, Values] = {
        "%tid.x": np.arange(LANES),
        "%ctaid.x": np.full(LANES, program),
        "%ctaid.y": np.zeros(LANES, np.int64),
        "%ctaid.z": np.zeros(LANES, np.int64),
        "%nctaid.x": np.full(LANES, programs),
    }
    names = list(parameters)
    for number, value in enumerate(parameters.values()):
        registers[f"param_{number}"] = np.full(
            LANES, (number + 1) << 40 if value is None else value
        )
    found = []
    body = re.sub(r"//.*|\$L__\w+:|^\s*\.loc.*", "", ptx[ptx.index("{") + 1 :], flags=re.MULTILINE)
    for statement in body.split(";"):
        matched = re.search(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s+(.*)", statement, re.DOTALL)
        if matched is None:
            continue
        negated, predicate, name, text = matched.groups()
        kind, _, rest = name.partition(".")
        if kind in ("ld", "st") and rest.startswith("global"):
            active = registers.get(predicate) if predicate else None
            if active is not None and negated:
                active = ~active
            found.append(_access(name, text, registers, active, names))
        elif kind not in ("st", "bra", "ret", "bar"):
            _execute(name, text, registers)
    return found


def _access(
    name: str,
    text: str,
    registers: Mapping[str, Values],
    active: np.ndarray | None,
    names: list[str],
) -> Access:
    """The access of one instruction, by the lanes of `active`, or all."""
    base, _, offset = re.findall(r"\[\s*(%\w+)\s*(\+?)\s*(-?\d+)?\s*\]", text)[0]
    vector = re.search(r"\.v(\d)", name)
    width = int(name[-2:].lstrip("b")) // 8 * (int(vector[1]) if vector else 1)
    addresses = registers.get(base)
    argument = ""
    if addresses is not None:
        argument = names[int(addresses[0] >> 40) - 1]
        addresses = addresses + int(offset or 0)
        addresses = addresses if active is None else addresses[active]
    return Access(name, argument, width, addresses)


def _execute(name: str, text: str, registers: dict[str, Values]) -> None:
    """Execute one instruction: its target becomes known if it is an integer of known ones."""
    target, *operands = _operands(text)
    targets = re.findall(r"%\w+", target)
    values = [_value(operand, registers) for operand in operands]
    result = None
    if len(targets) == 1 and values and all(value is not None for value in values):
        result = _result(name.split("."), values)  # type: ignore[arg-type]
    for one in targets:
        registers[one] = result


def _operands(text: str) -> list[str]:
    """Split at the commas outside braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text)]


def _value(operand: str, registers: Mapping[str, Values]) -> Values:
    """A register, number, parameter or symbol."""
    parameter = re.fullmatch(r"\[\w+?_(param_\d+)\]", operand)
    if parameter:
        return registers.get(parameter[1], np.zeros(LANES, np.int64))
    if operand.startswith("%"):
        return registers.get(operand)
    if re.fullmatch(r"-?(?:0x[0-9a-fA-F]+|\d+)", operand):
        return np.full(LANES, int(operand, 0))
    return np.zeros(LANES, np.int64) if operand == "global_smem" else None


def _result(name: list[str], values: list[np.ndarray]) -> Values:
    """The result of an integer instruction; None for any other."""
    operation, kind = name[0], name[-1]
    if kind == "pred":
        logic = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
        return logic[operation](*values) if operation in logic else ~values[0]
    if not re.fullmatch(r"[sub](?:16|32|64)", kind) or re.search(r"\.f\d", ".".join(name)):
        return None
    bits = int(kind[1:])
    if operation == "setp":
        comparison = COMPARISONS.get(name[1])
        signed = kind[0] != "u"
        return comparison(*(_wrap(v, bits, signed) for v in values)) if comparison else None
    sources = [_wrap(value, bits, kind[0] != "u") for value in values[:2]]
    sources += [value for value in values[2:]]  # what `mad.wide` adds has twice the bits
    function = FUNCTIONS.get(operation)
    if operation == "selp":
        return np.where(values[2], values[0], values[1])
    if function is None or ("hi" in name and (operation != "mul" or bits > 32)):
        return None
    if "hi" in name:
        return _wrap(function(*sources) >> bits, bits, kind[0] != "u")
    return _wrap(function(*sources), 2 * bits if "wide" in name else bits, kind[0] != "u")


def _wrap(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """The lowest bits of integers; 64 bits are always signed."""
    if bits >= 64 or values.dtype == bool:
        return values
    low = values & ((1 << bits) - 1)
    return np.where(low >> (bits - 1) & 1, low - (1 << bits), low) if signed else low


def _truncate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Division towards zero; 0 by zero."""
    return np.where(b == 0, 0, np.sign(a) * np.sign(b) * (abs(a) // np.maximum(abs(b), 1)))


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov": lambda a: a,
    "ld": lambda a: a,
    "cvt": lambda a: a,
    "neg": operator.neg,
    "not": operator.invert,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mad": lambda a, b, c: a * b + c,
    "div": _truncate,
    "rem": lambda a, b: a - b * _truncate(a, b),
    "min": np.minimum,
    "max": np.maximum,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "shl": operator.lshift,
    "shr": operator.rshift,
    "bfe": lambda a, first, count: a >> first & ((1 << count) - 1),
}
"""Integer instructions of PTX."""
