"""Reserved for the contract suites that plugin authors will import; empty so far."""
