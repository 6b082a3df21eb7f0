"""The engine is compiled once for a kind of machine; where that fails, a note says why and torch takes over."""

import ctypes
import multiprocessing
import shutil
import stat
from pathlib import Path

import pytest

from bitkd.engine import build
from bitkd.errors import InputError
from bitkd.files import checksum

pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++"),
    pytest.mark.skipif(bool(build.NEEDED.difference(build.cpu_features())), reason="no CPU for the engine"),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv(build.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(build.MODE, raising=False)
    monkeypatch.setattr(build, "_results", {})
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    """A library with one function."""
    file = tmp_path / "answer.cpp"
    file.write_text('extern "C" int answer() { return 42; }\n')
    return file


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The compiler notes its runs in this file, and takes a while."""
    return compiler(tmp_path, monkeypatch, 'sleep 0.2\nexec g++ "$@"')


def compiler(tmp_path, monkeypatch, body):
    """Make $CXX a script that notes each run, apart from questions for its version, in the file that is returned."""
    script, noted = tmp_path / "compiler", tmp_path / "runs"
    noted.touch()
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\necho run >> {noted}\n{body}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return noted


def find(source, monkeypatch):
    """What a new process would find."""
    monkeypatch.setattr(build, "_results", {})
    return build.library(source)


def answer(file):
    return ctypes.CDLL(str(file)).answer()


def test_a_library_is_compiled_once(cache, source, runs, monkeypatch, caplog):
    first = build.library(source)
    assert first.parent == cache
    assert answer(first) == 42
    assert find(source, monkeypatch) == first
    assert runs.read_text() == "run\n"
    assert caplog.messages == ["compiling the engine (once for this machine, a few seconds)"]
    assert sorted(file.suffix for file in cache.iterdir() if file.is_file()) == [".sha256", ".so"]


def test_processes_that_start_together_compile_once(cache, source, runs):
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        found = pool.map(build.library, [source] * 3, chunksize=1)
    assert len(set(found)) == 1
    assert runs.read_text() == "run\n"


@pytest.mark.parametrize("change", ["source", "flags", "cpu", "compiler"])
def test_each_kind_of_machine_has_a_library_of_its_own(change, cache, source, monkeypatch):
    first = build.library(source)
    if change == "source":
        source.write_text(source.read_text() + "// changed\n")
    elif change == "flags":
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DCHANGED"))
    elif change == "cpu":
        monkeypatch.setattr(build, "cpu_features", lambda: [*build.NEEDED, "another"])
    else:
        compiler(source.parent, monkeypatch, 'exec g++ "$@"')
    second = find(source, monkeypatch)
    assert second != first
    assert second.parent == cache
    assert first.exists()


def damage(file, how):
    content = file.read_bytes()
    if how == "half":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        file.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif how == "no checksum":
        file.write_bytes(content)
        file.with_suffix(".sha256").unlink()
    elif how == "cannot be loaded":
        file.write_bytes(b"no library")
        file.with_suffix(".sha256").write_text(checksum(file))


@pytest.mark.parametrize("how", ["half", "flipped", "no checksum", "cannot be loaded"])
def test_a_damaged_library_is_compiled_again(how, cache, source, runs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build, "_load_error", lambda file: None)  # this process would know it from then on
        damage(build.library(source), how)
    assert answer(find(source, monkeypatch)) == 42
    assert runs.read_text() == "run\n" * 2


def test_a_library_that_never_loads_is_compiled_once_more_only(cache, source, tmp_path, monkeypatch, caplog):
    runs = compiler(tmp_path, monkeypatch, 'while [ "$1" != -o ]; do shift; done; echo nothing > "$2"')
    assert build.library(source) is None
    assert find(source, monkeypatch) is None
    assert runs.read_text() == "run\n" * 2
    assert "the compiled library cannot be loaded" in caplog.text
    assert f"name another one with {build.CACHE}=" in caplog.text


def test_a_cache_whose_libraries_cannot_be_loaded_is_replaced_for_the_process(cache, source, runs, monkeypatch, caplog):
    load_error = build._load_error
    monkeypatch.setattr(
        build, "_load_error", lambda file: "not permitted" if cache in file.parents else load_error(file)
    )
    found = build.library(source)
    assert answer(found) == 42
    assert cache not in found.parents
    assert runs.read_text() == "run\n"
    assert f"{cache} cannot be loaded (not permitted), so this process has a library of its own" in caplog.text
    assert f"name another folder with {build.CACHE}=" in caplog.text
    shutil.rmtree(found.parent)


def test_without_any_folder_that_can_be_written_there_is_no_engine(source, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv(build.CACHE, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(build, "_results", {})
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "file"))
    assert build.library(source) is None
    assert "nor is there a temporary folder that can be written" in caplog.text


def test_a_compiler_that_fails_is_quoted_and_not_asked_again(cache, source, tmp_path, monkeypatch, caplog):
    runs = compiler(tmp_path, monkeypatch, "echo line of the compiler >&2; exit 3")
    assert build.library(source) is None
    assert build.library(source) is None
    assert runs.read_text() == "run\n"
    [_, note] = caplog.messages
    assert note.startswith("packed models run slower on this machine, with the same products: torch multiplies them in")
    assert "failed with code 3:\nline of the compiler" in note
    assert [file.name for file in cache.iterdir() if file.is_file()] == []
    monkeypatch.setenv(build.MODE, "require")
    with pytest.raises(InputError, match=r"BITKD_ENGINE=require, but the engine cannot be used: .*failed with code 3"):
        build.library(source)


def test_without_a_compiler_a_library_in_the_cache_is_used(cache, source, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    first = build.library(source)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find(source, monkeypatch) == first
    first.unlink()
    assert find(source, monkeypatch) is None
    assert "there is no C++ compiler; install g++ or clang++, or name one with CXX=" in caplog.text


@pytest.mark.parametrize(
    ("command", "words"),
    [("no-such-compiler -x", "CXX=no-such-compiler -x names no program"), ("/", "CXX=/ names no program")],
)
def test_a_compiler_that_is_none_is_named(command, words, cache, source, monkeypatch, caplog):
    monkeypatch.setenv("CXX", command)
    assert build.library(source) is None
    assert words in caplog.text


def test_a_cache_that_cannot_be_written_is_replaced_for_the_process(source, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv(build.CACHE, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(build, "_results", {})
    found = build.library(source)
    assert answer(found) == 42
    assert tmp_path not in found.parents
    assert f"a library of its own in a temporary folder; name another folder with {build.CACHE}=" in caplog.text
    shutil.rmtree(found.parent)


def test_a_cpu_without_the_needed_instructions_is_told(cache, source, monkeypatch, caplog):
    monkeypatch.setattr(build, "cpu_features", lambda: ["sse4_2", "avx2"])
    assert build.library(source) is None
    assert "the engine needs an x86-64 CPU under Linux with fma" in caplog.text
    assert not cache.exists()


def test_the_engine_can_be_switched_off(cache, source, monkeypatch, caplog):
    monkeypatch.setenv(build.MODE, "off")
    assert build.library(source) is None
    assert not cache.exists()
    assert not caplog.messages
    monkeypatch.setenv(build.MODE, "of")
    with pytest.raises(
        InputError, match=r"BITKD_ENGINE=of is unknown; did you mean off\? \(use one of auto, off, require\)"
    ):
        build.library(source)


def test_the_cache_folder_follows_the_usual_variables(monkeypatch):
    for name in (build.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert build.cache_folder() == Path("/home/someone/.cache/bitkd")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert build.cache_folder() == Path("/caches/bitkd")
    monkeypatch.setenv(build.CACHE, "/own")
    assert build.cache_folder() == Path("/own")
    monkeypatch.setenv(build.CACHE, "~/../other/cache")
    assert build.cache_folder() == Path("/home/other/cache")
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv(build.CACHE, "cache")
    assert build.cache_folder() == Path("/tmp/cache").resolve()
