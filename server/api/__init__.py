"""The HTTP API. The only package that imports FastAPI; `links`, `keyring` and `services` don't need it."""
