"""Programs and libraries that have a place for a concurrency of one's own: what fibers puts there, a module for each.

Rule 1: a module here imports the library that it is for; nothing else in fibers does, and `import fibers` imports none.
Rule 2: it is glue: what could be of use without the library stands elsewhere.
"""
