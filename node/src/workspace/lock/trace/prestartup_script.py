"""Writes down what the process asks for of other machines and of its own, one a line, beside itself: the addresses in
`asked`, and in `called` the programs that do not come with its Python."""

import os
import shutil
import sys

folder = os.path.dirname(os.path.abspath(__file__))
asked = open(os.path.join(folder, "asked"), "a", buffering=1)
called = open(os.path.join(folder, "called"), "a", buffering=1)


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
    elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        program = shutil.which(os.fsdecode(arguments[0]))
        if program and not program.startswith(sys.prefix + os.sep):
            called.write(f"{program}\n")


sys.addaudithook(hear)
