"""One run for one piece of work in every order of two and three drivers' requests, and wherever a driver dies.

A driver's program is run again from its beginning for each request, with the answers that it has had so far. So a state
is the store and each driver's answers, and every one that can be come to is looked at, once. All drivers have found no
run that is held before: the order in which they looked for one changes nothing.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.tracking import claims


@dataclass(frozen=True, order=True)
class StoredRun:
    """What MLflow keeps of a run, as far as a claim goes."""

    claim: str = ""
    deleted: bool = False


Store = tuple[tuple[str, StoredRun], ...]
"""Runs by id, sorted."""

Request = tuple[str, ...]


class NextRequestError(BaseException):
    """A driver came to a request that has not been answered yet; no code under test catches it."""

    def __init__(self, request: Request) -> None:
        self.request = request


@dataclass
class ReplayingClient:
    """Answers a driver's requests from its past, and stops it at the next one."""

    answers: tuple[Any, ...]
    asked: int = 0

    def _ask(self, *request: str) -> Any:
        if self.asked == len(self.answers):
            raise NextRequestError(request)
        answer = self.answers[self.asked]
        self.asked += 1
        if isinstance(answer, MlflowException):
            raise answer
        return answer

    def create_run(self) -> str:
        return str(self._ask("create"))

    def search_runs(self, experiments: list[str], condition: str) -> list[Any]:
        assert experiments == ["1"] and "'work'" in condition
        return [as_run(run_id, run) for run_id, run in self._ask("search")]

    def get_run(self, run_id: str) -> Any:
        return as_run(run_id, self._ask("get", run_id))

    def log_param(self, run_id: str, name: str, value: str) -> None:
        assert name == claims.CLAIM_PARAMETER
        self._ask("claim", run_id, value)

    def delete_run(self, run_id: str) -> None:
        self._ask("delete", run_id)


def as_run(run_id: str, run: StoredRun) -> Any:
    params = {claims.CLAIM_PARAMETER: run.claim} if run.claim else {}
    info = SimpleNamespace(run_id=run_id, start_time=0, lifecycle_stage="deleted" if run.deleted else "active")
    return SimpleNamespace(info=info, data=SimpleNamespace(params=params, tags={}))


REFUSED = MlflowException("refused")


def answered(store: Store, driver: str, request: Request) -> tuple[Store, Any]:
    """MLflow's answer: a parameter is written once, and nothing to a deleted run."""
    runs = dict(store)
    kind, *arguments = request
    if kind == "create":
        run_id = f"{driver}{sum(each.startswith(driver) for each in runs)}"
        return tuple(sorted((*store, (run_id, StoredRun())))), run_id
    if kind == "search":
        return store, tuple((run_id, run) for run_id, run in store if not run.deleted)
    run = runs[arguments[0]]
    if kind == "get":
        return store, run
    if run.deleted or (kind == "claim" and run.claim not in ("", arguments[1])):
        return store, REFUSED
    runs[arguments[0]] = replace(run, deleted=True) if kind == "delete" else replace(run, claim=arguments[1])
    return tuple(runs.items()), None


@functools.cache
def drive(answers: tuple[Any, ...]) -> Request | str:
    """A driver after these answers: the request that it comes to, or the run that it works on."""
    replaying = ReplayingClient(answers)
    client = cast(MlflowClient, replaying)
    try:
        return claims.hold_run(client, "1", "work", replaying.create_run)[0]
    except NextRequestError as waiting:
        return waiting.request
    except RuntimeError:
        return "gave up"


@dataclass
class Search:
    """Every state that drivers can come to, from an empty store."""

    drivers: str
    check: Callable[[Store, tuple[str, ...]], None]
    """Called with the store and the runs that the drivers who are done work on."""
    seen: set[Any] = field(default_factory=set)

    def explore(self) -> int:
        """Go through all of them; the number of states."""
        waiting: list[tuple[Store, tuple[tuple[Any, ...], ...]]] = [((), ((),) * len(self.drivers))]
        while waiting:
            store, pasts = state = waiting.pop()
            if state in self.seen:
                continue
            self.seen.add(state)
            where = [drive(past) for past in pasts]
            self.check(store, tuple(each for each in where if isinstance(each, str)))
            for number, (driver, request) in enumerate(zip(self.drivers, where, strict=True)):
                if not isinstance(request, str):
                    after, answer = answered(store, driver, request)
                    past = (*pasts[number], answer)
                    waiting.append((after, (*pasts[:number], past, *pasts[number + 1 :])))
        return len(self.seen)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "POLITE_SECONDS", 0.0)  # the search has every order anyway
    monkeypatch.setattr(claims, "TRIES", 2)
    drive.cache_clear()  # TRIES may be another


def one_run(store: Store, worked_on: tuple[str, ...]) -> None:
    held = [run_id for run_id, run in store if run.claim == claims.HELD]
    assert len(held) <= 1
    assert set(worked_on) <= {*held, "gave up"}
    assert all(not run.deleted or run.claim == claims.WITHDRAWN for _, run in store)


def test_two_drivers_work_on_one_run_in_every_order_of_their_requests() -> None:
    ends: list[int] = []

    def check(store: Store, worked_on: tuple[str, ...]) -> None:
        one_run(store, worked_on)
        if len(worked_on) == 2 and "gave up" not in worked_on:
            ends.append(sum(not run.deleted for _, run in store))

    assert Search("ab", check).explore() > 10_000
    assert set(ends) == {1}  # what was withdrawn is gone


def test_the_next_driver_has_a_run_wherever_others_died() -> None:
    def check(store: Store, worked_on: tuple[str, ...]) -> None:
        past: tuple[Any, ...] = ()
        while not isinstance(request := drive(past), str):
            store, answer = answered(store, "z", request)
            past = (*past, answer)
        assert request != "gave up"
        one_run(store, (*worked_on, request))

    assert Search("ab", check).explore() > 10_000


@pytest.mark.slow
def test_three_drivers_work_on_one_run_in_every_order_of_their_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TRIES", 1)
    assert Search("abc", one_run).explore() > 1_000_000
