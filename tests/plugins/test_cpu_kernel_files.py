"""Compiled kernels on the disk: whole or not at all, loaded only where nobody else can have written them."""

from __future__ import annotations

import os
import stat
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from dba_core.attention.module import DecoupledAttention
from dba_core.config.attention import AttentionConfig
from dba_core.errors import KernelCacheWarning
from dba_plugins.decode.cpu.kernel import ENTRIES, build_module
from dba_plugins.decode.cpu.spec import KernelSpec, TensorSpec
from dba_plugins.native import compiler, object_files

pytestmark = [pytest.mark.torch, pytest.mark.needs("llvmlite")]

CODE = bytes(range(256)) * 4
posix = pytest.mark.skipif(sys.platform == "win32", reason="mode bits and owners of POSIX")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the kernels, not made yet; nothing noted so far."""
    monkeypatch.setattr(object_files, "_noted", set())
    monkeypatch.setenv(object_files.CACHE_VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def compile_small(built: list[int]) -> bytes:
    tensor = TensorSpec(heads=1, width=8, format="fp32", qblock=0)
    spec = KernelSpec(heads=1, k_sem=tensor, k_geo=tensor, v=tensor, window=False)

    def build():
        built.append(1)
        return build_module(spec, has_permute=False)

    code = compiler.object_code("a small one", build, room=Path(__file__).parent)
    assert set(compiler.Compiled(code, ENTRIES).functions) == set(ENTRIES)
    return code


def test_a_kernel_is_compiled_once_and_a_damaged_file_again(folder: Path) -> None:
    built: list[int] = []
    code = compile_small(built)
    assert compile_small(built) == code
    assert len(built) == 1
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    cut = [b"", whole[:10], whole[:-1], whole[: len(whole) // 2], bytes(len(whole)), bytes(flipped)]
    for damaged in cut:
        file.write_bytes(damaged)
        assert compile_small(built) == code
        assert file.read_bytes() == whole
    assert len(built) == 1 + len(cut)


def test_one_bit_anywhere_is_noticed_and_a_file_under_another_name(folder: Path) -> None:
    object_files.write("one.o", CODE)
    file = folder / "one.o"
    whole = file.read_bytes()
    assert object_files.read("one.o") == CODE
    for position in range(0, len(whole), 7):
        altered = bytearray(whole)
        altered[position] ^= 1 << position % 8
        file.write_bytes(altered)
        assert object_files.read("one.o") is None
    (folder / "other.o").write_bytes(whole)
    (folder / "other.o").chmod(0o600)
    assert object_files.read("other.o") is None


@posix
def test_what_is_made_is_the_users_alone_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(object_files.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0)
    try:
        object_files.write("one.o", CODE)
    finally:
        os.umask(before)
    home = tmp_path / "cache" / "dba"
    made = (home, home / "kernels", home / "kernels" / "one.o")
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700, 0o700, 0o600]
    assert object_files.read("one.o") == CODE


def as_link(path: Path) -> None:
    real = path.with_name("real")
    path.rename(real)
    path.symlink_to(real)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILED = {
    "file of group": ("file", lambda path: path.chmod(0o620), "written by other users"),
    "file of all": ("file", lambda path: path.chmod(0o602), "written by other users"),
    "file as link": ("file", as_link, "symbolic link"),
    "file as pipe": ("file", as_pipe, "not a file"),
    "folder of group": ("folder", lambda path: path.chmod(0o770), "written by other users"),
    "folder of all": ("folder", lambda path: path.chmod(0o707), "written by other users"),
    "folder as link": ("folder", as_link, "symbolic link"),
}


@posix
@pytest.mark.parametrize("case", SPOILED)
def test_what_others_may_have_written_is_not_loaded_and_compiled_in_memory(case: str, folder: Path) -> None:
    built: list[int] = []
    code = compile_small(built)
    (file,) = folder.iterdir()
    what, spoil, why = SPOILED[case]
    spoil(file if what == "file" else folder)
    left = sorted(folder.iterdir())
    with pytest.warns(KernelCacheWarning, match=why) as caught:
        assert compile_small(built) == code
    assert len(caught) == 1
    assert str(folder) in str(caught[0].message)
    assert len(built) == 2
    assert sorted(folder.iterdir()) == left, "and nothing is written there"
    assert compile_small(built) == code, "said once"


@posix
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_belongs_to_another_user_is_not_loaded(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_files.write("one.o", CODE)
    own = os.lstat

    def foreign(path, **kwargs):
        found = list(own(path, **kwargs))
        found[stat.ST_UID] += what == "folder"
        return os.stat_result(found)

    monkeypatch.setattr(os, "lstat", foreign)
    if what == "file":
        monkeypatch.setattr(os, "fstat", lambda handle: _of_another(os.stat(handle)))
    with pytest.warns(KernelCacheWarning, match=r"belongs to user \d+ and this process to user \d+"):
        assert object_files.read("one.o") is None


def _of_another(found: os.stat_result) -> os.stat_result:
    fields = list(found)
    fields[stat.ST_UID] += 1
    return os.stat_result(fields)


@posix
def test_the_folders_above_the_given_one_are_not_ours(folder: Path) -> None:
    folder.parent.chmod(0o777)
    object_files.write("one.o", CODE)
    assert object_files.read("one.o") == CODE


@posix
def test_no_home_and_no_entry_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in (object_files.CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(compiler, "_newest", type(compiler._newest)())
    config = AttentionConfig(d_model=16, n_heads=2, sem_head_dim=2, geo_head_dim=6, v_head_dim=5)
    layer = DecoupledAttention(config, decode_backend="cpu")
    with pytest.warns(KernelCacheWarning, match="no home directory; set DBA_CACHE_DIR") as caught:
        cache = layer.new_cache(batch=1, capacity=3, policy="ksem=fp32,kgeo=fp32,v=fp32")
    assert len(caught) == 1, "one note for the kernel and its writer"
    assert layer(torch.randn(1, 1, 16), cache=cache).shape == (1, 1, 16)


@pytest.mark.parametrize("blocked", ["a file above", "a file in its place"])
def test_a_folder_that_cannot_be_made_costs_time_only(
    blocked: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = folder / "kernels" if blocked == "a file above" else folder
    folder.write_text("no folder", encoding="utf-8")
    monkeypatch.setenv(object_files.CACHE_VARIABLE, str(where))
    built: list[int] = []
    with pytest.warns(KernelCacheWarning, match="set DBA_CACHE_DIR|not a folder; remove it") as caught:
        compile_small(built)
    assert len(caught) >= 1
    compile_small(built)
    assert len(built) == 2


@posix
def test_a_folder_that_is_read_only_serves_what_it_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_files.write("one.o", CODE)

    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(object_files.tempfile, "mkstemp", read_only)
    assert object_files.read("one.o") == CODE
    with pytest.warns(KernelCacheWarning, match="Read-only file system"):
        object_files.write("two.o", CODE)
    assert object_files.read("two.o") is None


@posix
def test_a_disk_that_is_full_leaves_nothing_behind(folder: Path) -> None:
    import resource

    object_files.write("one.o", CODE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.warns(KernelCacheWarning, match="cannot be written"):
            object_files.write("two.o", CODE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in folder.iterdir()] == ["one.o"]


def test_writers_and_readers_at_once_see_whole_files(folder: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(4)]
    object_files.write("one.o", contents[0])
    seen: list[bytes | None] = []
    writers = [
        threading.Thread(target=lambda c=c: [object_files.write("one.o", c) for _ in range(20)])
        for c in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen.append(object_files.read("one.o"))
    for writer in writers:
        writer.join()
    seen.append(object_files.read("one.o"))
    assert set(seen) <= set(contents)
    assert [path.name for path in folder.iterdir()] == ["one.o"]


def test_the_warnings_are_no_errors_of_the_plugin() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        object_files.write("one.o", CODE)
        assert object_files.read("one.o") == CODE
