"""Results of `make bench` by device, and what runs it; the cases are in kssm_mlx/bench."""
