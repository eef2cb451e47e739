"""Fences: who is where. Geometry in, fences that contain a fix and enter / dwell / exit transitions out.

Pure: values in, values out; no I/O, no clock, no logging. `index.FenceIndex` says which fences contain a position,
`tracker.track` turns that into transitions of one customer. Only `cover` knows H3.
"""
