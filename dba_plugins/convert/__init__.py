"""Pretrained models: loaders of other systems' checkpoints, and their conversion to decoupled attention."""
