"""Makes a package index of a folder of wheels, as an office has it: the torch family in the build for the CPU.

usage: index.py INDEX SITE_PACKAGES        (INDEX/files holds the wheels; SITE_PACKAGES has them installed)

INDEX/simple is an index of everything (PEP 503), INDEX/torch/cpu one of the torch family alone. What torch's CPU build
is elsewhere is made here of the usual wheel: another local version, no CUDA packages, and the stand-ins of
cuda_stubs.py, which are in SITE_PACKAGES. The compressed parts of the wheel are copied as they are.
"""

import base64
import hashlib
import re
import shutil
import sys
import zipfile
from pathlib import Path

TORCH_FAMILY = {"torch", "torchvision", "torchaudio"}
CUDA_PACKAGE = re.compile(r"Requires-Dist: (nvidia-|triton|cuda-)", re.I)


def record_line(name, content):
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def copy_entry(wheel, entry, made, name):
    """Copies one entry under another name, without decompressing it."""
    wheel.fp.seek(entry.header_offset)
    local = wheel.fp.read(30)
    wheel.fp.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), 1)
    entry.flag_bits &= ~0x08  # The sizes stand in the header.
    entry.filename, entry.header_offset, entry.extra = name, made.fp.tell(), b""
    made.fp.write(entry.FileHeader(zip64=False))
    left = entry.compress_size
    while left:
        part = wheel.fp.read(min(left, 1 << 20))
        made.fp.write(part)
        left -= len(part)
    made.start_dir = made.fp.tell()
    made.filelist.append(entry)
    made.NameToInfo[name] = entry
    made._didModify = True


def cpu_build(path, site_packages):
    """Writes the wheel's build for the CPU beside it, and removes the wheel."""
    name, version, rest = path.name.split("-", 2)
    old, new = f"{name}-{version}.dist-info", f"{name}-{version}+cpu.dist-info"
    with zipfile.ZipFile(path) as wheel, zipfile.ZipFile(path.parent / f"{name}-{version}+cpu-{rest}", "w") as made:
        inside = set(wheel.namelist())
        metadata = wheel.read(f"{old}/METADATA").decode()
        lines = [line for line in metadata.split("\n") if not CUDA_PACKAGE.match(line)]
        changed = {f"{new}/METADATA": "\n".join(lines).replace(f"Version: {version}", f"Version: {version}+cpu", 1).encode()}
        if name == "torch":
            for stub in sorted((site_packages / "torch/lib").glob("*.so*")):
                if f"torch/lib/{stub.name}" not in inside:
                    changed[f"torch/lib/{stub.name}"] = stub.read_bytes()
        record = []
        for line in wheel.read(f"{old}/RECORD").decode().splitlines():
            if not line.startswith((f"{old}/METADATA,", f"{old}/RECORD,")):
                record.append(line.replace(f"{old}/", f"{new}/", 1))
        for entry in list(wheel.infolist()):
            if entry.filename not in (f"{old}/METADATA", f"{old}/RECORD"):
                copy_entry(wheel, entry, made, entry.filename.replace(f"{old}/", f"{new}/", 1))
        for at, content in changed.items():
            made.writestr(at, content, zipfile.ZIP_DEFLATED)
            record.append(record_line(at, content))
        made.writestr(f"{new}/RECORD", "\n".join([*record, f"{new}/RECORD,,", ""]), zipfile.ZIP_DEFLATED)
    path.unlink()


def write_index(folder, wheels):
    """Writes the pages of an index; `wheels` maps each package to its files."""
    for package, files in wheels.items():
        (folder / package).mkdir(parents=True)
        up = "../" * len((folder / package).relative_to(index).parts)
        links = []
        for file in files:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            link = file.name.replace("+", "%2B")
            links.append(f'<a href="{up}files/{link}#sha256={digest}">{file.name}</a>')
        (folder / package / "index.html").write_text("<!doctype html>\n" + "\n".join(links) + "\n")


index, site_packages = Path(sys.argv[1]), Path(sys.argv[2])
for path in sorted((index / "files").glob("*.whl")):
    if path.name.split("-")[0] in TORCH_FAMILY:
        cpu_build(path, site_packages)
wheels = {}
for path in sorted((index / "files").glob("*.whl")):
    wheels.setdefault(re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower(), []).append(path)
for old in ("simple", "torch"):
    shutil.rmtree(index / old, ignore_errors=True)
write_index(index / "simple", {name: files for name, files in wheels.items() if name not in TORCH_FAMILY})
write_index(index / "torch/cpu", {name: files for name, files in wheels.items() if name in TORCH_FAMILY})
