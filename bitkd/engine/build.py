"""The compiled engine: encoder.cpp becomes a library on first use, once for each kind of machine.

The library lies in a cache folder: `$BITKD_CACHE`, else `$XDG_CACHE_HOME/bitkd`, else `~/.cache/bitkd`. Its name holds a digest
of the source, the flags, this CPU's features and the compiler's version, so one folder serves different machines. Only
encoder.cpp of this package is ever compiled, and only a library with the recorded checksum is loaded.
"""

import atexit
import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import torch  # noqa: F401  # before the library, so that both use the OpenMP runtime that torch brings

from bitkd.engine.cpu import read_cpu_flags
from bitkd.errors import InputError, nearest
from bitkd.files import checksum, digest, is_left_over, temporary_name, write_file
from bitkd.quant.packed import multiplies_integers
from bitkd.store.lock import Lock

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("encoder.cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
"""-ffp-contract=off: a fused multiply-add would round otherwise than torch does."""

MODE = "BITKD_ENGINE"
"""Environment variable: one of MODES."""

MODES = ("auto", "off", "require")
"""auto: the engine where it can be built, torch elsewhere.  off: torch.  require: an error where it cannot be built."""

CACHE = "BITKD_CACHE"
"""Environment variable: the folder of compiled libraries."""

NEEDED = {"avx2", "fma"}
"""CPU features without which no kernel of the engine runs."""

COMPILE_SECONDS = 600
"""A compiler that takes longer has failed; processes that wait for another one's library wait as long."""

_LAST_LINES = 10
"""Lines of a compiler's messages that are shown."""


class UnavailableError(Exception):
    """Why there is no engine on this machine, in words."""


_guard = threading.Lock()
_results: dict[Path, Path | UnavailableError] = {}
"""By source: what this process found. A failure is tried, and told, once."""


def mode() -> str:
    """How the user wants the engine to be used: one of MODES. Raises InputError for another value."""
    chosen = os.environ.get(MODE) or "auto"
    if chosen not in MODES:
        raise InputError(f"{MODE}={chosen} is unknown; {nearest(chosen, MODES, show_all=True)}")
    return chosen


def library(source: Path = SOURCE) -> Path | None:
    """The compiled engine, which is compiled now if it was not before; None where it cannot be used.

    The reason is logged once per process. Raises InputError instead if `BITKD_ENGINE=require`.
    """
    chosen = mode()
    if chosen == "off":
        return None
    with _guard:
        first = source not in _results
        if first:
            try:
                _results[source] = _find(source)
            except UnavailableError as error:
                _results[source] = error
        found = _results[source]
    if isinstance(found, Path):
        return found
    if chosen == "require":
        raise InputError(f"{MODE}=require, but the engine cannot be used: {found}")
    if first:
        numbers = "8-bit integers" if multiplies_integers() else "FP32"
        log.warning(
            "packed models run slower on this machine, with the same products: torch multiplies them in %s, because %s",
            numbers,
            found,
        )
    return None


def compile_ahead() -> Path | None:
    """Compile the engine now, so that the first model that is loaded later need not wait; see `library`."""
    return library()


def cache_folder() -> Path:
    """The folder of compiled libraries; it may not exist yet."""
    if chosen := os.environ.get(CACHE):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "bitkd"


def cpu_features() -> list[str]:
    """The names that Linux gives to the features of this x86 CPU; empty on other systems and CPUs."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    return sorted(read_cpu_flags())


def _find(source: Path) -> Path:
    """The library in the cache or a new one. Raises UnavailableError."""
    features = cpu_features()
    if missing := sorted(NEEDED.difference(features)):
        raise UnavailableError(f"the engine needs an x86-64 CPU under Linux with {' and '.join(missing)}")
    stem = digest([hashlib.sha256(source.read_bytes()).hexdigest(), FLAGS, features])
    folder = cache_folder()
    compiler = find_compiler()
    if compiler is None:  # a library of any compiler will do
        with contextlib.suppress(OSError):
            for file in sorted(folder.glob(f"{stem}-*.so")):
                if _is_complete(file) and _load_error(file) is None:
                    return file
        raise UnavailableError("there is no C++ compiler; install g++ or clang++, or name one with CXX=")
    file = folder / f"{stem}-{digest(_version(compiler))}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _in_cache(file, source, compiler)
        reason = _load_error(file)
        if reason is None:
            return file
        reason = f"libraries in {folder} cannot be loaded ({reason})"
    except OSError as error:
        reason = f"{folder} is not writable ({error.strerror or error})"
    log.warning(
        "%s, so this process has a library of its own in a temporary folder; name another folder with %s=",
        reason,
        CACHE,
    )
    try:
        return _outside_cache(file, source, compiler)
    except OSError as error:
        raise UnavailableError(
            f"{reason}, nor is there a temporary folder that can be written; name a folder with {CACHE}="
        ) from error


def _outside_cache(file: Path, source: Path, compiler: Sequence[str]) -> Path:
    """A library for this process: the `file` of the cache if it is there, else a new one.

    Raises OSError if there is no folder for it, UnavailableError if it cannot be loaded there either.
    """
    own = Path(tempfile.mkdtemp(prefix="bitkd-")) / file.name
    atexit.register(shutil.rmtree, own.parent, ignore_errors=True)
    if _is_complete(file):
        shutil.copyfile(file, own)
    else:
        _compile(own, source, compiler)
    if error := _load_error(own):
        raise UnavailableError(
            f"the compiled library cannot be loaded ({error}); if programs may not be run from its folder, name another one "
            f"with {CACHE}="
        )
    return own


def _in_cache(file: Path, source: Path, compiler: Sequence[str]) -> None:
    """Compile the library `file` of the cache if it is not there, is damaged, or cannot be loaded.

    Raises OSError if the folder cannot be written, UnavailableError if there is no way to a library.
    """
    broken = None
    if _is_complete(file):
        if _load_error(file) is None:
            return
        broken = _stamp(file)

    def is_there() -> bool:
        return _is_complete(file) and _stamp(file) != broken

    lock = Lock(file.parent, file.name)
    try:
        if lock.wait(COMPILE_SECONDS, done=is_there) == "waiting":
            raise UnavailableError(f"{lock.holder()} has been compiling the engine for {COMPILE_SECONDS} seconds")
        if not is_there():
            _compile(file, source, compiler)
    finally:
        lock.release()


def _stamp(file: Path) -> tuple[int, int] | None:
    """Which file lies there now; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _recorded(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _is_complete(file: Path) -> bool:
    """Whether a library has the checksum that was recorded when it was compiled."""
    try:
        return _recorded(file).read_text(encoding="ascii") == checksum(file)
    except (OSError, ValueError):
        return False


def _load_error(file: Path) -> str | None:
    """Why a library cannot be loaded; None if it can."""
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return str(error)
    return None


def _compile(file: Path, source: Path, compiler: Sequence[str]) -> None:
    """Compile `source` beside `file` and put it there with its checksum."""
    for left in file.parent.iterdir():
        if is_left_over(left.name):
            left.unlink(missing_ok=True)
    temporary = file.with_name(temporary_name(f".{file.name}"))
    temporary.touch()  # raises OSError where the folder cannot be written, before the compiler does
    log.warning("compiling the engine (once for this machine, a few seconds)")
    command = [*compiler, *FLAGS, str(source), "-o", str(temporary)]
    try:
        done = _run(command)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:]
            raise UnavailableError("\n".join([f"{shlex.join(command)} failed with code {done.returncode}:", *lines]))
        os.replace(temporary, file)
        write_file(_recorded(file), checksum(file))
    finally:
        temporary.unlink(missing_ok=True)


def find_compiler() -> list[str] | None:
    """The command of the C++ compiler: $CXX, else g++, else clang++; None if there is none.

    Raises UnavailableError if $CXX names no program.
    """
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]) is None:
            raise UnavailableError(f"CXX={os.environ['CXX']} names no program; unset it, or name a C++ compiler")
        return named
    return next(([name] for name in ("g++", "clang++") if shutil.which(name)), None)


def _version(compiler: Sequence[str]) -> str:
    return _run([*compiler, "--version"]).stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS
        )
    except OSError as error:
        raise UnavailableError(f"{command[0]} does not run ({error.strerror or error})") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{shlex.join(command)} took longer than {COMPILE_SECONDS} seconds") from None
