"""Adapters: small networks beside or behind a block's parts."""
