"""Ratios measured side by side; see RESULTS.md."""

import os

from launch.ray_runtime import ENVIRONMENT

for _name, _value in ENVIRONMENT.items():  # before torch is loaded: what is driven bare must wait as actors of a run do
    os.environ.setdefault(_name, _value)
