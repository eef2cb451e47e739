"""Replay: a recorded log once more through the engine, on a clock made of the records, and nothing is sent.

`recording` is the file, `live` reads the log and store of an installation without changing either, `player` runs the
engine over a recording, and `report` says in which decisions two runs differ. A run has a private store that no
dispatcher reads: what it decides can reach nobody.
"""
