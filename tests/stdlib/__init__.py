"""CPython's own test files, run patched and unpatched: `python -m stdlib` (in tests/)."""
