"""Tests of `models`: features, the scorer, and training on real history."""
