"""Options that would do nothing are refused, each in one line that names the one it belongs to."""

from __future__ import annotations

import pytest
from typer.main import get_command

from kssm_mlx.cli import IDLE, NEEDS, Command, app
from tests.support.cli_fakes import kssm, refused

COMMANDS = get_command(app).commands
REQUIRED = {"train": ("default",), "eval": ("m",), "generate": ("m",), "sweep": ("m", "--grid", "a.b=1")}
REQUIRED |= {"watch": ("m",), "verify-weights": ("m",)}
VALUES = {"grid": "a.b=1", "tokens": 256, "turns": 7, "trials": 2, "temperature": 0, "limit": 1}


def type_option(command, name):
    """As it is typed, with a value where it takes one."""
    option = next(each for each in COMMANDS[command].params if each.name == name)
    if not option.opts[0].startswith("-"):
        return ["m"]
    return [max(option.opts, key=len), *([] if option.is_flag else [str(VALUES.get(name, 1))])]


def pairs(table):
    return [(c, other, name) for c, rows in table.items() for other, names in rows.items() for name in names]


@pytest.mark.parametrize("command, other, name", pairs(NEEDS))
def test_an_option_without_its_partner_is_refused(command, other, name):
    said = refused(kssm(command, *REQUIRED.get(command, ()), *type_option(command, name)))
    option = type_option(command, name)[0]
    assert said == f"kssm: {option} does nothing without {other}; add that, or leave it out\n"


@pytest.mark.parametrize("command, other, name", pairs(IDLE))
def test_an_option_beside_one_that_leaves_it_idle_is_refused(command, other, name):
    partner = type_option(command, {"--json": "as_json"}.get(other, other[2:].replace("-", "_")))
    said = refused(kssm(command, *REQUIRED.get(command, ()), *partner, *type_option(command, name)))
    assert f"does nothing beside {other}; leave one of them out" in said


def test_a_partner_that_is_off_is_none():
    arguments = ("generate", "m", "--temperature", 0, "--seed", 1)
    assert "--seed does nothing without --temperature above 0" in refused(kssm(*arguments))
    assert "does nothing" not in kssm("generate", "nowhere", "--temperature", "R", "--seed", 1).stderr


def test_every_command_has_the_guard():
    plain = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}
    assert {*NEEDS, *IDLE} <= {*plain}
    assert {type(command) for command in plain.values()} == {Command}
