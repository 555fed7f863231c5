"""The chaos suite: real workers, a real Redis, real ffmpeg and a GPU in software, while everything breaks that can.

`python -m tests.chaos --jobs N --seed S` runs it (as root; `make chaos`). What is asked and what breaks comes from the
seed (schedule.py), `Arena` runs it, `Watcher` looks at every name that appears, and verdict.py counts at the end.
"""
