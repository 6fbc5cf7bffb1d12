//! What is on disk, what belongs to what, and how much it takes. Blocks.
//!
//! Not here: what is removed of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use protocol::{LockfileHash, WorkspaceState};
use tracing::warn;

use super::{CareError, Caretaker, WorkspaceEntry};
use crate::os::beneath;
use crate::workspace::code;
use crate::workspace::log::PrepareLog;
use crate::workspace::program;
use crate::workspace::python::is_equivalent;
use crate::workspace::record::WorkspaceRecord;
use crate::workspace::shelf::Shelf;

/// The file in a part that several share which says that it is not what it is to be.
const DAMAGED: &str = "damaged";
/// How deep folders are counted.
const DEEPEST: usize = 200;

/// A workspace on disk, as far as it is made.
pub(super) struct Kept {
    pub(super) lockfile: LockfileHash,
    pub(super) folder: PathBuf,
    /// `None` for one that was broken off before anything was made, and for one whose record cannot be read.
    pub(super) record: Option<WorkspaceRecord>,
    /// Why its record cannot be read, as where a later release wrote it.
    pub(super) unread: Option<String>,
}

impl Kept {
    /// The folders that it shares with those of the same pins: its code, its environment.
    pub(super) fn parts(&self, root: &Path) -> Vec<PathBuf> {
        let Some(record) = &self.record else { return Vec::new() };
        let environment = record.environment.map(|key| root.join("environments").join(key.to_string()));
        [root.join("code").join(record.code().to_string())].into_iter().chain(environment).collect()
    }

    /// What the byte code of its processes is kept under.
    pub(super) fn program(&self) -> Option<String> {
        let record = self.record.as_ref()?;
        Some(program(record.code(), record.environment?))
    }

    /// Whether everything is there.
    fn is_whole(&self, root: &Path) -> bool {
        let Some(record) = &self.record else { return false };
        let mut models = record.lockfile.models.iter().filter(|model| !model.disabled);
        record.environment.is_some()
            && self.parts(root).iter().all(|part| part.is_dir())
            && models.all(|model| self.folder.join("files").join(model.path.as_str()).is_file())
    }

    /// When it was last used, in seconds since 1970.
    pub(super) fn used(&self) -> Option<u64> {
        let used = WorkspaceRecord::used(&self.folder).ok()?;
        used.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
    }
}

impl Caretaker {
    /// All workspaces on disk.
    pub(super) fn kept(&self) -> Result<Vec<Kept>, CareError> {
        let ready = self.root.join("ready");
        let mut kept = Vec::new();
        for name in names(&ready).map_err(CareError::io("reading", &ready))? {
            let Ok(hash) = name.parse() else { continue };
            let (lockfile, folder) = (LockfileHash(hash), ready.join(&name));
            let (record, unread) = match WorkspaceRecord::load(&folder) {
                Ok(record) => (record, None),
                Err(error) => (None, Some(error.to_string())),
            };
            kept.push(Kept { lockfile, folder, record, unread });
        }
        Ok(kept)
    }

    /// The ones whose lockfile begins like this; all of them for `None`.
    pub(super) fn named(&self, prefix: Option<&str>) -> Result<Vec<Kept>, CareError> {
        let mut kept = self.kept()?;
        if let Some(prefix) = prefix {
            kept.retain(|kept| kept.lockfile.to_string().starts_with(prefix));
            match kept.len() {
                0 => return Err(CareError::Unknown(prefix.to_owned())),
                1 => {}
                count => return Err(CareError::Ambiguous { prefix: prefix.to_owned(), count }),
            }
        }
        Ok(kept)
    }

    /// Every workspace that is here or is to be, the last used first.
    pub(super) fn list(&self) -> Result<Vec<WorkspaceEntry>, CareError> {
        let kept = self.kept()?;
        let mut users: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for part in kept.iter().flat_map(|kept| kept.parts(&self.root)) {
            *users.entry(part).or_default() += 1;
        }
        let sizes: BTreeMap<_, _> = users.keys().map(|part| (part.clone(), bytes(part))).collect();
        let mut entries: Vec<_> = kept
            .iter()
            .map(|kept| {
                let parts = kept.parts(&self.root);
                let of = |index: usize| parts.get(index).map_or(0, |part| sizes[part]);
                let own = parts.iter().filter(|part| users[*part] == 1).map(|part| sizes[part]);
                let models = kept.record.iter().flat_map(|record| &record.lockfile.models);
                let models = models.filter(|model| !model.disabled).map(|model| model.size);
                let environment = kept.record.as_ref().and_then(|record| record.environment);
                let is_proven = environment.is_some_and(|key| Shelf::was_proven(&kept.folder, key));
                let on_disk = match kept.is_whole(&self.root) {
                    true if is_proven => "proven",
                    true => "whole",
                    false => "incomplete",
                };
                let entry = self.entry(kept.lockfile, on_disk);
                let left_out = || {
                    let mut left_out =
                        kept.record.as_ref().map(WorkspaceRecord::left_out).unwrap_or_default();
                    left_out.extend(parts.first().map(|code| code::left_out(code)).unwrap_or_default());
                    (!left_out.is_empty()).then(|| left_out.join("; "))
                };
                let unread = || {
                    let error = kept.unread.as_ref()?;
                    Some(format!(
                        "its record cannot be read, so what it needs is not known: `comfy-farm workspace rm {}` ({error})",
                        kept.lockfile
                    ))
                };
                WorkspaceEntry {
                    detail: entry.detail.clone().or_else(unread).or_else(left_out),
                    workflows: kept
                        .record
                        .as_ref()
                        .map(|record| record.workflows.clone())
                        .unwrap_or_default(),
                    code_bytes: of(0),
                    python_bytes: of(1),
                    model_bytes: models.fold(0, u64::saturating_add),
                    own_bytes: own.sum::<u64>() + bytes(&kept.folder),
                    used: kept.used(),
                    equivalent: parts.get(1).is_some_and(|environment| is_equivalent(environment)),
                    ..entry
                }
            })
            .collect();
        entries.extend(self.not_begun(&kept));
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(entries)
    }

    /// Those that are wanted and of which nothing is on disk yet.
    fn not_begun(&self, kept: &[Kept]) -> Vec<WorkspaceEntry> {
        let Some(running) = &self.running else { return Vec::new() };
        let want = running.wanted.borrow();
        let wanted = want.iter().flat_map(|want| &want.wanted);
        let new = wanted.filter(|wanted| !kept.iter().any(|kept| kept.lockfile == wanted.lockfile));
        let entry = |wanted: &protocol::WantedWorkspace| WorkspaceEntry {
            workflows: [wanted.workflow.to_string()].into(),
            ..self.entry(wanted.lockfile, "waiting")
        };
        new.map(entry).collect()
    }

    /// What the node says of one; as it is on disk, where it says nothing.
    fn entry(&self, lockfile: LockfileHash, on_disk: &str) -> WorkspaceEntry {
        let shelf = self.running.as_ref().map(|running| &running.shelf);
        let state = shelf.and_then(|shelf| shelf.state(lockfile));
        let detail = state.as_ref().and_then(|state| match state {
            WorkspaceState::Preparing(preparing) => Some(preparing.to_string()),
            WorkspaceState::Failed { step, reason } => Some(format!("{step}: {reason}")),
            WorkspaceState::Refused { reason } => Some(reason.clone()),
            _ => None,
        });
        let log = PrepareLog::last_failed(&self.root, lockfile);
        WorkspaceEntry {
            lockfile,
            workflows: BTreeSet::new(),
            state: state.map_or(on_disk, |state| state.as_str()).to_owned(),
            detail,
            log: log.is_file().then_some(log),
            equivalent: false,
            wanted: self.wanted().map(|wanted| wanted.contains(&lockfile)),
            at_work: shelf.is_some_and(|shelf| shelf.is_at_work(lockfile)),
            code_bytes: 0,
            python_bytes: 0,
            model_bytes: 0,
            own_bytes: 0,
            used: None,
        }
    }

    /// How much disk everything of workspaces takes but what runs write: a file under several names once, and what
    /// cannot be read not at all.
    pub(super) fn disk_bytes(&self) -> Result<u64, CareError> {
        let (mut seen, mut total) = (HashSet::new(), 0);
        for name in names(&self.root).map_err(CareError::io("reading", &self.root))? {
            if name != "slots" {
                total += disk_bytes(&self.root.join(name), &mut seen, DEEPEST);
            }
        }
        Ok(total)
    }
}

/// Notes whether a part was found to be what it is to be, for whoever removes a workspace of it.
pub(super) fn note_damage(part: &Path, is_damaged: bool) {
    let note = part.join(DAMAGED);
    let noted = match is_damaged {
        true if part.is_dir() => std::fs::write(&note, b""),
        false if note.exists() => std::fs::remove_file(&note),
        _ => Ok(()),
    };
    if let Err(error) = noted {
        warn!(part = %part.display(), %error, "whether it is damaged is not remembered");
    }
}

/// Whether a part was found not to be what it is to be.
pub(super) fn is_damaged(part: &Path) -> bool {
    part.join(DAMAGED).exists()
}

/// The names in a folder, but for drafts and those that are no text; none, where there is no folder.
pub(super) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // What is no text is nothing of ours, and an empty name would be the folder itself.
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    Ok(names)
}

/// How many bytes a folder has; none, where it is not there. What a stranger's program made unreadable in it counts for
/// nothing, because it is to be listed and removed all the same.
pub(super) fn bytes(folder: &Path) -> u64 {
    let (bytes, unread) = beneath::readable_bytes(folder);
    if let Some(error) = unread.filter(|error| error.kind() != io::ErrorKind::NotFound) {
        warn!(folder = %folder.display(), %error, "not everything in it can be counted");
    }
    bytes
}

fn disk_bytes(path: &Path, seen: &mut HashSet<(u64, u64)>, depth: usize) -> u64 {
    let counted = std::fs::symlink_metadata(path).and_then(|metadata| {
        if !metadata.is_dir() {
            let is_new = metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino()));
            return Ok(if is_new { metadata.len() } else { 0 });
        }
        let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("it is too deep"))?;
        let entries = std::fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries.iter().map(|entry| disk_bytes(&entry.path(), seen, depth)).sum())
    });
    counted.unwrap_or_else(|error| {
        // It may have gone while we looked.
        if error.kind() != io::ErrorKind::NotFound {
            warn!(path = %path.display(), %error, "it cannot be counted");
        }
        0
    })
}
