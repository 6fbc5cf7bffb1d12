"""A node that waits where it is told to, and fails on a machine that has a fault."""

import os
import time

import comfy.model_management
import folder_paths


class Meeting:
    """Says in its process' output folder that it is there, and goes on once it may. Without a name it does neither."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "farm test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "name": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def execute(self, image, name):
        folder = folder_paths.get_output_directory()
        at = lambda what: os.path.join(folder, what)
        if os.path.exists(at("fault")):
            raise RuntimeError("the fan of this machine stands still")
        if name:
            os.makedirs(folder, exist_ok=True)
            open(at(f"here-{name}"), "w").close()
            while not os.path.exists(at(f"go-{name}")):
                comfy.model_management.throw_exception_if_processing_interrupted()
                time.sleep(0.02)
        return (image,)


NODE_CLASS_MAPPINGS = {"Meeting": Meeting}
