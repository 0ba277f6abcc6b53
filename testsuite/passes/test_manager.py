import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from testsuite.passes.samples import (
    KNOWN,
    DropRelu,
    Nothing,
    Settings,
    Tiny,
    edited,
    second_relu_bypassed,
    tiny,
)
from torch import fx
from torch.export import export

from tokopt.ir.errors import BudgetError, InputError, InternalError, UnsupportedError
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.text import print_program
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.crash import PassFault
from tokopt.passes.instrument import Verify
from tokopt.passes.manager import PassManager
from tokopt.passes.normalize import Normalize
from tokopt.passes.pipeline import parse_pipeline
from tokopt.passes.spec import Spec

Run = Callable[[Program], PassResult]


def faulty(run: Run, requires: tuple[Spec, ...] = (), ensures: tuple[Spec, ...] = ()) -> Pass:
    """Return a pass called ``faulty`` that runs ``run``."""

    @dataclass(frozen=True)
    class Faulty(Pass):
        def run(self, program: Program) -> PassResult:
            return run(program)

    Faulty.requires, Faulty.ensures = requires, ensures
    return Faulty()


def fault_of(*passes: Pass, program: Program | None = None) -> PassFault:
    with pytest.raises(PassFault) as caught:
        PassManager(passes).run(program or tiny())
    assert caught.value.exit_code == 5
    return caught.value


def without_value(graph: fx.Graph) -> None:
    del next(n for n in graph.nodes if "relu" in str(n.target)).meta["val"]


def with_dead_call(graph: fx.Graph) -> None:
    node = next(n for n in graph.nodes if "relu" in str(n.target))
    with graph.inserting_after(node):
        dead = graph.call_function(torch.ops.aten.relu.default, (node,))
    dead.meta["val"] = node.meta["val"]


def relus(program: Program) -> int:
    return sum("relu" in str(node.target) for node in program.main.graph.nodes)


def test_passes_run_in_order_and_the_input_stays_as_it_was() -> None:
    raw = Program.of(export(Tiny().eval(), (torch.ones(3, 4),)))
    before = print_program(raw)
    after = PassManager([Normalize(), DropRelu(), DropRelu()]).run(raw)
    assert relus(after) == 1
    assert print_program(raw) == before
    rows = torch.randn(3, 4)
    assert torch.equal(after.main.module()(rows), raw.main.module()(rows))


def test_a_pass_that_changes_nothing_hands_the_program_through() -> None:
    assert PassManager([Nothing(), Normalize()]).run(tiny()) is tiny()
    assert PassManager([]).run(tiny()) is tiny()


def test_hiding_a_change_is_a_fault() -> None:
    fault = fault_of(
        DropRelu(), faulty(lambda p: PassResult(edited(tiny(), lambda g: None), modified=False))
    )
    assert fault.what == "pass faulty says that it changed nothing, and it did"
    assert "relu" in (fault.where or "")


def test_claiming_a_change_is_a_fault() -> None:
    fault = fault_of(faulty(lambda p: PassResult(p, modified=True)))
    assert fault.what == "pass faulty says that it changed the program, and it did not"


def test_changing_the_program_given_is_a_fault() -> None:
    def run(program: Program) -> PassResult:
        second_relu_bypassed(program.main.graph)
        return PassResult(Program(program.graphs), modified=True)

    fault = fault_of(faulty(run), program=edited(tiny(), lambda graph: None))
    assert fault.what == "pass faulty changed the program it was given"


def test_changing_the_program_given_and_returning_it_is_a_fault() -> None:
    def run(program: Program) -> PassResult:
        second_relu_bypassed(program.main.graph)
        return PassResult(program, modified=True)

    fault = fault_of(faulty(run), program=edited(tiny(), lambda graph: None))
    assert fault.what == "pass faulty changed the program it was given"


def test_writing_to_a_weight_is_a_fault() -> None:
    def run(program: Program) -> PassResult:
        program.main.state_dict["head.weight"].data.add_(0.0)
        program.main.state_dict["head.weight"].detach().add_(1.0)
        return PassResult(program, modified=False)

    own = edited(tiny(), lambda graph: None)
    own.main._state_dict = {k: v.detach().clone() for k, v in tiny().main.state_dict.items()}
    fault = fault_of(faulty(run), program=own)
    assert fault.what == "pass faulty changed the program it was given"
    assert "values of model: head.weight" in (fault.where or "")


def test_a_new_weight_of_the_same_value_is_no_change() -> None:
    def run(program: Program) -> PassResult:
        new = edited(program, lambda graph: None)
        new.main._state_dict = {k: v.detach().clone() for k, v in program.main.state_dict.items()}
        return PassResult(new, modified=False)

    PassManager([faulty(run)]).run(tiny())


def test_a_new_weight_of_another_value_is_a_change() -> None:
    def run(program: Program) -> PassResult:
        new = edited(program, lambda graph: None)
        new.main._state_dict = {k: v.detach() + 1 for k, v in program.main.state_dict.items()}
        return PassResult(new, modified=False)

    assert "values of model: head.weight" in (fault_of(faulty(run)).where or "")


def test_what_a_pass_ensures_is_checked_on_the_result() -> None:
    one_relu = Spec("pruned", lambda p: ("two relus",) if relus(p) > 1 else ())
    good = faulty(lambda p: DropRelu().run(p), ensures=(one_relu,))
    assert relus(PassManager([good]).run(tiny())) == 1
    no_relu = Spec("pruned", lambda p: ("a relu is left",) if relus(p) == 1 else ())
    fault = fault_of(faulty(lambda p: DropRelu().run(p), ensures=(no_relu,)))
    assert fault.what == "pass faulty returned a program that is not pruned"
    assert "a relu is left" in (fault.where or "")


def test_what_a_pass_requires_is_the_pipelines_to_provide() -> None:
    raw = edited(tiny(), with_dead_call)
    with pytest.raises(InputError) as caught:
        PassManager([DropRelu()]).run(raw)
    assert caught.value.what == "pass drop-relu needs a normalized program"
    assert caught.value.hint == "run the pass normalize first"
    assert "nobody reads its result" in (caught.value.where or "")


def test_a_broken_graph_names_the_pass_and_the_node() -> None:
    fault = fault_of(
        DropRelu(), faulty(lambda p: PassResult(edited(p, without_value), modified=True))
    )
    assert fault.what == "pass faulty left a broken graph"
    assert (fault.where or "").startswith("pass faulty, after drop-relu: graph model: node relu")


def test_normal_form_is_kept_once_there() -> None:
    fault = fault_of(faulty(lambda p: PassResult(edited(p, with_dead_call), modified=True)))
    assert fault.what == "pass faulty returned a program that is not normalized"


def test_a_program_that_was_not_in_normal_form_need_not_be_afterwards() -> None:
    raw = edited(tiny(), with_dead_call)
    again = faulty(lambda p: PassResult(edited(p, with_dead_call), modified=True))
    PassManager([again], instruments=[Verify()]).run(raw)


def test_a_crash_names_the_pass_those_before_it_and_the_cause() -> None:
    def run(program: Program) -> PassResult:
        raise ZeroDivisionError("of tokens")

    fault = fault_of(Nothing(), DropRelu(), faulty(run), Nothing())
    assert fault.what == "pass faulty crashed: ZeroDivisionError: of tokens"
    assert fault.where == "pass faulty, after nothing, drop-relu"
    assert isinstance(fault.__cause__, ZeroDivisionError)
    assert fault.pipeline == "nothing,drop-relu,faulty"


def test_a_result_that_is_no_result_is_a_fault() -> None:
    fault = fault_of(faulty(lambda p: p))  # type: ignore[arg-type,return-value]
    assert fault.what == "pass faulty returned Program"


@pytest.mark.parametrize("kind", [UnsupportedError, BudgetError, InputError])
def test_an_error_for_the_user_passes_through_and_names_the_pass(kind: type[InputError]) -> None:
    def run(program: Program) -> PassResult:
        raise kind("no such site")

    with pytest.raises(kind) as caught:
        PassManager([faulty(run)]).run(tiny())
    assert caught.value.where == "pass faulty"


def test_an_internal_error_of_a_pass_keeps_its_own_words() -> None:
    def run(program: Program) -> PassResult:
        raise InternalError("two masks", where="node x", expected="one")

    fault = fault_of(faulty(run))
    assert (fault.what, fault.expected) == ("two masks", "one")
    assert fault.where == "pass faulty, the first: node x"


def test_a_reproducer_reproduces(tmp_path: Path) -> None:
    def run(program: Program) -> PassResult:
        raise ZeroDivisionError("of tokens")

    manager = PassManager(
        [Settings("vision:end", 14), faulty(run), Nothing()], reproducers=tmp_path / "fault"
    )
    with pytest.raises(PassFault) as caught:
        manager.run(tiny())
    folder = tmp_path / "fault"
    assert sorted(p.name for p in folder.iterdir()) == [
        "input.pt2",
        "pipeline.txt",
        "traceback.txt",
    ]
    assert "ZeroDivisionError: of tokens" in (folder / "traceback.txt").read_text()
    assert f"tokopt opt {folder / 'input.pt2'} -p " in (caught.value.hint or "")
    known = {**KNOWN, "faulty": type(faulty(run))}
    passes = parse_pipeline((folder / "pipeline.txt").read_text(), known)
    fault = fault_of(*passes, program=load(folder / "input.pt2"))
    assert fault.what == caught.value.what


def test_a_reproducer_that_cannot_be_written_does_not_hide_the_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def run(program: Program) -> PassResult:
        raise ZeroDivisionError("of tokens")

    with pytest.raises(PassFault, match="of tokens") as caught:
        PassManager([faulty(run)], reproducers=tmp_path / "file").run(tiny())
    assert any("no complete reproducer" in note for note in caught.value.__notes__)


def test_a_bare_copy_of_a_program_is_no_change() -> None:
    def run(program: Program) -> PassResult:
        return PassResult(program.with_main(copy.copy(program.main)), modified=False)

    PassManager([faulty(run)]).run(tiny())


def test_the_environment_chooses_the_default_instruments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = faulty(lambda p: PassResult(edited(p, without_value), modified=True))
    monkeypatch.setenv("TOKOPT_VERIFY", "0")
    monkeypatch.setenv("TOKOPT_DUMP", str(tmp_path / "dump"))
    PassManager([broken]).run(tiny())
    assert sorted(p.name for p in (tmp_path / "dump").iterdir()) == [
        "000_input.ir",
        "001_faulty.diff",
        "001_faulty.ir",
    ]
