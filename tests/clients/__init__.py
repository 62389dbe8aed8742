"""Runs real programs over stock multiprocessing and over mpshm, and compares them."""
