//! Packages that come from repositories: each is built from its commit, once, and the rest is completed around its wheel.
//!
//! Not here: how a repository is fetched, and how a source is built.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use percent_encoding::percent_encode;
use protocol::{
    BlobHash, BuildSource, BuiltWheel, GitSource, LockedFile, PackagePin, Pin, URL_PATH, normalized,
};

use super::ask::{Origin, Requirement};
use super::source::Building;
use super::{PythonError, WheelSource};
use crate::os::file::replace;

/// The packages of repositories, by name: those that are pinned, and those that are asked for where nothing is pinned.
pub(super) fn sources(
    pins: &BTreeMap<String, &PackagePin>,
    asked: &[Requirement],
    build_sources: bool,
) -> Result<BTreeMap<String, GitSource>, PythonError> {
    let pinned = pins.iter().filter_map(|(name, package)| match &package.pin {
        Pin::Git(url) => Some((name, url)),
        Pin::Version(_) | Pin::Url(_) => None,
    });
    let asked = asked.iter().filter(|asked| !pins.contains_key(&asked.name));
    let asked = asked.filter_map(|asked| match &asked.origin {
        Some(Origin::Repository(url)) => Some((&asked.name, url)),
        _ => None,
    });
    let mut sources = BTreeMap::new();
    for (name, url) in pinned.chain(asked) {
        let (name, url) = (name.clone(), url.to_string());
        if !build_sources {
            return Err(PythonError::Repository { name, url });
        }
        let source = url.parse().ok().and_then(|url| GitSource::of(&url));
        let Some(source) = source else { return Err(PythonError::NoCommit { name, url }) };
        sources.entry(name).or_insert(source);
    }
    Ok(sources)
}

/// The addresses under which uv finds what was built, within the walls that are around it.
pub(super) fn addresses(
    built: &BTreeMap<String, (BuiltWheel, PathBuf)>,
    folder: &Path,
) -> Result<BTreeMap<String, String>, PythonError> {
    let address = |(name, (_, path)): (&String, &(BuiltWheel, PathBuf))| {
        let copied = folder.join(path.file_name().unwrap_or_default());
        std::fs::copy(path, &copied).map_err(|source| PythonError::io("reading", path, source))?;
        let escaped = percent_encode(copied.as_os_str().as_encoded_bytes(), &URL_PATH).to_string();
        Ok((name.clone(), format!("file://{escaped}")))
    };
    built.iter().map(address).collect()
}

/// Builds one, unless this Python did so before: an attempt that fails later is not to cost the build again.
async fn built_once(
    name: &str,
    source: &BuildSource,
    building: &Building<'_>,
    files: &dyn WheelSource,
) -> Result<(PathBuf, LockedFile), PythonError> {
    let Building { uv, python, log, .. } = building;
    let wanted = serde_json::to_string(&(name, source, &python.version, &python.program));
    let wanted = BlobHash::of(wanted.expect("it has only text keys").as_bytes());
    let (folder, wheels) = (uv.folder("built"), uv.folder("wheels"));
    let note = folder.join(format!("{wanted}.json"));
    let known = std::fs::read(&note).ok().and_then(|note| serde_json::from_slice::<LockedFile>(&note).ok());
    if let Some(file) = known {
        let path = wheels.join(file.sha256.to_string()).join(file.file_name.as_str());
        if path.is_file() {
            log.line(&format!("`{}` was built before", file.file_name));
            return Ok((path, file));
        }
    }
    let (path, file) = building.build(name, source, files).await?;
    std::fs::create_dir_all(&folder).map_err(|error| PythonError::io("making", &folder, error))?;
    let text = serde_json::to_vec(&file).expect("it has only text keys");
    replace(&note, &text).map_err(|error| PythonError::io("writing", &note, error))?;
    Ok((path, file))
}

/// Builds the packages of repositories: only their wheels say what they need.
pub(super) async fn built(
    sources: BTreeMap<String, GitSource>,
    building: &Building<'_>,
    files: &dyn WheelSource,
) -> Result<BTreeMap<String, (BuiltWheel, PathBuf)>, PythonError> {
    let mut built = BTreeMap::new();
    for (name, source) in sources {
        let source = BuildSource::Git(source);
        let (path, file) = built_once(&name, &source, building, files).await?;
        let mut parts = file.file_name.as_str().split('-');
        let (made, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if normalized(made) != name {
            let made = made.to_owned();
            return Err(PythonError::OtherPackage { name, made });
        }
        let unreadable = |error: protocol::ParseTextError| PythonError::Unreadable(error.to_string());
        let version = version.parse().map_err(unreadable)?;
        let wheel =
            BuiltWheel { name: name.parse().map_err(unreadable)?, version, source, wheel: Some(file) };
        built.insert(name, (wheel, path));
    }
    Ok(built)
}
