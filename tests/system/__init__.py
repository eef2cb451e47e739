"""Whole-system tests: real nearcast processes, driven and observed from outside only."""
