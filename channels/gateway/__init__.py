"""The WebSocket gateway: phones and tablets connect here with an existing Centrifuge SDK.

`server.Gateway` accepts sockets, `protocol` reads and writes the frames without doing I/O, `streams` keeps the channels
in the state store, `hub` brings a channel's publications to this node's sockets in order and without holes.
"""
