"""Measurements: the demo, the soak, and the servers to compare with. Nothing of the product depends on them."""
