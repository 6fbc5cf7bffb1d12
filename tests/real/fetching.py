"""A custom node whose op fetches files as it runs, from the hub, into torch's folder, among the models, beside itself, and
calls a program where there is one."""

import os
import shutil
import subprocess
import urllib.request

import folder_paths
import torch
from huggingface_hub import hf_hub_download

ORIGIN = "http://127.0.0.1:0"


class Fetching:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def execute(self, image):
        paths = [
            hf_hub_download("some-org/some-model", "config.json"),
            os.path.join(torch.hub.get_dir(), "checkpoints", "face.safetensors"),
            os.path.join(folder_paths.models_dir, "faces", "landmarks.onnx"),
            os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights", "scale.json"),
        ]
        for path in paths:
            name = os.path.basename(path)
            if not os.path.exists(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                urllib.request.urlretrieve(f"{ORIGIN}/{name}", path)
            with open(path) as file:
                if file.read() != f"contents of {name}":
                    raise ValueError(f"{path} is another file")
        if shutil.which("comfy-farm-greet"):
            subprocess.run(["comfy-farm-greet"], check=True)
        return (image,)


NODE_CLASS_MAPPINGS = {"Fetching": Fetching}
