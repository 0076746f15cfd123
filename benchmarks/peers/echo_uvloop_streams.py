"""Echo server on uvloop, async/await style: the asyncio streams program on uvloop's loop."""

import sys

import uvloop

from benchmarks.peers.echo_asyncio_streams import main

if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
