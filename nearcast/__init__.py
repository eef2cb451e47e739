"""The vocabulary every nearcast package shares: events, customers, moments, decisions, messages.

Nothing here does I/O or reads a clock. Every other package may import this one; it imports none of them.
"""

__version__ = "0.1.0"
