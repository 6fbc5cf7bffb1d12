//! What a commit consists of: its files by path, and its submodules.

use std::collections::BTreeMap;
use std::io::Write;

use git2::{Config, ObjectType, Oid, Repository};
use protocol::GitUrl;

use super::{GitError, Part};

/// One entry of a commit that is no folder.
pub(super) struct Entry {
    /// Where it lies, with `/` between the parts.
    pub(super) path: String,
    pub(super) id: Oid,
    pub(super) kind: Kind,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File { executable: bool },
    Link,
    Submodule,
}

/// The longest path in a commit, in bytes.
const LONGEST_PATH: usize = 4096;
/// The longest list of submodules, in bytes.
const MAX_MODULES: usize = 1 << 20;

/// All entries of a commit, each name checked; as many files and folders as this at most.
pub(super) fn entries(repository: &Repository, part: &Part, most: usize) -> Result<Vec<Entry>, GitError> {
    let fail = |source| GitError::damaged(&part.url, source);
    let root = repository.find_commit(part.commit).and_then(|commit| commit.tree()).map_err(fail)?;
    let (mut entries, mut open) = (Vec::new(), vec![(String::new(), root.id())]);
    let mut seen = 0;
    while let Some((folder, id)) = open.pop() {
        let tree = repository.find_tree(id).map_err(fail)?;
        // A few small folders that hold each other many times are files without number.
        seen += tree.len();
        if seen > most {
            return Err(GitError::too_large(&part.url));
        }
        for entry in &tree {
            let name = entry.name().unwrap_or_default();
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let fault = |fault| GitError::Entry { url: part.url.to_string(), entry: path.clone(), fault };
            let is_plain = !name.is_empty()
                && !matches!(name, "." | "..")
                && !name.eq_ignore_ascii_case(".git")
                && !name.contains(['/', '\\', '\0']);
            if !is_plain {
                return Err(fault("has a name that leads elsewhere, or is not text"));
            }
            if path.len() > LONGEST_PATH {
                return Err(fault("has a longer path than any system takes"));
            }
            let kind = match entry.filemode() {
                0o040000 => {
                    open.push((path, entry.id()));
                    continue;
                }
                0o100755 => Kind::File { executable: true },
                0o100644 | 0o100664 => Kind::File { executable: false },
                0o120000 => Kind::Link,
                0o160000 => Kind::Submodule,
                _ => return Err(fault("is of a kind that git does not make")),
            };
            debug_assert_eq!(kind == Kind::Submodule, entry.kind() == Some(ObjectType::Commit));
            entries.push(Entry { path, id: entry.id(), kind });
        }
    }
    Ok(entries)
}

/// The submodules of a commit, with where each comes from.
pub(super) fn submodules(
    repository: &Repository,
    part: &Part,
    entries: &[Entry],
) -> Result<Vec<Part>, GitError> {
    let submodules: Vec<&Entry> = entries.iter().filter(|entry| entry.kind == Kind::Submodule).collect();
    if submodules.is_empty() {
        return Ok(Vec::new());
    }
    let listed = entries.iter().find(|entry| entry.path == ".gitmodules");
    let addresses =
        listed.map(|entry| addresses(repository, part, entry.id)).transpose()?.unwrap_or_default();
    let to_part = |entry: &&Entry| {
        let (url, commit, path) = (part.url.to_string(), part.commit.to_string(), entry.path.clone());
        let Some(address) = addresses.get(&entry.path) else {
            return Err(GitError::UnknownSubmodule { url, commit, path });
        };
        let url = match resolve(&part.url, address).parse() {
            Ok(url) => url,
            Err(source) => return Err(GitError::Submodule { url, commit, path, source }),
        };
        let path = if part.path.is_empty() { path } else { format!("{}/{path}", part.path) };
        Ok(Part { path, url, commit: entry.id })
    };
    submodules.iter().map(to_part).collect()
}

/// The addresses in `.gitmodules`, by the path of the submodule.
fn addresses(repository: &Repository, part: &Part, id: Oid) -> Result<BTreeMap<String, String>, GitError> {
    let fail = |source| GitError::git("read the submodules of", &part.url, source);
    let blob = repository.find_blob(id).map_err(|source| GitError::damaged(&part.url, source))?;
    if blob.size() > MAX_MODULES {
        let (url, entry) = (part.url.to_string(), ".gitmodules".to_owned());
        return Err(GitError::Entry { url, entry, fault: "is longer than a list of submodules can be" });
    }
    // libgit2 would read any file of this machine that it names, or wait at a pipe; git itself follows none of these.
    if includes(blob.content()) {
        let (url, entry) = (part.url.to_string(), ".gitmodules".to_owned());
        return Err(GitError::Entry {
            url,
            entry,
            fault: "includes other files, as no list of submodules does",
        });
    }
    // git2 reads settings from files only.
    let stores = repository.path().parent().unwrap_or(repository.path());
    let mut file = tempfile::NamedTempFile::new_in(stores).map_err(|source| GitError::io(stores, source))?;
    file.write_all(blob.content()).map_err(|source| GitError::io(file.path(), source))?;
    let config = Config::open(file.path()).map_err(fail)?;
    let (mut paths, mut urls) = (BTreeMap::new(), BTreeMap::new());
    let entries = config.entries(Some(r"^submodule\..*\.(path|url)$")).map_err(fail)?;
    entries
        .for_each(|entry| {
            let (Ok(name), Ok(value)) = (entry.name(), entry.value()) else { return };
            if let Some(module) = name.strip_suffix(".path") {
                paths.insert(module.to_owned(), value.to_owned());
            } else if let Some(module) = name.strip_suffix(".url") {
                urls.insert(module.to_owned(), value.to_owned());
            }
        })
        .map_err(fail)?;
    Ok(paths.into_iter().filter_map(|(module, path)| Some((path, urls.remove(&module)?))).collect())
}

/// Whether a list of submodules has a section `include` or `includeIf`, or a word about one.
fn includes(modules: &[u8]) -> bool {
    const SECTION: &[u8] = b"include";
    modules.split(|byte| *byte == b'[').skip(1).any(|section| {
        let name = section.trim_ascii_start().get(..SECTION.len());
        name.is_some_and(|name| name.eq_ignore_ascii_case(SECTION))
    })
}

/// An address in `.gitmodules`; one that begins with `./` or `../` is relative to the repository's own.
fn resolve(base: &GitUrl, address: &str) -> String {
    if !address.starts_with("./") && !address.starts_with("../") {
        return address.to_owned();
    }
    let (mut base, mut rest) = (base.as_str().trim_end_matches('/'), address);
    loop {
        if let Some(below) = rest.strip_prefix("./") {
            rest = below;
        } else if let Some(beside) = rest.strip_prefix("../") {
            rest = beside;
            let (before, _) = base.rsplit_once('/').unwrap_or((base, ""));
            // The host, and the root of a machine's paths, is left to nobody.
            base = if before.ends_with('/') { base } else { before };
        } else {
            return format!("{base}/{rest}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_addresses_of_submodules_are_beside_their_repository() {
        let check = |address: &str, expected: &str| {
            let base = "https://example.org/a/b.git".parse().expect("an address");
            assert_eq!(resolve(&base, address), expected, "{address}");
        };
        check("../c.git", "https://example.org/a/c.git");
        check("../../c", "https://example.org/c");
        check("./d", "https://example.org/a/b.git/d");
        check("https://other.example/x", "https://other.example/x");
        check("../../../../c", "https://example.org/c");
    }
}
