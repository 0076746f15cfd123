"""Micro-benchmarks of asyncio on uvloop's loop."""

from __future__ import annotations

import uvloop

from benchmarks.peers import micro_asyncio

if __name__ == "__main__":
    micro_asyncio.main(uvloop.run, micro_asyncio.roundtrip_streams)
