"""A custom node whose op downloads a file at run time."""

import urllib.request


class Remote:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def execute(self, image):
        print("fetching https://models.example.org/face.pth")
        urllib.request.urlopen("https://models.example.org/face.pth", timeout=10)
        return (image,)


NODE_CLASS_MAPPINGS = {"Remote": Remote}
