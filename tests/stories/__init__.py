"""The scenarios that nearcast is made for, each told once and played through its public interfaces only."""
