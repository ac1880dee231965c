"""Held-out loss, fidelity of a KV-cache policy, speed."""
