"""`python -m kssm_mlx` is `kssm`."""

from kssm_mlx.cli import app

app(prog_name="kssm")
