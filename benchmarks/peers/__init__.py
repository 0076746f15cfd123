"""One small program per peer: echo servers (`echo_*`) and micro-benchmarks (`micro_*`).

Each does its work as the peer's own documentation shows it, with nothing shared between them but the two
conventions below, so that every program can be read and run on its own.

An echo server is started with HOST PORT BUFFER, BUFFER being the most bytes it receives at once; it sets
TCP_NODELAY if its library does not. A micro-benchmark program is started with NAME COUNT and prints one
number (see `benchmarks.sample`).
"""
