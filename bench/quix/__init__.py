"""The engine's peer: the same job per event as an application on Quix Streams, in a virtual environment of its own."""
