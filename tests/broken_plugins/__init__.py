"""Plugins that are wrong on purpose, each in one way, for the tests of the contract suites."""
