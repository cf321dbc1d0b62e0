"""Rollout engines, one per file."""
