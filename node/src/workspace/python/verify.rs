//! Whether the files of an environment are still those of its wheels, as each wheel's `RECORD` says.
//!
//! Not here: what is done about it. What was added beside them, such as byte code, is not looked at.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use protocol::normalized;

use super::build::lock_of;
use super::source::hash;
use crate::os::file::read_plain;

/// The most bytes of a `RECORD`, which the largest packages fill to a fiftieth.
const LONGEST_RECORD: u64 = 64 << 20;

/// A file that is not what was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, below the environment's folder.
    pub path: PathBuf,
    /// Whether it is there at all.
    pub missing: bool,
}

/// Compares every file of every package with what was installed. Reads all of them: not for an async task.
pub fn verify(environment: &Path) -> io::Result<Vec<Damage>> {
    let mut damage = Vec::new();
    for packages in site_packages(environment)? {
        for entry in std::fs::read_dir(&packages)? {
            let folder = entry?.path();
            if folder.extension().is_some_and(|extension| extension == "dist-info") {
                verify_package(environment, &packages, &folder, &mut damage)?;
            }
        }
    }
    damage.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(damage)
}

/// The packages that an environment was installed from and that are not there any more.
pub fn missing_packages(environment: &Path) -> io::Result<Vec<String>> {
    let Some(lock) = lock_of(environment) else { return Ok(Vec::new()) };
    let mut installed = BTreeSet::new();
    for packages in site_packages(environment)? {
        for entry in std::fs::read_dir(&packages)? {
            let name = entry?.file_name();
            let folder = name.to_str().and_then(|name| name.strip_suffix(".dist-info"));
            installed.extend(folder.and_then(|name| Some(normalized(name.rsplit_once('-')?.0))));
        }
    }
    let built = lock.built.iter().map(|built| &built.name);
    let names = lock.wheels.iter().map(|wheel| &wheel.name).chain(built).map(|name| name.to_string());
    Ok(names.filter(|name| !installed.contains(&normalized(name))).collect())
}

/// The folders that packages are installed into.
fn site_packages(environment: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(environment.join("lib"))? {
        let folder = entry?.path().join("site-packages");
        if folder.is_dir() {
            found.push(folder);
        }
    }
    Ok(found)
}

fn verify_package(
    environment: &Path,
    packages: &Path,
    folder: &Path,
    damage: &mut Vec<Damage>,
) -> io::Result<()> {
    let below = |path: &Path| path.strip_prefix(environment).unwrap_or(path).to_owned();
    // An install script may have put a pipe or a link in the place of any file.
    let fault = |path: &Path| match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => None,
        found => Some(Damage { path: below(path), missing: found.is_err() }),
    };
    let record = folder.join("RECORD");
    if let Some(fault) = fault(&record) {
        damage.push(fault);
        return Ok(());
    }
    let record = read_plain(&record, LONGEST_RECORD)?;
    let record =
        String::from_utf8(record).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    for (name, expected) in record.lines().filter_map(line) {
        let path = resolved(&packages.join(name));
        if !path.starts_with(environment) {
            continue;
        }
        if let Some(fault) = fault(&path) {
            damage.push(fault);
        } else if BASE64URL_NOPAD.encode(&hash(&path)?.0.0) != expected {
            damage.push(Damage { path: below(&path), missing: false });
        }
    }
    Ok(())
}

/// A file and its SHA-256 of one line of a `RECORD`; `None` for what has no hash.
fn line(line: &str) -> Option<(String, &str)> {
    let (rest, _size) = line.rsplit_once(',')?;
    let (name, hash) = rest.rsplit_once(',')?;
    let hash = hash.strip_prefix("sha256=")?.trim_end_matches('=');
    let name = match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => name.to_owned(),
    };
    Some((name, hash))
}

/// A path without `..`, as programs are written `../../../bin/x`.
fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                resolved.pop();
            }
            Component::CurDir => {}
            part => resolved.push(part),
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_record_are_read_as_they_are_written() {
        assert_eq!(line("a/b.py,sha256=AbC_-,12"), Some(("a/b.py".to_owned(), "AbC_-")));
        assert_eq!(line("\"a,\"\"b\"\".py\",sha256=x=,1"), Some(("a,\"b\".py".to_owned(), "x")));
        assert_eq!(line("a.dist-info/RECORD,,"), None);
        assert_eq!(resolved(Path::new("/e/lib/p/site/../../../bin/x")), Path::new("/e/bin/x"));
    }
}
