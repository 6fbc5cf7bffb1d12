//! The files of a code tree that git-lfs keeps elsewhere: the commit has only pointers to them.
//!
//! Which they are lies beside the tree, so that people are told also after a restart. Not here: how such a file is told.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::os::file::replace;

/// The file beside a tree with the paths of the pointers of each part.
const FILE: &str = "pointers.json";
/// How many files of a part are named.
const NAMED: usize = 3;

/// Notes them beside a tree, if there are any.
pub(super) fn keep(folder: &Path, pointers: Vec<(String, Vec<String>)>) -> io::Result<()> {
    let pointers: BTreeMap<_, _> = pointers.into_iter().filter(|(_, files)| !files.is_empty()).collect();
    if pointers.is_empty() {
        return Ok(());
    }
    replace(&folder.join(FILE), &serde_json::to_vec(&pointers)?)
}

/// What the tree in this folder is without for it, in words.
pub(in crate::workspace) fn left_out(folder: &Path) -> Vec<String> {
    let kept = std::fs::read(folder.join(FILE)).ok();
    let kept: Option<BTreeMap<String, Vec<String>>> =
        kept.and_then(|kept| serde_json::from_slice(&kept).ok());
    let told = |(name, files): (String, Vec<String>)| {
        let named: Vec<String> = files.iter().take(NAMED).map(|file| format!("`{file}`")).collect();
        let more = match files.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "files of `{name}` are left out: git-lfs keeps them elsewhere, and its commit has only pointers to them ({}{more}); `comfy-farm pack --carry {name}` takes them along from a folder that has them",
            named.join(", ")
        )
    };
    kept.unwrap_or_default().into_iter().map(told).collect()
}
