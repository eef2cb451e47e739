"""The HTTP API, driven through HTTP."""
