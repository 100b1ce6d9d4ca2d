"""Whether text that comes token by token is the text of all tokens, three ways."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

from kssm_mlx.data.tokenizers.streaming import StreamDecoder, Tail
from tests.support.tokenizer_kinds import random_ids, random_text


def joined(decoder: StreamDecoder, ids: Iterable[int]) -> str:
    return "".join(map(decoder.push, ids))


def of_a_text(tokenizer, rng: random.Random) -> list[int]:
    return tokenizer.encode(random_text(rng)).tolist()


def of_either(tokenizer, rng: random.Random) -> list[int]:
    """As often the ids of a text as any."""
    return of_a_text(tokenizer, rng) if rng.random() < 0.5 else random_ids(tokenizer, rng)


def streams(tokenizer, ids: list[int]) -> bool:
    """In one go."""
    decoder = StreamDecoder(tokenizer)
    return joined(decoder, ids) + decoder.finish() == tokenizer.decode(ids)


def goes_on(tokenizer, ids: list[int], cut: int) -> bool:
    """In two, the second from what the first saves in a state at `cut`."""
    first = StreamDecoder(tokenizer)
    text = joined(first, ids[:cut])
    second = StreamDecoder(tokenizer, Tail(*json.loads(json.dumps(first.tail))))
    return text + joined(second, ids[cut:]) + second.finish() == tokenizer.decode(ids)


def follows(tokenizer, prompt: list[int], ids: list[int]) -> bool:
    """Behind a prompt. True also where a character, or a run of bytes, reaches across the two."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    decoder = StreamDecoder.after(tokenizer, prompt)
    text = joined(decoder, ids) + decoder.finish()
    return before + text == whole or not whole.startswith(before)


def count_differences(tokenizer, times: int, seed: int) -> dict[str, int]:
    """Each of the three with `times` random texts, or id lists, or both: how many differ."""
    rng = random.Random(seed)
    differ = dict.fromkeys(("texts", "id lists", "cut in two", "behind a prompt"), 0)
    for _ in range(times):
        differ["texts"] += not streams(tokenizer, of_a_text(tokenizer, rng))
        differ["id lists"] += not streams(tokenizer, random_ids(tokenizer, rng))
        ids = of_either(tokenizer, rng)
        differ["cut in two"] += not goes_on(tokenizer, ids, rng.randrange(len(ids) + 1))
        ids = of_either(tokenizer, rng)
        differ["behind a prompt"] += not follows(tokenizer, of_a_text(tokenizer, rng), ids)
    return differ
