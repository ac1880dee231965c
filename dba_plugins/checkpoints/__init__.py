"""Pretrained models on the disk: what reads their configuration, tensors and tokenizer."""
