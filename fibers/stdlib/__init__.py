"""The standard library's blocking calls, as they are in a fiber: what monkey.py puts in their place.

Rule 1: in a fiber that may park they park it; anywhere else they are the original call (semantics.md L6).
Rule 2: a class stays what it is: its methods are replaced on it, so that every object and subclass of it has them.
Rule 3: a file here is about the standard module of its name. It captures what it needs before anything is patched.
"""
