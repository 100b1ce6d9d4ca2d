"""The files beside the weights that say how a model is talked to: its tokenizer's, and where its texts end.

The one place that knows their names: the hub is asked for them, a conversion carries them unchanged, and
generation stops at every token that they call an end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kssm_mlx.errors import ConfigError
from kssm_mlx.parsing import read_json_object

CONFIG, GENERATION = "config.json", "generation_config.json"
OF_THE_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "rwkv_vocab_v20230424.txt"),
)
NAMES = (CONFIG, GENERATION, *OF_THE_TOKENIZER)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_chat_template(folder: Path) -> tuple[str, dict[str, str]] | None:
    """The Jinja text that turns a conversation into a prompt, and the special tokens that it may name.

    Its own file goes before tokenizer_config.json; of several templates the one called default is taken.
    Raises: ConfigError for a file that cannot be read.
    """
    config = _read_table(folder / "tokenizer_config.json")
    source = _read_table(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict)]
        source = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if (own := folder / "chat_template.jinja").is_file():
        source = _read_bytes(own).decode("utf-8", "replace")
    if not isinstance(source, str):
        return None
    tokens = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "unk_token")}
    return source, tokens


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def ends_of_text(folder: Path, id_of: Callable[[str], int | None]) -> tuple[int, ...]:
    """Every token that config.json, generation_config.json, tokenizer_config.json or special_tokens_map.json
    name as the end of a text, in this order; () where they name none.

    id_of: the id of a token by its text; None where there is none.
    Raises: ConfigError for a file that cannot be read or an end that is no token.
    """
    return tuple(dict.fromkeys(id for ids in ends_by_file(folder, id_of).values() for id in ids))


def ends_by_file(folder: Path, id_of: Callable[[str], int | None]) -> dict[str, list[int]]:
    """The same by file, of those that name an end. Raises: ConfigError as `ends_of_text`."""
    ends: dict[str, list[int]] = {}
    for name in (CONFIG, GENERATION):
        ends[name] = _ids(_read_table(folder / name).get("eos_token_id"), folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        text = _token_text(_read_table(folder / name).get("eos_token"))
        id = id_of(text) if text else None
        ends[name] = [] if id is None else [id]
    return {name: ids for name, ids in ends.items() if ids}


def token_ids(folder: Path) -> dict[str, Any]:
    """What config.json says of special tokens, as it says it."""
    table = _read_table(folder / CONFIG)
    return {key: table[key] for key in TOKEN_IDS if table.get(key) is not None}


def collect_side_files(folder: Path, tokenizer: bool) -> dict[str, bytes]:
    """Name -> content of the files that a conversion leaves as they are. tokenizer: also the tokenizer's.

    Raises: ConfigError for one that cannot be read.
    """
    names = (GENERATION, *(OF_THE_TOKENIZER if tokenizer else ()))
    return {name: _read_bytes(folder / name) for name in names if (folder / name).is_file()}


def has_huggingface_tokenizer(folder: Path) -> bool:
    """Whether the folder's tokenizer.json is one of the tokenizers library, which other tools read."""
    return "model" in _read_table(folder / "tokenizer.json")


def _ids(value: Any, path: Path) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(id) is not int or not 0 <= id < 1 << 31 for id in ids):
        raise ConfigError(f"{path} has eos_token_id = {str(value)[:60]}; expected an id or a list of ids")
    return ids


def _read_table(path: Path) -> dict[str, Any]:
    """{} where there is no such file."""
    return read_json_object(path, ConfigError) if path.is_file() else {}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
