"""The cheapest cache policy whose fidelity is good enough."""
