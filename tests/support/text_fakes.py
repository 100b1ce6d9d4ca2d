"""A recipe's [data] section, as far as `prepare` reads it."""

from dataclasses import dataclass


@dataclass
class DataSection:
    source: str
    tokenizer: str = "bytes"
    split: str = "auto"
    validation: float = 0.2
    seed: int = 0
    special_tokens: bool = False
