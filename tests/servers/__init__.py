"""Real servers and clients for the tests: each class starts its program on a port of its own and stops it by pid.

A class here knows one program and nothing of Weightyard. `fixtures.py` offers them to every test.
"""
