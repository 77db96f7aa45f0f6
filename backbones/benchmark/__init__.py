"""Measures speed in pairs: two things run in turn on one machine, and their ratio is reported."""
