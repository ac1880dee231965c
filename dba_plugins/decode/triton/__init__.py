"""Fused decode and quantizing append in Triton, for NVIDIA GPUs."""
