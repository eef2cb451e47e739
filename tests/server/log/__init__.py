"""Tests of the event log adapters: one contract, run over each."""
