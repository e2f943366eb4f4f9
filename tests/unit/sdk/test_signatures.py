"""`cove.aio` has the names and arguments of `cove`: a twin that is missing or differs is named here."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

import cove
from cove import aio

CLASSES = [
    "Account",
    "Audit",
    "Client",
    "Sandbox",
    "Files",
    "Images",
    "Job",
    "Network",
    "NetworkProfiles",
    "Running",
    "Shell",
    "Snapshots",
    "Templates",
    "Terminal",
    "Watch",
    "Webhooks",
    "Connection",
    "Context",
    "Contexts",
    "Forward",
]
FUNCTIONS = ["close", "connect", "create", "get", "images", "list"]


def public(owner: type) -> dict[str, object]:
    found = {name: value for each in reversed(owner.__mro__) for name, value in vars(each).items()}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def shape(function: object) -> list[tuple[str, object, object]]:
    function = function.__func__ if isinstance(function, classmethod) else function
    assert callable(function)
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_same_members(name: str) -> None:
    ours, twin = public(getattr(cove, name)), public(getattr(aio, name))
    assert ours.keys() == twin.keys()
    for member, value in ours.items():
        assert isinstance(value, property) == isinstance(twin[member], property), member
        if not isinstance(value, property):
            assert shape(value) == shape(twin[member]), f"{name}.{member}"
            assert inspect.getdoc(twin[member]), f"{name}.{member} says nothing"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_made_from_the_same_arguments(name: str) -> None:
    assert shape(getattr(cove, name)) == shape(getattr(aio, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_same_arguments(name: str) -> None:
    assert shape(getattr(cove, name)) == shape(getattr(aio, name))


def test_all_that_is_shared_is_there() -> None:
    assert set(aio.__all__) == {*CLASSES, *FUNCTIONS, "snapshots"} <= set(cove.__all__)


def test_creating_takes_the_same_settings_everywhere() -> None:
    for module in (cove, aio):
        assert shape(module.create) == shape(module.Client.create)[1:]
        assert shape(module.list) == shape(module.Client.list)[1:]


@pytest.mark.parametrize("module", [cove, aio])
def test_no_argument_of_the_surface_hides_a_time_limit(module: ModuleType) -> None:
    for name in CLASSES:
        for member, value in public(getattr(module, name)).items():
            if isinstance(value, property | classmethod):
                continue
            for argument, _, default in shape(value):
                if "timeout" in argument:
                    assert default in {None, cove.UNSET}, f"{name}.{member}"
