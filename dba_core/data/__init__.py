"""Corpora, tokenizers and batches: text or token arrays in, integer tensors out."""
