"""One run by several processes: what they sum, share and agree on. MLX starts and connects them."""
