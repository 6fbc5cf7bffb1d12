"""Nodes for tests of the farm on a real ComfyUI: progress, every kind of failure, text and file outputs."""

import os
import signal
import time

import comfy.model_management
import comfy.utils
import folder_paths
import torch


class TestProgress:
    """Passes its image on after `steps` times `seconds`; if not interruptible, it looks at no interrupt till then."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "farm test"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "steps": ("INT", {"default": 5, "min": 1, "max": 100000}),
                "seconds": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 600.0}),
                "interruptible": ("BOOLEAN", {"default": True}),
            }
        }

    def execute(self, image, steps, seconds, interruptible):
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            time.sleep(seconds)
            if interruptible:
                comfy.model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(step + 1, steps)
        return (image,)


class UnprintableError(Exception):
    """ComfyUI cannot log its text, and its prompt thread ends: the server then answers, but never works again."""

    def __str__(self):
        return "a lone surrogate: \udc80"


def raise_(error):
    raise error


class TestFail:
    """Fails in the way that `kind` names."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "farm test"
    KINDS = {
        "value_error": lambda: raise_(ValueError("told to fail")),
        "memory_error": lambda: raise_(MemoryError()),
        "cuda_oom": lambda: raise_(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
        "cpu_alloc": lambda: torch.empty(1 << 46, dtype=torch.uint8),
        "big_message": lambda: raise_(RuntimeError("x" * 200_000)),
        "unprintable": lambda: raise_(UnprintableError()),
        "exit": lambda: os._exit(3),
        "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hang": lambda: time.sleep(3600),
    }

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "kind": (list(cls.KINDS),)}}

    def execute(self, image, kind):
        self.KINDS[kind]()
        return (image,)


class TestConditioning:
    """A conditioning drawn from the text's bytes, so that a checkpoint without a text encoder is enough."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "execute", "farm test"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "text": ("STRING", {"default": ""}),
                "width": ("INT", {"default": 768, "min": 1, "max": 8192}),
            }
        }

    def execute(self, text, width):
        generator = torch.Generator().manual_seed(sum(text.encode()))
        return ([[torch.randn(1, 77, width, generator=generator), {}]],)


class TestSaveText:
    """Writes a text file among the outputs, and reports both the file and the text."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "execute", "farm test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "text": ("STRING", {"default": ""}),
                "filename": ("STRING", {"default": "note.txt"}),
            }
        }

    def execute(self, text, filename):
        name = os.path.basename(filename)
        with open(os.path.join(folder_paths.get_output_directory(), name), "w", encoding="utf-8") as file:
            file.write(text)
        return {"ui": {"text": [text], "files": [{"filename": name, "subfolder": "", "type": "output"}]}}


class TestPid:
    """Reports the process and its device setting; never cached."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "execute", "farm test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):
        return float("nan")

    def execute(self):
        return {"ui": {"pid": [os.getpid()], "cuda_visible_devices": [os.environ.get("CUDA_VISIBLE_DEVICES")]}}


NODE_CLASS_MAPPINGS = {
    node.__name__: node for node in (TestProgress, TestFail, TestConditioning, TestSaveText, TestPid)
}
