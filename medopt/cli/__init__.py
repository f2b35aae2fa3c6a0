"""The commands that are more than a call: each reads options, calls one room, and prints what it answers."""
