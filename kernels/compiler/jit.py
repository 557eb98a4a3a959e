"""`jit` and `inline_jit`: Numba's `njit` with a disk cache that is safe in an installed library.

Numba's own cache checks only the file of the called function, so an edit to a callee in another
file runs stale machine code. It also writes beside the sources, which are often read-only, and
trusts time stamps across upgrades. This cache lives in the cache directory, in a folder named by a
hash: of every source in `kernels/`, the package's name, and the versions of Numba and llvmlite.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import pathlib
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import llvmlite
import numba
from numba.core import caching
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher

from .cache import cache_folder
from .callees import without_machine_code
from .lock import lock_file

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def source_stamp() -> str:
    """A hash of what compiled code depends on, 16 hex digits: the sources in `kernels/` with their
    paths, this package's name, and the versions of Numba and llvmlite.

    Cached machine code refers to named tuples by their module's full name. Copies of `kernels/` in
    two packages therefore cannot load each other's, even where their sources are equal.
    """
    digest = hashlib.sha256(f"{__package__} {numba.__version__} {llvmlite.__version__}".encode())
    root = pathlib.Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        source = path.read_bytes()
        digest.update(f"\n{path.relative_to(root).as_posix()} {len(source)}\n".encode())
        digest.update(source)
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    """Location and stamp of one function's machine code, in Numba's interface."""

    def __init__(self, function: Callable[..., Any], source_file: str) -> None:
        self._line = function.__code__.co_firstlineno
        self._py_file = source_file  # Numba reads this name where it warns of uncachable code

    def get_cache_path(self) -> str:
        return str(cache_folder("numba") / source_stamp())

    def get_source_stamp(self) -> str:
        return source_stamp()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, function: Callable[..., Any], source_file: str) -> "_Locator":
        return cls(function, source_file)


class _CacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_Locator]  # noqa: RUF012


class _CheckedFiles(caching.IndexDataCacheFile):  # type: ignore[misc]
    """Numba's files of one function, each behind a hash of its content.

    A damaged one counts as absent, so that the function is compiled again: machine code with a
    wrong byte would kill the process. Files are synced before they get their names.
    """

    def _load_index(self) -> dict[Any, Any]:
        content = self._read(self._index_path)
        if content is None:
            return {}
        file = io.BytesIO(content)
        if pickle.load(file) != self._version:
            return {}
        stamp, overloads = pickle.load(file)
        return overloads if stamp == self._source_stamp else {}

    def _load_data(self, name: str) -> Any:
        content = self._read(self._data_path(name))
        if content is None:
            raise FileNotFoundError(name)  # which Numba takes for an absent file
        return pickle.loads(content)

    @staticmethod
    def _read(path: str) -> bytes | None:
        try:
            stored = pathlib.Path(path).read_bytes()
        except FileNotFoundError:
            return None
        digest, content = stored[:32], stored[32:]
        if hashlib.sha256(content).digest() != digest:
            warnings.warn(f"the file of machine code {path} is damaged and made anew", stacklevel=2)
            return None
        return content

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        buffer = io.BytesIO()
        yield buffer
        content = buffer.getvalue()
        with super()._open_for_write(filepath) as file:
            file.write(hashlib.sha256(content).digest() + content)
            file.flush()
            os.fsync(file.fileno())


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, logging each compilation (seconds; once for each version,
    dtype and CPU model)."""

    _impl_class = _CacheImpl
    _started = 0.0
    _lock: Any = None

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _CheckedFiles(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None and self._lock is None:
            self._lock = lock_file(pathlib.Path(self._cache_file._index_path + ".lock"))
            found = super().load_overload(sig, target_context)  # compiled meanwhile
        if found is None:
            self._started = time.monotonic()
            _log.warning(
                "compiling %s for this CPU, once; takes up to a minute", self._py_func.__name__
            )
        return found

    def unlock(self) -> None:
        """Let other processes compile this function, after `load_overload`."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
            where = f"cached in {self.cache_path}"
        except OSError as error:  # a full disk
            where = f"not cached: {error}"
        _log.warning(
            "compiled %s in %.0f s; %s",
            self._py_func.__name__,
            time.monotonic() - self._started,
            where,
        )


class _LazyCache:
    """Creates the cache at the first compilation, so that importing a kernel touches no disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @functools.cached_property
    def _cache(self) -> _Cache:
        return _Cache(self._function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class _Kernel(CPUDispatcher):  # type: ignore[misc]
    """Compiles and caches a kernel for each combination of argument types."""

    def compile(self, sig: Any) -> Any:
        """Compile for a signature, or load what this or another process has compiled."""
        with global_compiler_lock, without_machine_code(self.targetctx):
            try:
                return super().compile(sig)
            finally:
                self._cache.unlock()


class _Callee(CPUDispatcher):  # type: ignore[misc]
    """Compiles a function into its callers. A call from Python compiles it a second time, as a
    function of its own."""

    def add_overload(self, compiled: Any) -> None:
        """Keep the code for callers; it has no entry for Python."""
        self.overloads[tuple(compiled.signature.args)] = compiled

    def _compile_for_args(self, *arguments: Any, **named: Any) -> Any:
        return self._alone._compile_for_args(*arguments, **named)

    @functools.cached_property
    def _alone(self) -> Any:
        options = {name: self.targetoptions[name] for name in ("nogil", "error_model", "_nrt")}
        return numba.njit(**options)(self.py_func)


def jit(*, allocates: bool = False, **options: Any) -> Callable[[F], F]:
    """Compile a kernel: without the GIL, with IEEE division, cached on disk.

    `allocates`: whether the kernel or one of its callees creates arrays. Without it Numba omits
    reference counting, which can cost more than a short loop. `options` are those of `numba.njit`.
    The first call with new argument types compiles (seconds); later processes load the machine code
    (milliseconds). One process compiles a kernel, others that need it meanwhile wait for it. For
    functions outside `kernels/` the cache does not see edits to callees.
    """

    def decorate(function: F) -> F:
        dispatcher = _Kernel(function, targetoptions=_target_options(allocates, options))
        dispatcher._cache = _LazyCache(function)
        return dispatcher

    return decorate


def inline_jit(*, allocates: bool = False, **options: Any) -> Callable[[F], F]:
    """Compile a function that only kernels call: part of its callers' code, without a cache entry.
    Arguments as for `jit`."""

    def decorate(function: F) -> F:
        target_options = _target_options(allocates, options)
        return _Callee(function, targetoptions={**target_options, "no_cpython_wrapper": True})

    return decorate


def _target_options(allocates: bool, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "nopython": True,
        "boundscheck": None,
        "nogil": True,
        "error_model": "numpy",
        "_nrt": allocates,
        "no_cfunc_wrapper": True,
        **options,
    }
