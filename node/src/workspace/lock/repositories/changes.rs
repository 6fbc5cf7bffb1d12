//! What of a repository's files no clone would have, and whether that changes what runs.
//!
//! Not here: what is done about it, which is refusing it or taking the files along.

use protocol::is_code;

use crate::workspace::git::LocalRepository;
use crate::workspace::lock::error::What;
use crate::workspace::lock::{Fault, Findings, some_of};

/// The folders of ComfyUI that are its user's: what differs there is no other ComfyUI.
const OF_THE_USER: [&str; 8] =
    ["models/", "input/", "output/", "temp/", "user/", "custom_nodes/", "venv/", ".venv/"];
/// What Python makes anew.
const CACHE: &str = "__pycache__";
/// How many files are named.
const NAMED: usize = 3;

/// The files of a repository that a clone at its commit would not have as they are here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Those that are changed, and new ones that are code.
    code: Vec<String>,
    /// Those of which the commit has a pointer, and git-lfs the bytes.
    pointers: Vec<String>,
    /// New ones that are no code, which code may read all the same.
    others: Vec<String>,
}

impl Changes {
    /// Those of this repository.
    pub(super) fn of(what: &What, repository: &LocalRepository, findings: &mut Findings) -> Self {
        let read = repository.pointers().and_then(|pointers| Ok((pointers, repository.differences()?)));
        let (pointers, differences) = match read {
            Ok(read) => read,
            Err(fault) => {
                findings.faults.push(Fault::Git { what: what.clone(), fault });
                return Self::default();
            }
        };
        let mut changes = Self { pointers, ..Self::default() };
        for difference in differences {
            let path = difference.path;
            if !matters(what, &path) || changes.pointers.contains(&path) {
                continue;
            }
            // By which people start it, and which it never starts by itself.
            let is_start = matches!(what, What::ComfyUi) && path.ends_with(".sh");
            match difference.is_new && (is_start || !is_code(&path)) {
                true => changes.others.push(path),
                false => changes.code.push(path),
            }
        }
        changes
    }

    /// Whether there are any.
    pub(super) fn are_any(&self) -> bool {
        *self != Self::default()
    }

    /// Refuses what cannot be left behind, and names the rest.
    pub(super) fn tell(self, what: What, findings: &mut Findings) {
        let Self { code, pointers, others } = self;
        if !code.is_empty() {
            findings.faults.push(Fault::Changed { what: what.clone(), files: named(&code) });
        }
        if !pointers.is_empty() {
            findings.faults.push(Fault::Pointers { what: what.clone(), files: named(&pointers) });
        }
        if !others.is_empty() {
            let hint = match &what {
                What::ComfyUi => String::new(),
                What::CustomNode(name) => {
                    format!("; `--carry {name}` or `--dirty carry` takes all its files along")
                }
            };
            findings.notes.push(format!(
                "{what} has new files that are not in its commit, and they stay here: {}{hint}",
                named(&others)
            ));
        }
    }
}

/// Whether a file of this path is of those that run, or are read by what runs.
fn matters(what: &What, path: &str) -> bool {
    let is_made_anew = path.split('/').any(|part| part == CACHE);
    match what {
        What::ComfyUi => !is_made_anew && !OF_THE_USER.iter().any(|folder| path.starts_with(folder)),
        What::CustomNode(_) => !is_made_anew,
    }
}

fn named(files: &[String]) -> String {
    some_of(files.iter().map(|file| format!("`{file}`")).collect(), NAMED)
}
