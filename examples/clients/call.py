"""Runs the example workflow with Python's standard library and saves its picture.

usage: COMFY_FARM_KEY=cfk_… python call.py PICTURE [OUTPUT]
"""

import json
import os
import sys
from urllib.request import Request, urlopen

FARM = os.environ.get("COMFY_FARM_URL", "http://127.0.0.1:8288")


def call(path, body=None, media_type="application/json"):
    """Sends a body, or asks where there is none, and gives the bytes of the answer."""
    headers = {"Authorization": f"Bearer {os.environ['COMFY_FARM_KEY']}", "Content-Type": media_type}
    with urlopen(Request(FARM + path, data=body, headers=headers)) as answer:
        return answer.read()


with open(sys.argv[1], "rb") as picture:
    asset = json.loads(call("/v1/assets", picture.read(), "application/octet-stream"))

given = {"picture": {"$asset": asset["hash"]}, "columns": 64}
job = json.loads(call("/v1/workflows/pixelate/jobs?wait=60s", json.dumps({"input": given}).encode()))
if job["state"] != "succeeded":
    sys.exit(f"job {job['id']} is {job['state']}")

with open(sys.argv[2] if len(sys.argv) > 2 else "pixelated.png", "wb") as file:
    file.write(call(f"/v1/jobs/{job['id']}/outputs/pixelated"))
