"""Us and our peers side by side: the same machine, data, weights and threads, alternating in one run.

`python -m benchmarks.encode_images` measures; `python -m benchmarks.report` prints the figures that were kept.
"""
