"""Where it runs: Ray actors around rollout engines, reward workers and trainers.

Classes are plain; `ray.remote` is applied where an actor is placed. One heavy engine per file, imported in that file.
"""
