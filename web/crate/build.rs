//! Builds the mesh page with npm and Vite into `OUT_DIR/dist`, where `lib.rs` embeds it from.
//!
//! The sources are copied to `OUT_DIR` and built there, so that nothing is written into the checkout.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// When set, a page of one line is embedded and npm is not needed.
const PLACEHOLDER: &str = "COMFY_FARM_WEB_PLACEHOLDER";
const PLACEHOLDER_PAGE: &str =
    "<!doctype html><title>comfy-farm</title><p>This binary was built without the mesh page.\n";

/// What the page is built from. `npm ci` runs again only when the lock file changed.
const SOURCES: [&str; 7] = [
    "index.html",
    "openapi.json",
    "package.json",
    "package-lock.json",
    "src",
    "tsconfig.json",
    "vite.config.ts",
];

const NO_NPM: &str = "the mesh page is built with npm: install Node.js 20.19 or newer with npm (on Debian 13 or \
    newer: `apt-get install nodejs npm`; elsewhere: https://nodejs.org), or set COMFY_FARM_WEB_PLACEHOLDER=1 \
    to build without the page";

fn main() {
    if let Err(message) = build() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let dist = out.join("dist");
    println!("cargo:rerun-if-env-changed={PLACEHOLDER}");
    println!("cargo:rerun-if-changed=crate/build.rs");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    if env::var_os(PLACEHOLDER).is_some_and(|value| value != "0") {
        return replace(&dist, |dist| {
            fs::create_dir_all(dist)?;
            fs::write(dist.join("index.html"), PLACEHOLDER_PAGE)
        });
    }

    let page = out.join("page");
    for source in SOURCES {
        let from = root.join(source);
        replace(&page.join(source), |to| copy(&from, to))?;
    }
    install(&page)?;
    npm(&page, &["run", "build"])?;
    replace(&dist, |dist| copy(&page.join("dist"), dist))
}

/// Installs the locked packages, unless those of the same lock file are there already.
fn install(page: &Path) -> Result<(), String> {
    let lock = page.join("package-lock.json");
    let stamp = page.join("node_modules/.installed-package-lock.json");
    let locked = fs::read(&lock).map_err(|err| format!("reading `{}`: {err}", lock.display()))?;
    if fs::read(&stamp).is_ok_and(|installed| installed == locked) {
        return Ok(());
    }
    npm(page, &["ci", "--ignore-scripts", "--no-audit", "--no-fund"])?;
    fs::write(&stamp, locked).map_err(|err| format!("writing `{}`: {err}", stamp.display()))
}

fn npm(folder: &Path, arguments: &[&str]) -> Result<(), String> {
    let program = if cfg!(windows) { "npm.cmd" } else { "npm" };
    let command = format!("npm {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).current_dir(folder).output().map_err(|err| {
        if err.kind() == io::ErrorKind::NotFound { NO_NPM.to_owned() } else { format!("`{command}`: {err}") }
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "`{command}` in `{}` did not succeed: {}\n{}{}\nit needs Node.js 20.19 or newer and, the first time, the \
         npm registry; COMFY_FARM_WEB_PLACEHOLDER=1 builds without the page",
        folder.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    ))
}

/// Removes what is at a path, then makes it anew.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), String> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { Ok(()) };
    removed.and_then(|()| make(path)).map_err(|err| format!("writing `{}`: {err}", path.display()))
}

/// Copies a file or a folder; a path where nothing is stays that way.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if !from.exists() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).map(drop)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|err| format!("cargo sets `{name}`: {err}"))
}
