"""Tests of the clients: against sockets, real data and outside oracles, never against nearcast's own packages."""
