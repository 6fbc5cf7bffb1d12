//! What is installed in the Python that runs ComfyUI, asked of that Python itself.
//!
//! Not here: which of it a machine with another GPU installs; `python` decides that.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use protocol::{
    GitUrl, HttpsUrl, PackagePin, Pin, Sha256, Token, follows_torch, is_torch_build, is_torch_family,
    normalized,
};
use serde::Deserialize;

use super::sources::without_token;
use super::{Findings, LockError, some_of};
use crate::workspace::python::TORCH_INDEX;

/// Asks a Python for its version and for all that is installed, the first of one name being what is imported. The
/// folder that the question is asked in is none of its packages.
const QUESTION: &str = r#"
import sys
sys.path = [folder for folder in sys.path if folder]
import json, platform
from importlib import metadata
packages, folders = [], set()
for found in metadata.distributions():
    name = (found.metadata or {}).get("Name")
    if name:
        folders.add(str(found.locate_file("")))
        packages.append({"name": name, "version": found.version, "origin": found.read_text("direct_url.json")})
print(json.dumps({"python": platform.python_version(), "packages": packages, "folders": sorted(folders)}))
"#;

/// How many packages of one note are named.
const NAMED: usize = 5;

/// What a Python has.
#[derive(Debug)]
pub(super) struct Installed {
    /// Its full version.
    pub(super) python: Token,
    /// Its packages, by name.
    pub(super) packages: Vec<PackagePin>,
    /// The folders that they lie in.
    pub(super) folders: Vec<PathBuf>,
    /// The hashes of the files of this machine that some of them were installed from.
    pub(super) files: BTreeMap<Token, Sha256>,
}

/// Asks the Python of a ComfyUI folder.
pub(super) fn installed(
    comfyui: &Path,
    given: Option<&Path>,
    findings: &mut Findings,
) -> Result<Installed, LockError> {
    let program = given.map_or_else(|| usual_python(comfyui), Path::to_owned);
    let answer = ask(&program)?;
    let wrong = |reason: String| LockError::Python { program: program.clone(), reason };
    let python = answer.python.parse().map_err(|_| wrong(format!("its version is `{}`", answer.python)))?;
    let mut files = BTreeMap::new();
    let packages = pins(answer.packages, &mut files, findings);
    if !packages.iter().any(|package| package.name.as_str() == "torch") {
        return Err(LockError::NoTorch { program });
    }
    Ok(Installed { python, packages, folders: answer.folders, files })
}

/// The Python of a ComfyUI folder, by a name that holds in every folder.
pub(super) fn program(comfyui: &Path, given: Option<&Path>) -> io::Result<PathBuf> {
    let program = given.map_or_else(|| usual_python(comfyui), Path::to_owned);
    // A bare name is looked for in the system's own places.
    if program.components().count() > 1 { std::path::absolute(program) } else { Ok(program) }
}

/// The Python that is usually meant.
fn usual_python(comfyui: &Path) -> PathBuf {
    let own = ["venv", ".venv"].map(|folder| comfyui.join(folder).join("bin/python"));
    own.into_iter().find(|program| program.exists()).unwrap_or_else(|| PathBuf::from("python3"))
}

fn ask(program: &Path) -> Result<Answer, LockError> {
    let mut command = Command::new(program);
    command.args(["-c", QUESTION]).stdin(Stdio::null());
    let output =
        command.output().map_err(|source| LockError::NoPython { program: program.to_owned(), source })?;
    let wrong = |reason: String| LockError::Python { program: program.to_owned(), reason };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(wrong(said.lines().next_back().unwrap_or("it fails").to_owned()));
    }
    // What a site's own start-up prints comes before.
    let line = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))
}

#[derive(Debug, Deserialize)]
struct Answer {
    python: String,
    packages: Vec<Package>,
    folders: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    /// What its installer wrote into `direct_url.json`, where it came from no index.
    origin: Option<String>,
}

fn pins(
    packages: Vec<Package>,
    files: &mut BTreeMap<Token, Sha256>,
    findings: &mut Findings,
) -> Vec<PackagePin> {
    let mut first = BTreeMap::new();
    for package in packages {
        first.entry(normalized(&package.name)).or_insert(package);
    }
    // Each environment has one, and those that differ in it alone would be two.
    first.remove("pip");
    let has_torch = first.contains_key("torch");
    let before = first.len();
    first.retain(|name, _| !(has_torch && follows_torch(name)));
    if first.len() < before {
        findings.notes.push(format!(
            "{} packages of CUDA are left out: they follow the build of torch that each machine gets",
            before - first.len()
        ));
    }
    let mut from_files = Vec::new();
    let mut pins = Vec::new();
    for (name, Package { version, origin, .. }) in first {
        let origin = origin.and_then(|text| serde_json::from_str::<Origin>(&text).ok());
        let sha256 = origin.as_ref().and_then(Origin::sha256);
        // A file of an index that was downloaded before, as far as can be told.
        let is_file = origin.as_ref().is_some_and(Origin::is_file);
        let Some(mut pin) = pin(&name, &version, origin.filter(|_| !is_file), findings) else { continue };
        match &pin.pin {
            Pin::Url(_) => pin.hashes.extend(sha256),
            _ if is_file => {
                files.extend(sha256.map(|sha256| (pin.name.clone(), sha256)));
                from_files.push(format!("`{name}` {version}"));
            }
            _ => {}
        }
        pins.push(pin);
    }
    if !from_files.is_empty() {
        let named = some_of(from_files, NAMED);
        findings.notes.push(format!(
            "packages that came from files of this machine are recorded by their version, for the index has it: {named}"
        ));
    }
    pins
}

fn pin(name: &str, version: &str, origin: Option<Origin>, findings: &mut Findings) -> Option<PackagePin> {
    let place = |origin: &Origin| {
        let reason =
            if origin.url.starts_with("file:") { "it lies on this machine" } else { "nodes do not ask it" };
        format!("package `{name}`: left out, because it was installed from `{}`: {reason}", origin.url)
    };
    let pin = match origin {
        Some(origin) => match origin.pin() {
            Some(pin) => Some(pin),
            None => {
                findings.lacking.push(place(&origin));
                return None;
            }
        },
        None => None,
    };
    let index = pin.is_none().then(|| index_of(name, version)).flatten();
    let named = name.parse().ok().zip(pin.or_else(|| version.parse().ok().map(Pin::Version)));
    let Some((name, pin)) = named else {
        findings.lacking.push(format!("package `{name}`: left out, because `{version}` is no version"));
        return None;
    };
    Some(PackagePin { index, ..PackagePin::new(name, pin) })
}

/// The index of a build for one accelerator, which the usual index never has; torch's own family is looked
/// for there in any case.
fn index_of(name: &str, version: &str) -> Option<HttpsUrl> {
    let (release, build) = version.split_once('+')?;
    if is_torch_family(name) || build.is_empty() || !is_torch_build(build) {
        return None;
    }
    let nightly = if release.contains("dev") { "/nightly" } else { "" };
    format!("{TORCH_INDEX}{nightly}/{build}").parse().ok()
}

/// Where a package came from (PEP 610).
#[derive(Debug, Deserialize)]
struct Origin {
    url: String,
    archive_info: Option<Archive>,
    vcs_info: Option<Repository>,
    subdirectory: Option<String>,
}

/// A file that a package was installed from; older installers write its hash as `sha256=…`.
#[derive(Debug, Deserialize)]
struct Archive {
    #[serde(default)]
    hashes: BTreeMap<String, String>,
    hash: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Repository {
    vcs: String,
    commit_id: String,
}

impl Origin {
    /// Whether it is a file of this machine.
    fn is_file(&self) -> bool {
        self.url.starts_with("file:") && self.archive_info.is_some()
    }

    /// The hash of the file, as its installer found it.
    fn sha256(&self) -> Option<Sha256> {
        let Archive { hashes, hash } = self.archive_info.as_ref()?;
        let older = || hash.as_deref()?.strip_prefix("sha256=");
        hashes.get("sha256").map(String::as_str).or_else(older)?.parse().ok()
    }

    /// The pin, where nodes can follow it.
    fn pin(&self) -> Option<Pin> {
        let folder =
            self.subdirectory.as_ref().map_or_else(String::new, |name| format!("#subdirectory={name}"));
        match &self.vcs_info {
            Some(Repository { vcs, commit_id }) if vcs == "git" => {
                let pinned = format!("{}@{commit_id}{folder}", self.url).parse().ok();
                pinned.filter(GitUrl::is_public).map(Pin::Git)
            }
            Some(_) => None,
            None => without_token(&format!("{}{folder}", self.url)).parse().ok().map(Pin::Url),
        }
    }
}
