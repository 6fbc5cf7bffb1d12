"""Writes down which addresses the process asks for, one a line, beside itself."""

import os
import sys

asked = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "asked"), "a", buffering=1)


def hear(event, arguments):
    if event == "urllib.Request":
        asked.write(f"{arguments[0]}\n")
    elif event == "http.client.send":
        connection, data = arguments
        if isinstance(data, bytes) and data.startswith(b"GET /"):
            scheme = "https" if "HTTPS" in type(connection).__name__ else "http"
            # Behind a proxy the connection itself leads there.
            host = getattr(connection, "_tunnel_host", None) or connection.host
            number = getattr(connection, "_tunnel_port", None) or connection.port
            port = "" if number in (80, 443) else f":{number}"
            path = data.split(b" ", 2)[1].decode("ascii", "replace")
            asked.write(f"{scheme}://{host}{port}{path}\n")


sys.addaudithook(hear)
