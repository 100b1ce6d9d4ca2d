"""What can be done with an arm and a seed, by name. A new protocol is one file, named here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from kssm_mlx.errors import ConfigError, nearest
from kssm_mlx.experiments.job import Job, Measured
from kssm_mlx.training.steering_sections import Section

NAMES = ("train", "intervene", "clamp", "observe", "text", "unfreeze")


@dataclass(frozen=True)
class Protocol:
    """metrics: the names of what it measures, with `*` for what depends on data and options.

    run(job, run_folder, options, console) -> what was measured.
    """

    name: str
    metrics: tuple[str, ...]
    options: type[Section]
    run: Callable[[Job, Path, Any, Console], Measured]


def find_protocol(name: str) -> Protocol:
    """Raises: ConfigError for a name that there is not."""
    if name not in NAMES:
        raise ConfigError(f"no protocol {name!r}; protocols are {', '.join(NAMES)}{nearest(name, NAMES)}")
    return import_module(f"kssm_mlx.experiments.protocols.{name}").PROTOCOL


def parse_options(protocol: Protocol, options: dict[str, Any]) -> Section:
    """The options of a protocol, checked. Raises: ConfigError naming the key."""
    try:
        return protocol.options.model_validate(options)
    except ValidationError as e:
        error = e.errors()[0]
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = protocol.options.model_fields
            raise ConfigError(
                f"options.{key}: protocol {protocol.name!r} has no such option{nearest(key, known)}; "
                f"it has {', '.join(known) or 'none'}"
            ) from None
        raise ConfigError(f"options.{key}: {error['msg']}, got {error['input']!r}") from None
