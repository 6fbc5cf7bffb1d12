#!/usr/bin/env bash
# Runs the example workflow with curl and saves its picture.
# usage: COMFY_FARM_KEY=cfk_… call.sh PICTURE [OUTPUT]
set -euo pipefail
url=${COMFY_FARM_URL:-http://127.0.0.1:8288}
auth="Authorization: Bearer $COMFY_FARM_KEY"
job=$(curl -fsS -H "$auth" -F "picture=@$1" -F columns=64 "$url/v1/workflows/pixelate/jobs?wait=60s")
# The job's own id comes first; what is nested in it has ids too.
id=$(sed 's/^{"id":"\([^"]*\)".*/\1/' <<<"$job")
curl -fsS -H "$auth" -o "${2:-pixelated.png}" "$url/v1/jobs/$id/outputs/pixelated"
