"""Study: what a search has judged, kept in Optuna's storage so that it can go on or be shared.

A storage is a journal file (a line of JSON per event; it survives ``kill -9``) or a database URL.
Several processes, on several machines, may work on one study: each takes the next trial that nobody
has.  The study's name is a digest of everything its values depend on, so a storage can hold many.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import PartialFixedSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from tokopt.ir.errors import InputError
from tokopt.ir.plan import Plan
from tokopt.passes.search.objective import MEASURES

START, FREE = "start", "free"
PLAN, WHY = "plan", "why"


@dataclass(frozen=True)
class Judged:
    """A plan and how it was judged; ``origin`` is a method's name, or ``search``.

    ``values`` are the distances by measure, empty where there is no plan: ``why`` says it then.
    """

    number: int
    origin: str
    plan: Plan | None
    values: Mapping[str, float]
    why: str = ""


class Study:
    """Trials of one search, by their number."""

    def __init__(self, name: str, storage: str | Path | None, starts: Sequence[str], seed: int):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=ExperimentalWarning)  # PartialFixedSampler
        self.seed, self.starts = seed, (FREE, *starts)
        self._read: dict[int, Judged] = {}
        try:
            self._study = optuna.create_study(
                storage=_storage(storage), study_name=name, load_if_exists=True
            )
        except Exception as error:  # Optuna's and its databases' many kinds
            raise InputError(
                f"the search's storage cannot be used: {error}",
                where=str(storage),
                expected="a journal file, or a database URL such as sqlite:///search.db",
            ) from error
        for start in starts:
            self.propose({START: start})

    def propose(self, choices: Mapping[str, Any]) -> None:
        """Queue choices, unless a trial has made the same."""
        self._study.enqueue_trial(dict(choices), skip_if_exists=True)

    def propose_again(self, start: str) -> None:
        """Queue a start once more: who took it may have been killed."""
        self._study.enqueue_trial({START: start})

    def missing(self) -> list[str]:
        """Return the starts that nobody has judged yet."""
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self._study.get_trials(deepcopy=False, states=done)
        judged = {trial.params.get(START) for trial in trials}
        return [start for start in self.starts if start not in (FREE, *judged)]

    def propose_expected(self) -> None:
        """Queue a free trial whose choices Optuna's sampler makes."""
        self._study.enqueue_trial({START: FREE})

    @property
    def waiting(self) -> int:
        """How many trials are queued."""
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def ask(self) -> optuna.Trial:
        """Return the next trial: queued, or drawn by what was judged (a free one)."""
        number = len(self._study.get_trials(deepcopy=False))
        drawn = TPESampler(seed=derived(self.seed, number), multivariate=False)
        self._study.sampler = PartialFixedSampler({START: FREE}, drawn)
        return self._study.ask()

    def start(self, trial: optuna.Trial) -> str:
        """Return what a trial starts from: a method's name, or ``FREE``."""
        return str(trial.suggest_categorical(START, self.starts))

    def tell(self, trial: optuna.Trial, measure: str, judged: Judged) -> None:
        """Record a judgement."""
        if judged.plan is None:
            trial.set_user_attr(WHY, judged.why)
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        trial.set_user_attr(PLAN, judged.plan.to_toml())
        for name, value in judged.values.items():
            trial.set_user_attr(name, value)
        self._study.tell(trial, judged.values[measure])

    def judged(self) -> Iterator[Judged]:
        """Yield what was judged, by number."""
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        for trial in self._study.get_trials(deepcopy=False, states=done):
            if trial.number not in self._read:  # what was judged does not change
                self._read[trial.number] = _judged(trial)
            yield self._read[trial.number]


def derived(*parts: object) -> int:
    """Return a number below 2^31 that depends on all parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _judged(trial: FrozenTrial) -> Judged:
    origin = trial.params.get(START, FREE)
    text = trial.user_attrs.get(PLAN)
    plan = None if text is None else Plan.from_toml(text, f"trial {trial.number}")
    values: dict[str, float] = {
        name: trial.user_attrs[name] for name in MEASURES if name in trial.user_attrs
    }
    shown = "search" if origin == FREE else str(origin)
    return Judged(trial.number, shown, plan, values, trial.user_attrs.get(WHY, ""))


def _storage(where: str | Path | None) -> BaseStorage:
    if where is None:
        return InMemoryStorage()
    if "://" in str(where):
        return RDBStorage(str(where))
    return JournalStorage(JournalFileBackend(str(where)))
