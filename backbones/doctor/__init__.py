"""Checks before a training for what would spoil it: `examination` finds, `report` shows."""
