"""Proofs: promises that take too long to show in every test run; `make prove` lists them and runs one.

A proof is a module here with a docstring and a function `prove() -> dict`, which returns the figures that it has seen
and raises when the promise does not hold.
"""
