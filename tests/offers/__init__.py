"""Tests of `offers`: stories in plain terms, and properties where the inputs are wide."""
