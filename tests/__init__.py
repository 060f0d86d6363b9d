"""Tests, in a folder for each room of qtool; `kit` holds what they share."""
