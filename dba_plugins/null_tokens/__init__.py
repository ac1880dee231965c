"""Null tokens: one extra key and value that every query sees."""
