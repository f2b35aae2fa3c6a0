"""The stages of a run in order: what is unchanged is skipped, what was interrupted goes on."""
