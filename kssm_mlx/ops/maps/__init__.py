"""Recurrences whose steps are maps that compose: how a step moves the state, and the scan over them."""
