"""Numba's `njit` with a disk cache that is safe to rely on.

Numba's own cache has three gaps that matter to an installed library: it watches only the file of
the function that is called, so an edit to a callee elsewhere yields stale machine code; it writes
beside the sources, which are often read-only; and an upgrade leaves the old entries in use where
time stamps agree. Here the cache lives in the user's cache folder and its stamp is a hash of every
source in this folder and of the versions that compiled it.
"""

import functools
import hashlib
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import llvmlite
import numba
from numba.core import caching

from .cache import cache_folder

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def source_stamp() -> str:
    """A hash of all sources in this folder and of the Numba and llvmlite versions; 16 hex digits."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    """Where Numba keeps one function's machine code, and what makes it stale."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder("numba") / source_stamp())

    def get_source_stamp(self) -> str:
        return source_stamp()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, function: Callable[..., Any], source_file: str) -> "_Locator":
        return cls(function)


class _CacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_Locator]  # noqa: RUF012


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    """Tells of compilations, which take seconds and happen once for each version, dtype and kind of
    CPU."""

    _impl_class = _CacheImpl
    _began = 0.0

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            self._began = time.monotonic()
            _log.warning(
                "compiling %s for this CPU, once; seconds to half a minute", self._py_func.__name__
            )
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        super().save_overload(sig, data)
        _log.warning(
            "compiled %s in %.0f s; kept in %s",
            self._py_func.__name__,
            time.monotonic() - self._began,
            self.cache_path,
        )


class _LazyCache:
    """Makes the real cache at the first compilation, so that importing a kernel touches no disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @functools.cached_property
    def _cache(self) -> _Cache:
        return _Cache(self._function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def jit(*, allocates: bool = False, **options: Any) -> Callable[[F], F]:
    """`numba.njit` without the GIL, with IEEE division, and with the cache described above.

    `allocates`: whether it, or what it calls, makes arrays. Where it does not, references are not
    counted, which in short loops costs more than the loops. Further options go to `numba.njit`.
    Compiles at the first call with new argument types (seconds); later processes load the machine
    code from the cache (milliseconds).
    """

    def decorate(function: F) -> F:
        dispatcher = numba.njit(nogil=True, error_model="numpy", _nrt=allocates, **options)(
            function
        )
        dispatcher._cache = _LazyCache(function)
        return dispatcher

    return decorate


def inline_jit(*, allocates: bool = False, **options: Any) -> Callable[[F], F]:
    """`jit` for a function that only other kernels call: inlined by LLVM, never cached by itself."""
    return numba.njit(nogil=True, error_model="numpy", _nrt=allocates, **options)
