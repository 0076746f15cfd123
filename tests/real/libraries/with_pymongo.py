"""pymongo, with its monitor threads and its pool; a server in this process knows just enough of the protocol."""

from __future__ import annotations

import socketserver
import struct
import threading
from typing import Any

import bson
import pymongo
from at_once import MANY, PATIENCE, at_once, report, until

HEADER = struct.Struct("<iiiiI")
OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
seen: dict[str, int] = {}
asked = threading.Barrier(MANY)
stopping = threading.Event()


def answer(command: dict[str, Any]) -> dict[str, Any]:
    """What mongod answers, by the first word of the command."""
    verb = next(iter(command))
    seen[verb] = seen.get(verb, 0) + 1
    if verb.lower() in ("hello", "ismaster"):
        if "topologyVersion" in command:  # a monitor waits for a change
            stopping.wait(PATIENCE)
        return {
            "ok": 1.0,
            "helloOk": True,
            "isWritablePrimary": True,
            "maxBsonObjectSize": 1 << 24,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 21,
            "topologyVersion": {"processId": bson.ObjectId("0" * 24), "counter": bson.Int64(1)},
        }
    if verb == "find":
        if command["filter"].get("meet"):
            asked.wait(PATIENCE)
        return {"ok": 1.0, "cursor": {"id": 0, "ns": "db.things", "firstBatch": [command["filter"]] * 3}}
    if verb == "insert":
        return {"ok": 1.0, "n": len(command["documents"])}
    if verb in ("ping", "endSessions"):
        return {"ok": 1.0}
    return {"ok": 0.0, "errmsg": f"no such command {verb}", "code": 59}


class Mongod(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while head := self.rfile.read(HEADER.size):
            size, number, _, kind, flags = HEADER.unpack(head)
            body = self.rfile.read(size - HEADER.size)
            if kind == OP_QUERY:
                start = body.index(b"\0") + 9
                body = b"\0" + body[start:]
            end = 1 + struct.unpack_from("<i", body, 1)[0]
            command: dict[str, Any] = bson.decode(body[1:end])
            while end < len(body) - (4 if flags & 1 else 0):  # a sequence of documents: kind, size, name, documents
                size, stop = struct.unpack_from("<i", body, end + 1)[0], body.index(b"\0", end + 5)
                command[body[end + 5 : stop].decode()] = bson.decode_all(body[stop + 1 : end + 1 + size])
                end += 1 + size
            reply = bson.encode(answer(command))
            if kind == OP_QUERY:
                reply = struct.pack("<qii", 0, 0, 1) + reply
                head = HEADER.pack(HEADER.size + len(reply), 0, number, OP_REPLY, 8)
            else:
                reply = b"\0" + reply
                head = HEADER.pack(HEADER.size + len(reply), 0, number, OP_MSG, 0)
            self.wfile.write(head + reply)


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 1024
    daemon_threads = True


def work(n: int) -> list[Any]:
    things = client.db.things
    found: list[Any] = [list(things.find({"meet": True, "number": n})), things.find_one({"number": n})]
    found.append(len(things.insert_many([{"_id": n * 100 + each} for each in range(10)]).inserted_ids))
    try:
        client.db.command("nonsense")
    except pymongo.errors.OperationFailure as error:
        found.append(str(error))
    return found


def own_client(n: int) -> Any:
    with pymongo.MongoClient("127.0.0.1", server.server_address[1], serverSelectionTimeoutMS=60_000) as own:
        return [own.admin.command("ping"), own.db.things.find_one({"number": n})]


def nobody(n: int) -> str:
    """No server listens there: the monitor tells so again and again, until patience is over."""
    with pymongo.MongoClient("127.0.0.1", 1, serverSelectionTimeoutMS=200) as own:
        try:
            own.admin.command("ping")
        except pymongo.errors.ServerSelectionTimeoutError:
            return f"{n}: nobody"
    return "somebody"


with Server(("127.0.0.1", 0), Mongod) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    with pymongo.MongoClient(
        "127.0.0.1", server.server_address[1], maxPoolSize=MANY, serverSelectionTimeoutMS=60_000
    ) as client:
        results = {"work": at_once(work), "own": at_once(own_client), "nobody": at_once(nobody)}
        until(lambda: any(each.name.startswith("pymongo") for each in threading.enumerate()))
        stopping.set()
    server.shutdown()
    thread.join()
report(**results, monitored=sum(seen.get(verb, 0) for verb in ("hello", "ismaster")) > MANY)
