//! What uv resolved, as it writes it: a `pylock.toml` (PEP 751).
//!
//! Pure, and reads only what is needed. Not here: which of the files is installed.

use serde::Deserialize;

use super::PythonError;

/// One package that uv resolved.
#[derive(Debug, Deserialize)]
pub(super) struct Package {
    /// Its name, as indexes compare it.
    pub(super) name: String,
    /// Its version; a source may be silent about it.
    pub(super) version: Option<String>,
    /// Its wheels.
    #[serde(default)]
    pub(super) wheels: Vec<File>,
    /// Its source.
    pub(super) sdist: Option<File>,
    /// The archive that it was asked for by.
    pub(super) archive: Option<File>,
    /// The repository that it was asked for by.
    pub(super) vcs: Option<Repository>,
}

/// One file of an index.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct File {
    /// Where it is.
    pub(super) url: Option<String>,
    /// How many bytes it has, if the index says so.
    pub(super) size: Option<u64>,
    /// Its hashes.
    #[serde(default)]
    pub(super) hashes: Hashes,
}

/// The hashes of a file.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Hashes {
    /// In hex.
    pub(super) sha256: Option<String>,
}

/// A repository.
#[derive(Debug, Deserialize)]
pub(super) struct Repository {
    /// Where it is.
    pub(super) url: Option<String>,
}

impl File {
    /// The last part of its URL, with what is written in hex there (`%2B`) read.
    pub(super) fn name(&self) -> Option<String> {
        let url = self.url.as_deref()?;
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let mut bytes = Vec::new();
        let mut rest = path.rsplit('/').next()?.as_bytes();
        while let Some((first, more)) = rest.split_first() {
            rest = more;
            let mut byte = [*first];
            if *first == b'%' && rest.len() >= 2 && hex::decode_to_slice(&rest[..2], &mut byte).is_ok() {
                rest = &rest[2..];
            }
            bytes.push(byte[0]);
        }
        String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
    }
}

/// Reads what uv wrote.
pub(super) fn parse(text: &str) -> Result<Vec<Package>, PythonError> {
    #[derive(Deserialize)]
    struct Pylock {
        #[serde(rename = "lock-version")]
        version: String,
        #[serde(default)]
        packages: Vec<Package>,
    }
    let unreadable = |error: toml::de::Error| PythonError::Unreadable(error.message().to_owned());
    let pylock: Pylock = toml::from_str(text).map_err(unreadable)?;
    if pylock.version != "1.0" {
        return Err(PythonError::Unreadable(format!("it is of version {}, not 1.0", pylock.version)));
    }
    Ok(pylock.packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_sources_archives_and_repositories_are_read() {
        let text = r#"
            lock-version = "1.0"
            created-by = "uv"
            requires-python = ">=3.11"
            [[packages]]
            name = "torch"
            version = "2.6.0+cpu"
            index = "https://download.pytorch.org/whl/cpu"
            wheels = [{ url = "https://download.pytorch.org/whl/cpu/torch-2.6.0%2Bcpu-cp311-cp311-linux_x86_64.whl#x",
                        upload-time = 2025-01-29T16:22:52Z, hashes = { sha256 = "59" } }]
            [[packages]]
            name = "docopt"
            version = "0.6.2"
            sdist = { url = "https://example.org/docopt-0.6.2.tar.gz", size = 25901, hashes = { sha256 = "49" } }
            [[packages]]
            name = "thing"
            archive = { url = "https://example.org/thing-1-py3-none-any.whl", hashes = { sha256 = "50" } }
            [[packages]]
            name = "sam"
            vcs = { type = "git", url = "https://github.com/a/sam.git", commit-id = "abc" }
        "#;
        let packages = parse(text).expect("it is read");
        let name = packages[0].wheels[0].name();
        assert_eq!(name.as_deref(), Some("torch-2.6.0+cpu-cp311-cp311-linux_x86_64.whl"));
        assert_eq!(packages[0].wheels[0].size, None);
        assert_eq!(packages[1].sdist.as_ref().and_then(|sdist| sdist.size), Some(25901));
        assert!(packages[2].archive.is_some() && packages[3].vcs.is_some());
    }

    #[test]
    fn another_version_or_no_lock_is_refused() {
        for text in ["lock-version = '2.0'", "x", ""] {
            assert!(matches!(parse(text), Err(PythonError::Unreadable(_))), "{text}");
        }
    }
}
