"""Prefill: tokens enter a cache in chunks and attend to it."""
