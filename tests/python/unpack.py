"""comfy-pack's own `unpack` of a bundle, with none of the programs started that it would start; prints what it did as JSON.

usage: unpack.py BUNDLE WORKSPACE        (CPACK_HOME has the models that it downloaded before)
"""

import json
import sys
import zipfile
from pathlib import Path

from comfy_pack import generate_input_model, package

bundle, workspace = sys.argv[1:]
started = []


def start(command, **_):
    command = [str(part) for part in command]
    started.append(command)
    if command[:2] == ["git", "clone"]:
        Path(command[-1], "input").mkdir(parents=True)
    if command[:2] == ["uv", "venv"]:
        Path(command[-1]).mkdir()
    if "restore-snapshot" in command:
        json.loads(Path(command[-1]).read_text())  # ComfyUI-Manager's own file, which is there by then.


package.subprocess.check_call = start
package.install(bundle, workspace)
with zipfile.ZipFile(bundle) as entries:
    schema = generate_input_model(json.loads(entries.read("workflow_api.json"))).model_json_schema()
links = {str(path.relative_to(workspace)): path.read_text() for path in Path(workspace).rglob("*") if path.is_symlink()}
inputs = [path.name for path in Path(workspace, "input").iterdir()]
print()
print(json.dumps({"started": started, "models": links, "inputs": inputs, "schema": schema}))
