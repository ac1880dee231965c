"""The attention: dense reference, fused training path, prefill, decode, long sequences, and the module."""
