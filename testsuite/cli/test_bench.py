"""``tokopt bench``: what it says, and what it refuses.  6 s."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokopt.cli.main import main

Capture = pytest.CaptureFixture[str]


def test_it_times_the_artifact_beside_the_original_and_the_floor(
    archive: Path, built: Path, tmp_path: Path, capfd: Capture
) -> None:
    file = tmp_path / "bench.json"
    line = ["bench", str(built), "--against", str(archive), "--batch", "2,3", "--rounds", "4"]
    assert main([*line, "--output", str(file), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said == json.loads(file.read_text()) and said["whole"] and said["target"] == "eager"
    assert said["stages"] == ["stride at vision:0 keeps 18"]
    assert [one["batch"] for one in said["timed"]] == [2, 3]
    for one in said["timed"]:
        assert list(one["seconds"]) == ["original", "compiled", "floor"]
        assert list(one["stage_seconds"]) == ["stride at vision:0"]
        for spread in (*one["seconds"].values(), *one["stage_seconds"].values()):
            assert 0 < spread["least"] <= spread["low"] <= spread["median"] <= spread["high"]
            assert spread["count"] == 4
        least = [one["seconds"][name]["least"] for name in ("compiled", "floor")]
        assert one["compiled/floor"]["least"] <= max(least) / min(least) * 50
    assert set(said["memory_bytes"]) == {"original", "compiled", "floor"}
    for needed in said["memory_bytes"].values():
        assert 2**24 < needed["before"] <= needed["peak"]


def test_a_person_gets_tables(archive: Path, built: Path, capfd: Capture) -> None:
    line = ["bench", str(built), "--against", str(archive), "--rounds", "2", "--no-memory"]
    assert main(line) == 0
    said = capfd.readouterr()
    for word in ("original", "compiled", "floor", "stride at vision:0", "eager, 1 thread;"):
        assert word in said.out
    assert "peak" not in said.out and "2/2" in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rounds", "0"), "0 rounds"),
        (("--batch", "0"), "a batch of 0"),
        (("--batch", "two"), "no list of batch sizes"),
        (("--output", "no/such/folder/x.json"), "no such folder"),
        (("--budget", "0.1"), "no program for the budget 0.1"),
    ],
)
def test_what_cannot_be_timed_is_said_before_anything_is(
    archive: Path, built: Path, options: tuple[str, ...], message: str, capfd: Capture
) -> None:
    assert main(["bench", str(built), "--against", str(archive), *options]) == 2
    assert message in capfd.readouterr().err


def test_another_archive_than_it_was_made_from_is_refused(
    built: Path, tmp_path: Path, capfd: Capture
) -> None:
    other = tmp_path / "other.pt2"
    other.write_bytes(b"no archive")
    assert main(["bench", str(built), "--against", str(other)]) == 2
    assert "other.pt2" in capfd.readouterr().err
