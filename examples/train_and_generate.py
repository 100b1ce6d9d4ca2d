"""Train a recipe, open the run, continue a text.

python examples/train_and_generate.py [FOLDER] [--smoke]
"""

from __future__ import annotations

import sys

import kssm_mlx
from kssm_mlx.training import recipe


def main(folder: str = "runs/example", smoke: bool = False) -> str:
    result = kssm_mlx.train(recipe.load("default", {"train.seed": 1}, smoke=smoke), folder)
    print(f"step {result.step}: {result.evaluation['nats_per_token']:.3f} nats/token")

    model, tokenizer = kssm_mlx.load(folder)
    (completion,) = kssm_mlx.generate(
        model, tokenizer, "The function ", max_tokens=40, temperature=0.8, seed=0
    )
    print(completion.text)
    return completion.text


if __name__ == "__main__":
    main(*[a for a in sys.argv[1:] if a != "--smoke"], smoke="--smoke" in sys.argv)
