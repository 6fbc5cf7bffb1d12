"""Joins its input, a Unix socket that listens, to a port within walls that leave no network: relay.py PORT."""

import asyncio
import socket
import sys


async def pump(reader, writer):
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(listener, port):
    async def join(reader, writer):
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # It is not up yet.
            writer.close()
            return
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_unix_server(join, sock=listener)
    await server.serve_forever()


asyncio.run(serve(socket.socket(fileno=0), int(sys.argv[1])))
