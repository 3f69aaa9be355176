"""Fused implementations of operations, one folder a technology; only adapters import them."""
