"""A campaign of faults of many kinds against the real programs, and what must hold after each.

python -m tests.faults --count 2000 --seed 1
"""
