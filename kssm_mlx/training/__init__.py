"""Training as functions over `TrainState`; only `loop.py` and `checkpoint.py` touch the world outside."""
