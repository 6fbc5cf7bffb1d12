"""Makes stand-ins for the CUDA libraries that torch's wheel is linked to, so that `import torch` works on a CPU.

usage: cuda_stubs.py SITE_PACKAGES        (needs `cc`, and `readelf` and `nm` from binutils)

The wheel's libraries name some fifteen CUDA libraries, which come in packages of 2 GB. Nothing on the CPU path calls
into them, but the loader wants each library, with every versioned symbol that is imported from it. So each stand-in
defines exactly those, as functions that answer "driver too old" or a text. It does not make a GPU usable.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

CUDA_LIBRARY = re.compile(r"lib(cu|nccl|nv)")
CUDA_SYMBOL = re.compile(r"_{0,2}(cu|nccl|nvshmem|nvrtc)[A-Za-z_]")
TEXT_SYMBOL = re.compile(r"(ErrorString|ErrorName|StatusString|^ncclGetLastError)$")
DRIVER_TOO_OLD = 35


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wanted_symbols(folder):
    """Returns {library: {version: symbols}}; the version is "" for symbols that name none."""
    own = {path.name for path in folder.glob("*.so*")}
    wanted, unversioned = {}, set()
    for path in sorted(folder.glob("*.so*")):
        dynamic = output_of("readelf", "--dynamic", "--version-info", "--wide", path)
        for name in re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic):
            if CUDA_LIBRARY.match(name) and name not in own:
                wanted.setdefault(name, defaultdict(set))
        library_of = versions_by_library(dynamic)
        for line in output_of("nm", "--dynamic", "--undefined-only", "--with-symbol-versions", path).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            version = version.lstrip("@")
            if version and library_of.get(version) in wanted:
                wanted[library_of[version]][version].add(symbol)
            elif not version and CUDA_SYMBOL.match(symbol):
                unversioned.add(symbol)
    if wanted:
        # The loader finds an unversioned symbol in any library, so one of them holds them all.
        wanted[min(wanted)][""] |= unversioned
    return wanted


def versions_by_library(dynamic):
    """Returns {symbol version: library} from readelf's section of needed versions."""
    library, found = None, {}
    for line in dynamic.splitlines():
        if match := re.search(r"File: (\S+)", line):
            library = match.group(1)
        elif library and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            found.setdefault(match.group(1), library)
    return found


def build(library, versions, folder, scratch):
    """Compiles the stand-in of one library into `folder`."""
    source, script = scratch / "stub.c", scratch / "stub.map"
    bodies = [
        f'const char *{symbol}(void) {{ return "no CUDA"; }}'
        if TEXT_SYMBOL.search(symbol)
        else f"long {symbol}(void) {{ return {DRIVER_TOO_OLD}; }}"
        for symbol in sorted(set().union(*versions.values()))
    ]
    source.write_text("\n".join([*bodies, "int stand_in;"]) + "\n")
    command = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", "-o", folder / library, source, f"-Wl,-soname,{library}"]
    if named := {version: symbols for version, symbols in versions.items() if version}:
        script.write_text(
            "".join(
                "%s { global: %s };\n" % (version, " ".join(f"{symbol};" for symbol in sorted(symbols)))
                for version, symbols in sorted(named.items())
            )
        )
        command.append(f"-Wl,--version-script,{script}")
    subprocess.run(command, check=True)


def main():
    folder = Path(sys.argv[1]) / "torch" / "lib"
    wanted = wanted_symbols(folder)
    with tempfile.TemporaryDirectory() as scratch:
        for library, versions in sorted(wanted.items()):
            build(library, versions, folder, Path(scratch))
    print(f"made {len(wanted)} stand-ins for CUDA libraries in {folder}")


main()
