"""Trainers, one per file."""
