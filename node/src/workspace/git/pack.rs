//! A commit as one file: a list of its repositories, and a pack of each with the commit's files alone.
//!
//! ```text
//! farm-git/1 LF, length of the list (u32, little endian), the list as JSON, the packs one after another
//! ```
//!
//! Whoever reads one proves it by git's own hashes: a pack is indexed by what its objects hash to, and every
//! object of the commit must be among them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use git2::{Oid, Repository};
use protocol::{GitPin, GitUrl, MAX_PACK};
use serde::{Deserialize, Serialize};

use super::{Came, GitError, GitStore, Held, MAX_REPOSITORIES, Part};
use crate::os::file::tells_full_disk;

const MAGIC: &[u8] = b"farm-git/1\n";
/// The longest list, in bytes.
const MAX_LIST: u32 = 1 << 20;

/// One repository of the list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    url: GitUrl,
    commit: String,
    size: u64,
}

impl GitStore {
    /// Packs a commit that is here, submodules included, into a file; equal for equal commits as long as
    /// libgit2 packs alike.
    pub fn pack(&self, pin: &GitPin, file: &mut File) -> Result<(), GitError> {
        let io = |source| GitError::io(Path::new("pack"), source);
        let mut list = Vec::new();
        let mut packs = tempfile::tempfile_in(&self.root).map_err(io)?;
        for Held { part, repository, .. } in self.whole(pin, &BTreeSet::new())? {
            let begun = packs.stream_position().map_err(io)?;
            write_pack(&repository, part.commit, &mut packs, |_| true)
                .map_err(|source| GitError::git("pack", &part.url, source))?;
            let size = packs.stream_position().map_err(io)? - begun;
            list.push(Listed { url: part.url, commit: part.commit.to_string(), size });
        }
        let list = serde_json::to_vec(&list).expect("only text keys");
        let mut write = || {
            packs.seek(SeekFrom::Start(0))?;
            let mut out = BufWriter::new(&mut *file);
            out.write_all(MAGIC)?;
            out.write_all(&(list.len() as u32).to_le_bytes())?;
            out.write_all(&list)?;
            io::copy(&mut packs, &mut out)?;
            out.flush()
        };
        write().map_err(io)
    }

    /// Takes a packed commit in. What is not the commit, or not whole, is refused, and nothing of it stays.
    pub fn unpack(&self, pin: &GitPin, file: &File) -> Result<(), GitError> {
        let fault = |fault| GitError::Pack { url: pin.url.to_string(), fault };
        let mut reader = BufReader::new(file);
        let mut magic = [0; MAGIC.len()];
        let mut length = [0; 4];
        let head = reader.read_exact(&mut magic).and_then(|()| reader.read_exact(&mut length));
        head.map_err(|_| fault("is cut short"))?;
        let length = u32::from_le_bytes(length);
        if magic != *MAGIC || length > MAX_LIST {
            return Err(fault("is not one, or of a later release"));
        }
        let mut list = vec![0; length as usize];
        reader.read_exact(&mut list).map_err(|_| fault("is cut short"))?;
        let list: Vec<Listed> =
            serde_json::from_slice(&list).map_err(|_| fault("has no list that can be read"))?;
        if list.len() > MAX_REPOSITORIES || list.iter().any(|listed| listed.size > MAX_PACK) {
            return Err(fault("has more in it than is taken"));
        }
        // Beside the stores until it is proven: what is refused must not look fetched later.
        let scratch = tempfile::Builder::new().prefix(".unpack-").tempdir_in(&self.root);
        let scratch = scratch.map_err(|source| GitError::io(&self.root, source))?;
        let proving = GitStore { bounds: self.bounds, ..GitStore::open(scratch.path())? };
        for Listed { url, commit, size } in list {
            let commit = Oid::from_str(&commit).map_err(|_| fault("names a commit that is none"))?;
            let repository = proving.repository(&url, Came::Packed)?;
            read_pack(&repository, &mut (&mut reader).take(size)).map_err(|source| {
                // libgit2 tells it in the system's words alone.
                match tells_full_disk(source.message()) {
                    true => GitError::git("take in a pack of", &url, source),
                    false => fault("is damaged"),
                }
            })?;
            let part = Part { path: String::new(), url, commit };
            if !proving.mark_whole(&repository, &part)? {
                return Err(fault("lacks files of a commit"));
            }
        }
        let parts = match proving.whole(pin, &BTreeSet::new()) {
            Ok(parts) => parts,
            Err(GitError::NotHere { .. }) => {
                return Err(fault("lacks the commit, or one of its submodules"));
            }
            Err(error) => return Err(error),
        };
        for Held { part, repository, .. } in parts {
            let to = self.repository(&part.url, Came::Packed)?;
            let copied = copy_commit(&repository, &to, part.commit);
            copied.map_err(|source| GitError::git("take in", &part.url, source))?;
            self.mark_whole(&to, &part)?;
        }
        Ok(())
    }
}

/// Copies a commit and its files between two stores of this node.
pub(super) fn copy_commit(from: &Repository, to: &Repository, commit: Oid) -> Result<(), git2::Error> {
    // Where it goes to in the end: the system's own folder may be a small one in memory.
    let mut pack = tempfile::tempfile_in(to.path()).map_err(to_git)?;
    write_pack(from, commit, &mut pack, |_| true)?;
    pack.seek(SeekFrom::Start(0)).map_err(to_git)?;
    read_pack(to, &mut pack)
}

/// Writes a commit and its files as a pack. `step` is told often how many bytes more there are, and whether to go on.
pub(super) fn write_pack(
    repository: &Repository,
    commit: Oid,
    out: &mut File,
    step: impl Fn(u64) -> bool,
) -> Result<(), git2::Error> {
    let mut builder = repository.packbuilder()?;
    builder.set_threads(1);
    builder.set_progress_callback(|_, _, _| step(0))?;
    builder.insert_commit(commit)?;
    let mut failed = None;
    builder.foreach(|bytes| match out.write_all(bytes) {
        Ok(()) => step(bytes.len() as u64),
        Err(error) => {
            failed = Some(error);
            false
        }
    })?;
    failed.map_or(Ok(()), |error| Err(to_git(error)))
}

pub(super) fn read_pack(repository: &Repository, pack: &mut impl Read) -> Result<(), git2::Error> {
    let odb = repository.odb()?;
    let mut writer = odb.packwriter()?;
    io::copy(pack, &mut writer).map_err(to_git)?;
    writer.commit()?;
    Ok(())
}

fn to_git(error: io::Error) -> git2::Error {
    git2::Error::from_str(&error.to_string())
}
