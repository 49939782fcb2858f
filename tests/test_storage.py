"""Laws of the disk: whole or not at all, one writer, no way out of the folder, and lines that survive a kill."""

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeltune import storage
from labeltune.errors import RunError

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.integers(), max_size=2), max_size=5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_and_kill(code: str, *, call: str, times: int) -> int:
    """Run `code` in a fresh process that is killed in place of the given call's n-th time; the exit status."""
    killer = f"""
import os, shutil, signal
from pathlib import Path
from labeltune import storage
real, left = {call}, [{times}]
def counted(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
{call} = counted
"""
    return subprocess.run([sys.executable, "-c", killer + code], check=False).returncode


def test_a_file_holds_exactly_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"\x00\xff", "Größe\r\n", ""):
        storage.write_atomic(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_atomic(path, "old")
    with pytest.raises(KeyError), storage.atomic_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, call: str) -> None:
    path = tmp_path / "file"
    storage.write_atomic(path, "old")
    status = run_and_kill(f"storage.write_atomic(Path({str(path)!r}), 'new')", call=call, times=1)
    assert status == -signal.SIGKILL
    assert path.read_text() == "old"
    storage.write_atomic(path, "newer")
    assert names(tmp_path) == ["file"]


def test_a_kill_after_the_rename_leaves_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_atomic(path, "old")
    status = run_and_kill(f"storage.write_atomic(Path({str(path)!r}), 'new')", call="os.fsync", times=2)
    assert status == -signal.SIGKILL
    assert path.read_text() == "new"


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    storage.write_atomic(tmp_path / "link", "through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "through"
    os.mkfifo(tmp_path / "pipe")
    with storage.atomic_file(tmp_path / "pipe") as place:
        assert place == tmp_path / "pipe"
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyError), storage.atomic_folder(folder) as partial:
        (partial / "a").write_text("a")
        raise KeyError
    assert names(tmp_path) == []
    with storage.atomic_folder(folder) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a").write_text("a")
        assert not folder.exists()
    assert (folder / "deep" / "a").read_text() == "a"
    assert names(tmp_path) == ["run"]


def test_an_existing_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with storage.atomic_folder(folder) as partial:
        (partial / "old").touch()
    with pytest.raises(RunError, match=r"run: is already there"), storage.atomic_folder(folder):
        pass
    with storage.atomic_folder(folder, replace=True) as partial:
        (partial / "new").touch()
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("call", "times", "expected"),
    [("os.fsync", 1, "old"), ("os.replace", 1, "old"), ("os.replace", 2, "new"), ("shutil.rmtree", 1, "new")],
)
def test_a_kill_while_replacing_a_folder_leaves_the_old_or_the_new(
    tmp_path: Path, call: str, times: int, expected: str
) -> None:
    folder = tmp_path / "run"
    with storage.atomic_folder(folder) as partial:
        (partial / "content").write_text("old")
    code = f"""
with storage.atomic_folder(Path({str(folder)!r}), replace=True) as partial:
    (partial / "content").write_text("new")
"""
    assert run_and_kill(code, call=call, times=times) == -signal.SIGKILL
    storage.settle(folder)
    assert (folder / "content").read_text() == expected
    assert names(tmp_path) == ["run"]


def test_what_the_disk_refuses_is_a_sentence_with_an_address(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "file" / "inside", tmp_path / "run", tmp_path / ("long" * 100)):
        with pytest.raises(RunError, match=rf"{path}: cannot be written: "):
            storage.write_atomic(path, "")
        with pytest.raises(RunError, match=rf"{path}: "), storage.atomic_folder(path):
            pass
    assert names(tmp_path) == ["file", "run"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "C:\\x", "C:x", "\\\\host\\x", "a\\..\\..\\x", "a\0b"]
)
def test_no_name_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="is no path inside this folder"):
        storage.safe_child(tmp_path, name)


@given(st.text(st.sampled_from("./\\a:~\0"), max_size=8))
def test_a_safe_name_stays_inside_whatever_it_looks_like(name: str) -> None:
    folder = Path("/nowhere/run")
    try:
        child = storage.safe_child(folder, name)
    except RunError:
        return
    assert Path(os.path.normpath(child)).is_relative_to(folder)
    assert Path(os.path.normpath(child)) != folder


def test_checksums_are_those_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(b"abc" * 100_000)
    assert storage.sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c").touch()
    sums = f"{hashlib.sha256().hexdigest()}  a/c\n{storage.sha256_file(path)}  b\n"
    assert storage.sha256_folder(tmp_path) == hashlib.sha256(sums.encode()).hexdigest()


def test_a_folders_checksum_ignores_dot_files_and_sees_names_and_content(tmp_path: Path) -> None:
    seen = set()
    for name, content in (("a", "1"), ("a", "2"), ("b", "2"), ("b/c", "2")):
        with storage.atomic_folder(tmp_path / "run", replace=True) as partial:
            storage.write_atomic(partial / name, content)
            storage.write_atomic(partial / ".hidden" / name, name)
        seen.add(storage.sha256_folder(tmp_path / "run"))
        assert storage.sha256_folder(tmp_path / "run", "*.txt") == hashlib.sha256().hexdigest()
    assert len(seen) == 4


@given(JSON_VALUES)
def test_json_round_trips_and_has_a_utf8(value: object) -> None:
    for sort in (True, False):
        assert json.loads(storage.to_json(value, sort=sort).encode()) == value


def test_a_users_fields_keep_their_order_on_request() -> None:
    assert storage.to_json({"b": 1, "a": 2}, sort=False) == '{"b": 1, "a": 2}'


def test_equal_values_give_equal_json(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a", {"b": 1, "a": {"d": [1.5], "c": "ü"}})
    storage.write_json(tmp_path / "b", {"a": {"c": "ü", "d": [1.5]}, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "ü" in (tmp_path / "a").read_text("utf-8")
    assert storage.read_json(tmp_path / "a") == {"a": {"c": "ü", "d": [1.5]}, "b": 1}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_by_its_place(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match=r"value\.dev\.1\.log_loss is not a finite number"):
        storage.write_json(tmp_path / "metrics.json", {"dev": [{}, {"log_loss": number}]})
    assert names(tmp_path) == []


def test_a_missing_or_changed_json_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"labels\.json: is missing"):
        storage.read_json(tmp_path / "labels.json")
    for content in (b"", b'{"a": ', b"\xff", b"[" * 100_000):
        (tmp_path / "labels.json").write_bytes(content)
        with pytest.raises(RunError, match=r"labels\.json: is no JSON"):
            storage.read_json(tmp_path / "labels.json")


@given(ROWS, st.data())
def test_lines_survive_a_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log.jsonl"
    for row in rows:
        storage.append_jsonl(path, row)
    whole = path.read_bytes() if rows else b""
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = rows[: whole[:cut].count(b"\n")]
    assert list(storage.read_jsonl(path)) == kept
    storage.append_jsonl(path, {"after": 1})
    assert list(storage.read_jsonl(path)) == [*kept, {"after": 1}]


def test_a_long_cut_line_is_dropped_and_the_whole_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    storage.append_jsonl(path, {"whole": "x" * 10_000})
    with path.open("a") as file:
        file.write('{"cut": "' + "y" * 20_000)
    storage.append_jsonl(path, {"next": 1})
    assert [list(row) for row in storage.read_jsonl(path)] == [["whole"], ["next"]]


@pytest.mark.parametrize("line", ["{", "[]", "1", "", "\0", "[" * 100_000])
def test_a_changed_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n" + line + "\n{}\n")
    with pytest.raises(RunError, match=r"log\.jsonl:2: is no JSON"):
        list(storage.read_jsonl(tmp_path / "log.jsonl"))


def test_one_writer_at_a_time_and_the_second_hears_who(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    code = f"""
from pathlib import Path
from labeltune import storage
with storage.lock(Path({str(run)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        said = rf"another process \(pid {other.pid}\) is writing this run; wait"
        with pytest.raises(RunError, match=said), storage.lock(run):
            pass
        other.kill()
        other.wait()
    with storage.lock(run):  # the system freed a killed holder's lock
        assert storage.sha256_folder(run) == hashlib.sha256().hexdigest()
        with pytest.raises(RunError, match=rf"pid {os.getpid()}"), storage.lock(run):
            pass
    assert names(run) in ([".lock"], [])


def test_a_block_that_raises_frees_the_lock(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), storage.lock(tmp_path):
            raise KeyError


def test_an_open_pipe_is_written_to(tmp_path: Path) -> None:
    read, write = os.pipe()
    with storage.atomic_file(Path(f"/proc/self/fd/{write}")) as place, place.open("w") as file:
        file.write("through")
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "through"


def test_a_file_system_that_cannot_be_asked_for_names_or_locks(tmp_path: Path, monkeypatch) -> None:
    sync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    storage.write_atomic(tmp_path / "file", "there")
    assert (tmp_path / "file").read_text() == "there"

    def lockless(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.FileLock, "acquire", lockless)
    with pytest.raises(RunError, match=r"No locks available; .*choose a place on another"), storage.lock(tmp_path):
        pass


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path: Path, monkeypatch) -> None:
    def closed(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(RunError, match=r"format: cannot be read: Permission denied; see to its permissions"):
        storage.read_json(tmp_path / "format")


def test_a_tilde_of_nobody_is_a_name() -> None:
    assert storage.expanded("~nobody-is-called-so.jsonl") == Path("~nobody-is-called-so.jsonl")
    assert storage.expanded("~/x") == Path.home() / "x"
