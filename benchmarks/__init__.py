"""Us and our peers side by side: the same machine, data, weights and threads, alternating in one run.

Each module is a row of the table in the README: `python -m benchmarks.encode_images`.
"""
