from pathlib import Path

from testsuite.passes.samples import DropRelu, Nothing, Settings, tiny

from tokopt.ir.text import print_program
from tokopt.passes.base import PassResult
from tokopt.passes.instrument import (
    Dump,
    Instrument,
    Print,
    Step,
    Time,
    Verify,
    default_instruments,
)
from tokopt.passes.manager import PassManager


def test_print_shows_every_pass_in_order() -> None:
    said: list[str] = []
    watching = [Print(said.append, before_all=True)]
    after = PassManager([Settings("a", 1), DropRelu()], watching).run(tiny())
    titles = [text.splitlines()[0] for text in said]
    assert titles == [
        "// before settings{site=a keep=1}",
        "// after settings{site=a keep=1}: unchanged",
        "// before drop-relu",
        "// after drop-relu",
    ]
    assert said[2].endswith(print_program(tiny())) and said[3].endswith(print_program(after))


def test_dump_writes_every_program_and_what_changed(tmp_path: Path) -> None:
    after = PassManager([Nothing(), DropRelu()], [Dump(tmp_path / "new" / "dump")]).run(tiny())
    folder = tmp_path / "new" / "dump"
    assert sorted(path.name for path in folder.iterdir()) == [
        "000_input.ir",
        "001_nothing.diff",
        "001_nothing.ir",
        "002_drop_relu.diff",
        "002_drop_relu.ir",
    ]
    assert (folder / "000_input.ir").read_text() == print_program(tiny())
    assert (folder / "002_drop_relu.ir").read_text() == print_program(after)
    assert (folder / "001_nothing.diff").read_text() == ""
    changes = (folder / "002_drop_relu.diff").read_text().splitlines()
    assert "-  %relu_1 : f32[3, 2] = aten.relu(%relu_0)" in changes


def test_time_records_what_each_pass_said() -> None:
    clock = Time()
    PassManager([DropRelu(), DropRelu()], [clock]).run(tiny())
    first, second = clock.records
    assert (first.name, first.modified, first.statistics) == ("drop-relu", True, {"relus": 1})
    assert (second.modified, second.remarks) == (False, ("only one relu",))
    assert first.seconds > 0 and second.seconds > 0


def test_the_first_instrument_is_nearest_to_the_pass() -> None:
    said: list[str] = []

    class Named(Instrument):
        def __init__(self, name: str) -> None:
            self.name = name

        def before(self, step: Step) -> None:
            said.append(f"{self.name} before {step.index}")

        def after(self, step: Step, result: PassResult) -> None:
            said.append(f"{self.name} after {step.index}")

    PassManager([Nothing()], [Named("near"), Named("far")]).run(tiny())
    assert said == ["far before 0", "near before 0", "near after 0", "far after 0"]


def test_verification_is_on_unless_it_is_switched_off() -> None:
    assert [type(i) for i in default_instruments({})] == [Verify]
    assert default_instruments({"TOKOPT_VERIFY": "0"}) == ()
    assert default_instruments({"TOKOPT_VERIFY": "0", "TOKOPT_DUMP": "d"}) == (Dump(Path("d")),)
