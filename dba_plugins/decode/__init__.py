"""Decode backends: attention of one new token per sequence over a cache."""
