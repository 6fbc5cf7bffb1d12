"""Runs the example workflow with Python's `requests` and saves its picture.

usage: COMFY_FARM_KEY=cfk_… python call.py PICTURE [OUTPUT]
"""

import os
import sys

import requests

url = os.environ.get("COMFY_FARM_URL", "http://127.0.0.1:8288")
farm = requests.Session()
farm.headers["Authorization"] = f"Bearer {os.environ['COMFY_FARM_KEY']}"

with open(sys.argv[1], "rb") as picture:
    answer = farm.post(
        f"{url}/v1/workflows/pixelate/jobs",
        params={"wait": "60s"},
        files={"picture": picture},
        data={"columns": "64"},
    )
answer.raise_for_status()
job = answer.json()
if job["state"] != "succeeded":
    sys.exit(f"job {job['id']} is {job['state']}")

picture = farm.get(f"{url}/v1/jobs/{job['id']}/outputs/pixelated")
picture.raise_for_status()
with open(sys.argv[2] if len(sys.argv) > 2 else "pixelated.png", "wb") as file:
    file.write(picture.content)
