"""Fetches foreign images into the store layer by layer; trusts nothing before a layer's digest is verified."""
