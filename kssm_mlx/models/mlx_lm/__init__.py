"""Models whose code is mlx-lm's, behind the interface of ours: `family = "mlx_lm"`.

config.py   what config.json says, and which class of mlx-lm reads it
walk.py     hands on the blocks of such a model, its last norm and its head
rows.py     a cache of keys and values that knows rows, lengths and documents
model.py    the language model
"""
