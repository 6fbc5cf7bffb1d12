"""Joins a Unix socket to a port within the walls of a process that has no network: relay.py SOCKET PORT."""

import asyncio
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


async def serve(socket, port):
    async def join(reader, writer):
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # It is not up yet.
            writer.close()
            return
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_unix_server(join, socket)
    await server.serve_forever()


asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
