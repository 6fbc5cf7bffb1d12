# shellcheck shell=bash
# Sourced by tests/run and the install scripts below it. Owns where the things that tests need from package
# registries lie, and that a half-made one is never used. Does not know what any of them holds.

shopt -s inherit_errexit # Else a step that fails inside $(…) would not stop what it is part of.

# The folder of all of them: outside the clone, so that every clone reuses it.
cache_root() {
  printf '%s\n' "${COMFY_FARM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/comfy-farm}"
}

# ready_folder TOOL MAKE PART...
# Prints the folder of TOOL, which is named by a hash over its PARTs: files, folders, or any other text. If it is
# missing, `MAKE FOLDER` fills a folder beside it, which gets the name only when it is complete. What nobody used for
# a month is removed.
ready_folder() {
  local tool=$1 make=$2 root folder half lock
  shift 2
  root=$(cache_root)
  mkdir -p "$root"
  folder=$root/$tool-$(content_hash "$@")
  exec {lock}>"$root/$tool.lock"
  flock "$lock"
  if [[ ! -d $folder ]]; then
    rm -rf "$root/.$tool.half-"* # What an interrupted install left behind.
    half=$(mktemp -d "$root/.$tool.half-XXXXXX")
    "$make" "$half" >&2
    mv -T "$half" "$folder"
    find "$root" -maxdepth 1 -name "$tool-*" -mtime +30 -exec rm -rf {} +
  fi
  touch "$folder"
  exec {lock}>&-
  printf '%s\n' "$folder"
}

# content_hash PART...: sixteen hex digits over the bytes of files and of the files in folders, and over other text.
content_hash() {
  local part
  for part in "$@"; do
    if [[ -e $part ]]; then
      find "$part" -type f -not -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 cat
    else
      printf '%s\n' "$part"
    fi
  done | sha256sum | cut -c 1-16
}

# find_python: prints the path of a CPython 3.11 that can make virtual environments.
find_python() {
  local name path
  for name in python3.11 python3; do
    if path=$(command -v "$name") &&
      "$path" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      printf '%s\n' "$path"
      return
    fi
  done
  echo "no Python 3.11 with venv found: install Debian 12's python3 and python3-venv" >&2
  return 1
}

# python_identity PYTHON: what a virtual environment made by it depends on.
python_identity() {
  "$1" -c 'import platform, sys; print(platform.machine(), sys.version, sys.base_prefix)'
}
