"""Makes a checkpoint that ComfyUI takes for SD 1.x: a UNet of one level and a VAE shaped as TAESD, no text encoder.

All weights are random, from a fixed seed, so its pictures are noise. usage: tiny_sd15.py FILE
"""

import sys

import numpy as np
from safetensors.numpy import save_file

CHANNELS, EMBEDDING, CONTEXT = 320, 1280, 768
random, weights = np.random.default_rng(1), {}


def weight(name, *shape):
    scale = np.float32(1 / max(1.0, float(np.prod(shape[1:]))) ** 0.5)
    weights[name] = (random.standard_normal(shape, dtype=np.float32) * scale).astype(np.float16)


def norm(path, size):
    weights[path + ".weight"] = np.ones(size, np.float16)
    weights[path + ".bias"] = np.zeros(size, np.float16)


def linear(path, inputs, outputs, bias=True):
    weight(path + ".weight", outputs, inputs)
    if bias:
        weights[path + ".bias"] = np.zeros(outputs, np.float16)


def conv(path, inputs, outputs, kernel=3, bias=True):
    weight(path + ".weight", outputs, inputs, kernel, kernel)
    if bias:
        weights[path + ".bias"] = np.zeros(outputs, np.float16)


def residual(path, inputs, outputs):
    norm(path + ".in_layers.0", inputs)
    conv(path + ".in_layers.2", inputs, outputs)
    linear(path + ".emb_layers.1", EMBEDDING, outputs)
    norm(path + ".out_layers.0", outputs)
    conv(path + ".out_layers.3", outputs, outputs)
    if inputs != outputs:
        conv(path + ".skip_connection", inputs, outputs, 1)


def transformer(path, size):
    norm(path + ".norm", size)
    conv(path + ".proj_in", size, size, 1)
    conv(path + ".proj_out", size, size, 1)
    block = path + ".transformer_blocks.0"
    for attention, context in (("attn1", size), ("attn2", CONTEXT)):
        linear(f"{block}.{attention}.to_q", size, size, bias=False)
        linear(f"{block}.{attention}.to_k", context, size, bias=False)
        linear(f"{block}.{attention}.to_v", context, size, bias=False)
        linear(f"{block}.{attention}.to_out.0", size, size)
    linear(block + ".ff.net.0.proj", size, size * 8)
    linear(block + ".ff.net.2", size * 4, size)
    for name in ("norm1", "norm2", "norm3"):
        norm(f"{block}.{name}", size)


def unet(path):
    linear(path + "time_embed.0", CHANNELS, EMBEDDING)
    linear(path + "time_embed.2", EMBEDDING, EMBEDDING)
    conv(path + "input_blocks.0.0", 4, CHANNELS)
    residual(path + "input_blocks.1.0", CHANNELS, CHANNELS)
    transformer(path + "input_blocks.1.1", CHANNELS)
    residual(path + "middle_block.0", CHANNELS, CHANNELS)
    transformer(path + "middle_block.1", CHANNELS)
    residual(path + "middle_block.2", CHANNELS, CHANNELS)
    for number in (0, 1):
        residual(f"{path}output_blocks.{number}.0", 2 * CHANNELS, CHANNELS)
        transformer(f"{path}output_blocks.{number}.1", CHANNELS)
    norm(path + "out.0", CHANNELS)
    conv(path + "out.2", CHANNELS, 4)


def vae_block(path):
    for number in (0, 2, 4):
        conv(f"{path}.conv.{number}", 64, 64)


def encoder(path):
    conv(path + ".0", 3, 64)
    vae_block(path + ".1")
    place = 2
    for _ in range(3):
        conv(f"{path}.{place}", 64, 64, bias=False)
        for number in (1, 2, 3):
            vae_block(f"{path}.{place + number}")
        place += 4
    conv(f"{path}.{place}", 64, 4)


def decoder(path):
    conv(path + ".1", 4, 64)
    place = 3
    for _ in range(3):
        for number in (0, 1, 2):
            vae_block(f"{path}.{place + number}")
        conv(f"{path}.{place + 4}", 64, 64, bias=False)
        place += 5
    vae_block(f"{path}.{place}")
    conv(f"{path}.{place + 1}", 64, 3)


unet("model.diffusion_model.")
encoder("first_stage_model.taesd_encoder")
decoder("first_stage_model.taesd_decoder")
weights["first_stage_model.vae_scale"] = np.array(1.0, np.float32)
weights["first_stage_model.vae_shift"] = np.array(0.0, np.float32)
save_file(weights, sys.argv[1])
