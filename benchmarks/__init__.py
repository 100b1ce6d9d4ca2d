"""What `make bench` runs: two or more ways to do the same thing, interleaved in one process, as ratios."""

import kssm_mlx  # noqa: F401  before mlx is imported: it chooses the BLAS
