from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tokopt
from tokopt.ir.errors import InputError, InternalError, UnsupportedError
from tokopt.ir.program import Program
from tokopt.targets import artifact as module
from tokopt.targets.artifact import LOG, building, seal
from tokopt.targets.manifest import Manifest, Run, read_manifest
from tokopt.targets.program_file import save_program
from tokopt.targets.signature import Signature

CHILD = {**os.environ, "PYTHONPATH": str(Path(tokopt.__file__).parents[1])}
EMPTY = Manifest("eager", Signature((), (), {}))


def write(folder: Path, text: str = "one") -> None:
    with building(folder) as draft:
        (draft / "model.txt").write_text(text)
        (draft / LOG).write_text("log")
        seal(draft, EMPTY)


def everything(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_finished_block_leaves_the_artifact_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert sorted(everything(tmp_path)) == ["out/log.txt", "out/manifest.json", "out/model.txt"]
    manifest = read_manifest(tmp_path / "out")
    assert set(manifest.files) == {"model.txt"} and set(manifest.run.files) == {"log.txt"}


def test_an_artifact_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    write(tmp_path / "out", "two")
    assert everything(tmp_path)["out/model.txt"] == b"two"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt, UnsupportedError("no"), RuntimeError("?")])
@pytest.mark.parametrize("before", [True, False])
def test_failure_in_the_middle_leaves_what_was_there(
    tmp_path: Path, failure: BaseException, before: bool
) -> None:
    if before:
        write(tmp_path / "out")
    there = everything(tmp_path)
    with pytest.raises(BaseException) as caught, building(tmp_path / "out") as draft:
        (draft / "model.txt").write_text("half")
        raise failure
    assert caught.type is (failure if isinstance(failure, type) else type(failure))
    assert everything(tmp_path) == there and len(list(tmp_path.iterdir())) == before


def test_failure_while_publishing_brings_the_old_artifact_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out")
    there, rename = everything(tmp_path), Path.rename

    def fail(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", "two")
    assert everything(tmp_path) == there


DIE = """
import os, signal, sys
from pathlib import Path
from tokopt.targets.drafts import drafting
with drafting(Path(sys.argv[1])) as draft:
    (draft / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_and_a_living_one_s_draft_is_not(
    tmp_path: Path,
) -> None:
    killed = subprocess.run([sys.executable, "-c", DIE, str(tmp_path / "out")], env=CHILD)
    (left,) = tmp_path.iterdir()
    assert killed.returncode == -signal.SIGKILL and (left / "half").is_file()
    with building(tmp_path / "out") as draft:
        assert not left.exists()
        write(tmp_path / "out", "the second")
        assert draft.is_dir()
        (draft / "model.txt").write_text("the first")
        seal(draft, EMPTY)
    assert everything(tmp_path)["out/model.txt"] == b"the first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_an_input_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "sha256_of", fail)
    with pytest.raises(InputError, match="disk is full"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_behind_another_error_is_named_too(tmp_path: Path) -> None:
    def compile_badly() -> None:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as error:
            raise UnsupportedError("does not compile") from error

    with pytest.raises(InputError, match="disk is full"), building(tmp_path / "out"):
        compile_badly()


def test_a_full_disk_under_the_saved_program_does_not_end_the_process(
    tmp_path: Path, small: object
) -> None:
    """`/dev/full` refuses every write; torch's own writer would call std::terminate."""
    with pytest.raises(InputError, match="disk is full"), building(tmp_path / "out") as draft:
        (draft / f".program.pt2.{os.getpid()}.part").symlink_to("/dev/full")
        save_program(Program.of(small), draft)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_other_folders_and_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("long work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a tokopt artifact"):
        write(tmp_path / "thesis")
    with pytest.raises(InputError, match="there is a file"):
        write(tmp_path / "file")
    with pytest.raises(InputError, match="does not exist"):
        write(tmp_path / "no" / "where")
    assert (tmp_path / "thesis" / "chapter1").read_text() == "long work"


def test_an_artifact_with_a_users_file_in_it_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"did not write: notes\.txt"):
        write(tmp_path / "out")


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "model.txt").is_file()


def test_a_link_to_an_artifact_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    write(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out" / "model.txt").read_text() == "two"


def test_nothing_is_published_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="without a manifest"), building(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_builds_differ_only_under_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with building(tmp_path / name) as draft:
            (draft / LOG).write_text(name)
            run = Run(created=name, seconds={"lower": len(name)})
            seal(draft, Manifest("eager", Signature((), (), {}), run=run))
    one, two = (json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("a", "b"))
    assert one.pop("run") != two.pop("run")
    assert one == two
