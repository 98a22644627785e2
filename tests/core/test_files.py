"""Outputs appear whole or not at all, whatever happens while they are made."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from pipeline.core.errors import FailureError, InputError
from pipeline.core.file_records import FileRecord
from pipeline.core.files import (
    CHUNK_BYTES,
    copy_file,
    directory_records,
    file_record,
    file_sha256,
    new_directory,
    read_bytes,
    read_record,
    readable_disk_errors,
    remove_tree,
    replace_directory,
    require_free_space,
    resumable_directory,
    work_key,
    write_bytes,
    write_record,
)
from tests.disk import run_on_tiny_disk
from tests.support import ROOT

ODD_SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1)


class ForcedError(Exception):
    """Something that goes wrong while an output is made."""


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def ignore(_: int) -> None:
    """Progress is not of interest here."""


@pytest.mark.parametrize("size", ODD_SIZES)
def test_a_written_file_is_read_back(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "a" / "b"
    write_bytes(path, data)
    assert read_bytes(path, made_by="fetch") == data
    assert file_sha256(path) == hashlib.sha256(data).hexdigest()
    assert names_in(path.parent) == ["b"]


@pytest.mark.parametrize("size", ODD_SIZES)
def test_a_copy_is_the_same_and_reports_every_byte(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(os.urandom(size))
    moved: list[int] = []
    copy_file(tmp_path / "a", tmp_path / "b", advance=moved.append)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert sum(moved) == size


def test_a_missing_input_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="x: missing; run `quantline calibrate` first"):
        read_bytes(tmp_path / "x", made_by="calibrate")


def test_a_record_is_read_back(tmp_path: Path) -> None:
    record = FileRecord(path="a", size=1, sha256="0" * 64)
    write_record(tmp_path / "x.json", record)
    assert read_record(FileRecord, tmp_path / "x.json", made_by="fetch") == record


def make_unreadable(path: Path, kind: str) -> None:
    match kind:
        case "a directory":
            path.mkdir(parents=True)
        case "in a file":
            path.parent.write_text("")
        case "a loop of links":
            path.parent.mkdir()
            path.symlink_to(path)
        case "not JSON":
            write_bytes(path, b"{")
        case "of another version":
            write_bytes(path, b"{}")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "missing; run `quantline quantize a` first"),
        ("a directory", r"\(Is a directory\); remove what is there and run `quantline quantize a`"),
        ("in a file", r"\(Not a directory\); remove what is there and run `quantline quantize a`"),
        ("a loop of links", r"cannot be read \(Too many.*\); run `quantline quantize a` again"),
        ("not JSON", "not valid JSON .* delete it and run `quantline quantize a` again"),
        ("of another version", "path: missing; .* delete it and run `quantline quantize a` again"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line_with_the_command_that_makes_it(
    tmp_path: Path, kind: str, expected: str
) -> None:
    path = tmp_path / "dir" / "x.json"
    make_unreadable(path, kind)
    with pytest.raises(InputError, match=expected) as caught:
        read_record(FileRecord, path, made_by="quantize a")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_record_without_permission_is_one_line(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"")
    (tmp_path / "x").chmod(0)
    with pytest.raises(InputError, match=r"x: no permission to read it; .*`quantline fetch` again"):
        read_record(FileRecord, tmp_path / "x", made_by="fetch")


def test_writing_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    """A cached file that an output links to must survive a new output."""
    (tmp_path / "cached").write_bytes(b"old")
    (tmp_path / "out").symlink_to(tmp_path / "cached")
    os.link(tmp_path / "cached", tmp_path / "hard")
    write_bytes(tmp_path / "out", b"new")
    write_bytes(tmp_path / "hard", b"new")
    assert (tmp_path / "cached").read_bytes() == b"old"
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_full_disk_keeps_the_old_file_and_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_bytes(path, b"old")
    (tmp_path / "out.partial").symlink_to("/dev/full")
    with pytest.raises(FailureError, match=r"out: the disk is full \(\d+ MiB free\); free some"):
        write_bytes(path, b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["out"]


def test_many_writers_of_one_file_each_write_it_whole(tmp_path: Path) -> None:
    writers, path = 8, tmp_path / "out"
    together = Barrier(writers)

    def write(writer: int) -> None:
        together.wait()
        for _ in range(10):
            write_bytes(path, bytes([writer]) * 100_000)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    assert path.read_bytes() in {bytes([writer]) * 100_000 for writer in range(writers)}
    assert names_in(tmp_path) == ["out"]


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise ForcedError

    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(ForcedError):
        copy_file(tmp_path / "a", tmp_path / "b", advance=fail)
    assert (tmp_path / "b").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a", "b"]


def test_a_file_where_a_directory_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("")
    with pytest.raises(FailureError, match="a file is where a directory of this path should be"):
        write_bytes(tmp_path / "artifacts" / "x", b"")
    with (
        pytest.raises(FailureError, match="a file is where a directory of this path should be"),
        new_directory(tmp_path / "artifacts" / "x"),
    ):
        pass


@pytest.mark.parametrize("before", ["nothing", "a directory", "a file", "a link"])
def test_a_new_directory_replaces_what_was_there(tmp_path: Path, before: str) -> None:
    target = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    match before:
        case "a directory":
            target.mkdir()
            (target / "old").write_text("")
        case "a file":
            target.write_text("old")
        case "a link":
            target.symlink_to(tmp_path / "elsewhere")
    with new_directory(target) as fresh:
        assert names_in(fresh) == []
        (fresh / "new").write_text("")
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["elsewhere", "out"]
    assert names_in(tmp_path / "elsewhere") == ["kept"]


def make_half_of(target: Path) -> None:
    with new_directory(target) as fresh:
        (fresh / "new").write_text("")
        raise ForcedError


def test_an_error_while_a_directory_is_made_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_directory(target) as fresh:
        (fresh / "old").write_text("")
    with pytest.raises(ForcedError):
        make_half_of(target)
    assert names_in(target) == ["old"]
    assert names_in(tmp_path) == ["out"]


KILLED_INSIDE = """
import os, signal, sys
from pathlib import Path
from pipeline.core.files import new_directory
with new_directory(Path(sys.argv[1])) as fresh:
    (fresh / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_a_directory_is_made_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_directory(target) as fresh:
        (fresh / "old").write_text("")
    killed = subprocess.run([sys.executable, "-c", KILLED_INSIDE, str(target)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert names_in(target) == ["old"]
    with new_directory(target) as fresh:
        (fresh / "new").write_text("")
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["out"]


def test_the_old_directory_is_never_seen_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is removed is out of its place before the removal begins."""
    target, fresh = tmp_path / "out", tmp_path / "fresh"
    for directory in (target, fresh):
        directory.mkdir()
        (directory / directory.name).write_text("")
    removed: list[Path] = []
    monkeypatch.setattr("shutil.rmtree", lambda path: removed.append(path))
    replace_directory(fresh, target)
    assert names_in(target) == ["fresh"]
    assert target not in removed


KILLED_BEFORE_EVERY_CHANGE = """
import os, shutil, signal, sys
from pathlib import Path
from pipeline.core.files import new_directory, remove_tree

target = Path(sys.argv[1])
changes = 0

def killed_before_change(number):
    def counted(real):
        def change(*arguments, **options):
            global changes
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return change
    Path.mkdir, Path.rename = counted(Path.mkdir), counted(Path.rename)
    shutil.rmtree = counted(shutil.rmtree)
    with new_directory(target) as fresh:
        (fresh / "new").write_text("")

number, ended = 0, None
while ended != 0:
    number += 1
    for path in target.parent.iterdir():
        remove_tree(path)
    target.mkdir()
    (target / "old").write_text("")
    child = os.fork()
    if child == 0:
        killed_before_change(number)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    assert ended in (0, signal.SIGKILL)
    try:
        with new_directory(target) as fresh:
            raise KeyError
    except KeyError:
        print(*(path.name for path in target.parent.iterdir() if path.name == target.name),
              *(path.name for path in target.iterdir()))
"""


def test_a_kill_at_any_change_and_a_failure_after_it_keep_the_old_directory_or_the_new_one(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", KILLED_BEFORE_EVERY_CHANGE, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    states = done.stdout.splitlines()
    assert set(states) == {"out old", "out new"}
    assert len(states) > 4


ON_TINY_DISK = """
import sys
from pathlib import Path
from pipeline.core.files import new_directory, write_bytes
from pipeline.core.errors import FailureError
root = Path(sys.argv[1])
write_bytes(root / "kept", b"kept")
try:
    with new_directory(root / "out") as fresh:
        (fresh / "fits").write_bytes(b"x" * 10_000)
        (fresh / "does-not").write_bytes(b"x" * 100_000)
except FailureError as error:
    print(error)
print(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
"""


def test_a_really_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_on_tiny_disk(ON_TINY_DISK, tmp_path, str(tmp_path), size_bytes=65_536)
    message, left = done.stdout.splitlines()
    assert message == (
        f"{tmp_path}/out: the disk is full (0 MiB free); free some space and run the same command "
        "again, nothing half-written was kept"
    )
    assert left == "['kept']"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, r"/x: no access \(why\); change its permissions"),
        (errno.EISDIR, "/x: a directory is where a file should be; remove it"),
        (errno.EROFS, r"/x: no access \(why\)"),
        (errno.EFBIG, "larger than its file system or a limit of this process allows"),
    ],
)
def test_a_disk_that_refuses_is_one_line(tmp_path: Path, number: int, expected: str) -> None:
    with (
        pytest.raises(FailureError, match=expected),
        readable_disk_errors(tmp_path / "a" / "b"),
    ):
        raise OSError(number, "why", "/x")


def test_another_error_of_the_system_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), readable_disk_errors(tmp_path):
        raise ConnectionResetError


def test_needing_more_than_the_disk_has_is_one_line(tmp_path: Path) -> None:
    require_free_space(tmp_path / "new", 1)
    with pytest.raises(FailureError, match=r"new: \d+ MiB of disk needed, \d+ MiB free"):
        require_free_space(tmp_path / "new", 1 << 60)


def test_records_name_every_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b", "a/b", "a-b", "a/c/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    records = directory_records(tmp_path)
    assert [record.path for record in records] == ["a-b", "a/b", "a/c/d", "b"]
    for record in records:
        assert record.size == len(record.path)
        assert record.sha256 == hashlib.sha256(record.path.encode()).hexdigest()


def test_a_link_to_a_file_counts_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "cached").write_text("x")
    (tmp_path / "out" / "a").symlink_to(tmp_path / "cached")
    assert directory_records(tmp_path / "out")[0].sha256 == file_sha256(tmp_path / "cached")


@pytest.mark.parametrize("destination", ["/", "nowhere", "."])
def test_any_other_link_is_refused(tmp_path: Path, destination: str) -> None:
    (tmp_path / "link").symlink_to(destination)
    with pytest.raises(InputError, match="link: expected a file, found a link to something else"):
        directory_records(tmp_path)


@pytest.mark.parametrize("name", [b"a\\b", b"a\nb", b"a\xff"])
def test_a_file_name_no_manifest_may_hold_is_one_line(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_text("")
    with pytest.raises(InputError, match="expected a name in UTF-8 without backslashes") as caught:
        file_record(path, tmp_path)
    assert "\n" not in str(caught.value)


def test_removing_a_link_keeps_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling", "nothing"):
        remove_tree(tmp_path / name)
    assert names_in(tmp_path) == ["kept"]


KEY, OTHER_KEY = work_key("a"), work_key("b")


def fail_after(target: Path, key: str, unit: str) -> None:
    """Work that writes one file and then goes wrong."""

    def work_and_fail() -> None:
        with resumable_directory(target, key=key) as work:
            write_bytes(work / unit, b"1")
            raise ForcedError

    with pytest.raises(ForcedError):
        work_and_fail()


def test_finished_units_outlive_a_failure_and_become_the_target(tmp_path: Path) -> None:
    target = tmp_path / "statistics"
    fail_after(target, KEY, "first")
    assert not target.exists()
    with resumable_directory(target, key=KEY) as work:
        assert names_in(work) == ["first"]
        write_bytes(work / "second", b"2")
    assert names_in(tmp_path) == ["statistics"]
    assert names_in(target) == ["first", "second"]


def test_half_written_files_of_a_killed_run_are_gone(tmp_path: Path) -> None:
    target = tmp_path / "statistics"
    fail_after(target, KEY, "model/shard.partial")
    with resumable_directory(target, key=KEY) as work:
        assert names_in(work / "model") == []


def test_work_of_another_key_is_discarded_and_what_is_beside_it_is_kept(tmp_path: Path) -> None:
    target, neighbour = tmp_path / "awq", tmp_path / "awq-g32"
    for other, key in ((target, OTHER_KEY), (neighbour, OTHER_KEY)):
        fail_after(other, key, "unit")
    (tmp_path / "awq.notes.partial").write_bytes(b"not ours")
    with resumable_directory(target, key=KEY) as work:
        assert names_in(work) == []
    kept = ["awq", f"awq-g32.{OTHER_KEY[:16]}.partial", "awq.notes.partial"]
    assert names_in(tmp_path) == sorted(kept)


def test_the_target_stays_until_the_work_is_done(tmp_path: Path) -> None:
    target = tmp_path / "statistics"
    target.mkdir()
    (target / "old").write_bytes(b"0")
    with resumable_directory(target, key=KEY) as work:
        write_bytes(work / "new", b"1")
        assert names_in(target) == ["old"]
    assert names_in(target) == ["new"]


def test_a_key_depends_on_every_fact_and_on_their_order() -> None:
    keys = {work_key(), work_key("a"), work_key("a", "b"), work_key("b", "a"), work_key("ab")}
    assert len(keys) == 5
    assert work_key("a", "b") == work_key("a", "b")
