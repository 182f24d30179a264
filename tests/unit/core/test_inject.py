"""Orders of faults: what they mean, whose turn it is, and that they are refused outside tests."""

from __future__ import annotations

import pytest

from octavo.core.errors import ConfigError
from octavo.core.inject import Aim, Injection, injections
from octavo.tools.cli import main


@pytest.fixture
def test_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_TEST_BUILD", "1")


@pytest.mark.usefixtures("test_build")
def test_orders() -> None:
    assert injections(("nan", "swap:*", "kernel::2", "exit:nth=3:1", "slow:2.5:token=7:4")) == (
        Injection(kind="nan"),
        Injection(kind="swap"),
        Injection(kind="kernel", count=2),
        Injection(kind="exit", nth=3, count=1),
        Injection(kind="slow", milliseconds=2.5, token=7, count=4),
    )


@pytest.mark.usefixtures("test_build")
@pytest.mark.parametrize(
    "order",
    ["", "nam", "nan:7", "nan:token", "nan:token=x", "nan:*:0", "nan:*:1:2", "slow", "slow:-1"],
)
def test_what_is_no_order_is_refused(order: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        injections((order,))


def test_outside_tests_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OCTAVO_TEST_BUILD", "0")
    assert injections(()) == ()
    assert main(["serve", "--inject", "nan"]) == 2
    assert "E-CFG-09: --inject nan breaks requests on purpose" in capsys.readouterr().err


def test_victims() -> None:
    second = Aim(Injection(kind="nan", nth=2))
    assert [second.is_victim(name, ()) for name in "abacb"] == [False, True, False, False, True]
    marked = Aim(Injection(kind="nan", token=7, count=2))
    assert marked.is_victim("a", (1, 7)) and not marked.is_victim("b", (1, 8))
    assert [marked.strikes() for _ in range(4)] == [True, True, False, False]
    assert Aim(Injection(kind="nan")).is_victim("anyone", ())
