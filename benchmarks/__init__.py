"""Ratios measured side by side; see RESULTS.md."""
