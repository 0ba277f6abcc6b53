"""Weights are pages of the file: mapped where torch's writer put them, shared, private."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import pytest
import torch
from testsuite.ir.load_archives import plain, rewritten, saved, written
from torch import nn
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import package_pt2

from tokopt.ir.errors import InputError
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.save import save


def exported(module: nn.Module) -> ExportedProgram:
    return torch.export.export(module.eval(), (torch.ones(2, 8),))


def mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether a tensor's bytes are pages of the file, as the kernel sees it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, _, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(text, 16) for text in area.split("-"))
        if start <= tensor.data_ptr() < end:
            return name == [str(path)]
    raise AssertionError("the tensor is nowhere")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks the Linux kernel")
def test_records_are_mapped_where_they_are_aligned_and_read_where_they_are_not(
    tmp_path: Path,
) -> None:
    save(Program.of(plain()), tmp_path / "model.pt2")
    moved = written(tmp_path, rewritten(saved(plain())), "moved.pt2")  # Python's zip: not aligned
    for path, expected in ((tmp_path / "model.pt2", True), (moved, False)):
        for tensor in load(path).main.state_dict.values():
            assert mapped(tensor, path) is expected


def test_writing_to_a_weight_changes_neither_the_file_nor_another_load(tmp_path: Path) -> None:
    path = written(tmp_path, saved(plain()))
    before = path.read_bytes()
    first, second = load(path).main, load(path).main
    with torch.no_grad():
        first.state_dict["layer.weight"].fill_(7.0)
    assert path.read_bytes() == before
    assert not (second.state_dict["layer.weight"] == 7.0).any()


def test_a_program_outlives_the_file_being_replaced_even_by_itself(tmp_path: Path) -> None:
    path = written(tmp_path, saved(plain()))
    program = load(path)
    weight = program.main.state_dict["layer.weight"].clone()
    save(program, path)
    path.unlink()
    assert program.main.state_dict["layer.weight"].equal(weight)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="asks the Linux kernel")
def test_loading_costs_no_memory_for_weights_until_they_are_used(tmp_path: Path) -> None:
    save(Program.of(exported(nn.Linear(8, 4_000_000))), tmp_path / "model.pt2")
    weight = load(tmp_path / "model.pt2").main.state_dict["weight"]
    loaded = resident(tmp_path / "model.pt2")
    weight.sum()
    used = resident(tmp_path / "model.pt2")
    assert loaded < 0.1 * weight.numel() * 4 < 0.9 * weight.numel() * 4 < used


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory, whatever else comes and goes."""
    areas = re.split(r"^(?=\w+-\w+ )", Path("/proc/self/smaps").read_text(), flags=re.M)
    held = [re.search(r"^Rss: +(\d+) kB", area, re.M) for area in areas if str(path) in area]
    assert held and all(held)
    return sum(1024 * int(found[1]) for found in held if found)


def test_programs_that_torch_wrote_apart_share_equal_parameters_of_any_name(
    tmp_path: Path,
) -> None:
    inner = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
    outer = nn.Sequential(inner, nn.Linear(8, 3))
    path = tmp_path / "two.pt2"
    package_pt2(path, exported_programs={"one": exported(inner), "two": exported(outer)})
    one, two = (graph.state_dict for graph in load(path).graphs.values())
    for name, tensor in one.items():
        assert tensor.data_ptr() == two[f"0.{name}"].data_ptr(), name
    # the two norms are equal, and yet not one parameter
    assert one["0.weight"].data_ptr() != one["2.weight"].data_ptr()
    save(load(path), tmp_path / "once.pt2")
    again = [graph.state_dict for graph in load(tmp_path / "once.pt2").graphs.values()]
    assert again[0]["1.weight"].data_ptr() == again[1]["0.1.weight"].data_ptr()


def test_a_damaged_weight_is_noticed_unless_one_only_looks(tmp_path: Path) -> None:
    save(Program.of(exported(nn.Linear(8, 8))), tmp_path / "model.pt2")
    content = bytearray((tmp_path / "model.pt2").read_bytes())
    weight = load(tmp_path / "model.pt2").main.state_dict["weight"].detach()
    content[content.index(weight.numpy().tobytes())] ^= 1
    path = written(tmp_path, bytes(content), "damaged.pt2")
    with pytest.raises(InputError, match="record 'data/weights/weight_0' is damaged"):
        load(path)
    looked = load(path, check=False)
    assert looked.sha256 == "" and not looked.main.state_dict["weight"].equal(weight)


def test_a_file_that_cannot_be_mapped_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(19, "No such device")

    path = written(tmp_path, saved(plain()))
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(InputError, match="cannot be mapped into memory"):
        load(path)
