"""Tests of the WebSocket gateway, against a real Valkey, real sockets and the real Centrifuge SDK."""
