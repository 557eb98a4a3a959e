"""CPU features that compiled code may use."""

from llvmlite import binding
from numba.core import config


def has_features(*names: str) -> bool:
    """Whether code is compiled for a CPU with these features, LLVM's names, and runs on such a one.

    LLVM aborts the process where an instruction is named that its target lacks. The target is this
    CPU, unless NUMBA_CPU_FEATURES or NUMBA_CPU_NAME says otherwise. With the first, what it lists
    counts; with only the second, no features.
    """
    host = binding.get_host_cpu_features()
    if not all(host.get(name, False) for name in names):
        return False
    if config.CPU_FEATURES is not None:
        listed = {}
        for feature in config.CPU_FEATURES.split(","):
            listed[feature.strip()[1:]] = feature.strip()[:1] == "+"
        return all(listed.get(name, False) for name in names)
    return config.CPU_NAME is None


def has_avx512() -> bool:
    """Whether `vector_gather` and the 512-bit integer instructions can be used: on x86 server CPUs
    since Skylake, and on AMD's since Zen 4."""
    return has_features("avx512f", "avx512bw", "avx512vl", "avx512dq")


def has_vbmi2() -> bool:
    """Whether bytes can also be permuted and expanded by a mask: on Intel's CPUs since Ice Lake and
    on AMD's since Zen 4."""
    return has_avx512() and has_features("avx512vbmi", "avx512vbmi2")
