//! A repository as it lies in somebody's folder: where it came from, at which commit it is, and what of it
//! is not as that commit has it.
//!
//! Only reads. Not here: which differences matter.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use git2::{ErrorCode, ObjectType, Repository, Status, StatusOptions, TreeWalkMode, TreeWalkResult};
use protocol::GitCommit;

use super::GitError;
use super::checkout::{LONGEST_POINTER, is_lfs_pointer};

/// A repository with its files.
pub(in crate::workspace) struct LocalRepository {
    folder: PathBuf,
    repository: Repository,
}

/// An upstream of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::workspace) struct Remote {
    /// Its address.
    pub(in crate::workspace) url: String,
    /// Whether a branch of it that is known here has the commit.
    pub(in crate::workspace) has_commit: bool,
}

/// A file that is not as the commit has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::workspace) struct Difference {
    /// Where it lies in the folder.
    pub(in crate::workspace) path: String,
    /// Whether the commit has no such file.
    pub(in crate::workspace) is_new: bool,
}

impl LocalRepository {
    /// The repository of this very folder; `None` where it is none, whatever it lies in.
    pub(in crate::workspace) fn open(folder: &Path) -> Result<Option<Self>, GitError> {
        if !folder.join(".git").exists() {
            return Ok(None);
        }
        let opened = Repository::open(folder);
        let repository = opened.map_err(|source| fail("open", folder, source))?;
        Ok(Some(Self { folder: folder.to_owned(), repository }))
    }

    /// The addresses of its remotes: those of which a branch is known here that has the commit go first, then that which
    /// its own branch follows, then `origin`. User names and tokens are left out.
    pub(in crate::workspace) fn remotes(&self) -> Vec<Remote> {
        let followed = || {
            let head = self.repository.head().ok()?;
            let remote = self.repository.branch_upstream_remote(head.name().ok()?).ok()?;
            remote.as_str().ok().map(str::to_owned)
        };
        let (followed, names) = (followed(), self.repository.remotes());
        let named = |name: &str| {
            let url = self.repository.find_remote(name).ok()?.url().ok().map(without_user)?;
            let has_commit = self.is_behind(&[&format!("refs/remotes/{name}/*")]);
            let place = (!has_commit, followed.as_deref() != Some(name), name != "origin");
            (!url.is_empty()).then_some((place, Remote { url, has_commit }))
        };
        let mut remotes: Vec<_> = names.iter().flatten().flatten().flatten().filter_map(named).collect();
        remotes.sort_by_key(|(place, _)| *place);
        remotes.into_iter().map(|(_, remote)| remote).collect()
    }

    /// The commit that its files are at; `None` where nothing was ever committed.
    pub(in crate::workspace) fn commit(&self) -> Result<Option<GitCommit>, GitError> {
        match self.repository.head().and_then(|head| head.peel_to_commit()) {
            Ok(commit) => Ok(commit.id().to_string().parse().ok()),
            Err(error) if matches!(error.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => Ok(None),
            Err(error) => Err(fail("read", &self.folder, error)),
        }
    }

    /// Whether the commit has this path.
    pub(in crate::workspace) fn has(&self, path: &str) -> bool {
        let tree = self.repository.head().and_then(|head| head.peel_to_tree());
        tree.is_ok_and(|tree| tree.get_path(Path::new(path)).is_ok())
    }

    /// Whether a branch or tag of some upstream, as far as is known here, has the commit.
    pub(in crate::workspace) fn is_published(&self) -> bool {
        self.is_behind(&["refs/remotes/*", "refs/tags/*"])
    }

    /// Whether one of these references has the commit.
    fn is_behind(&self, globs: &[&str]) -> bool {
        let Some(head) = self.repository.head().ok().and_then(|head| head.target()) else { return false };
        let known = globs.iter().flat_map(|glob| {
            let references = self.repository.references_glob(glob);
            let commits = references.into_iter().flatten().flatten();
            commits.filter_map(|reference| Some(reference.peel_to_commit().ok()?.id())).collect::<Vec<_>>()
        });
        let mut known: Vec<_> = known.collect();
        known.sort_unstable();
        known.dedup();
        known.contains(&head)
            || known.iter().any(|tip| self.repository.graph_descendant_of(*tip, head).unwrap_or(false))
    }

    /// All files that are not as the commit has them, also such that git was never told of; none of those
    /// that it is told to pass over.
    pub(in crate::workspace) fn differences(&self) -> Result<Vec<Difference>, GitError> {
        let mut options = StatusOptions::new();
        options.include_untracked(true).recurse_untracked_dirs(true).include_ignored(false);
        let statuses = self.repository.statuses(Some(&mut options));
        let statuses = statuses.map_err(|source| fail("compare", &self.folder, source))?;
        let difference = |entry: git2::StatusEntry<'_>| Difference {
            path: String::from_utf8_lossy(entry.path_bytes()).into_owned(),
            is_new: entry.status() == Status::WT_NEW,
        };
        Ok(statuses.iter().map(difference).collect())
    }

    /// The files of which the commit has only a pointer to where git-lfs keeps them, and the folder the bytes; with those
    /// of submodules.
    pub(in crate::workspace) fn pointers(&self) -> Result<Vec<String>, GitError> {
        let read = |source| fail("read", &self.folder, source);
        let Ok(tree) = self.repository.head().and_then(|head| head.peel_to_tree()) else {
            return Ok(Vec::new());
        };
        let odb = self.repository.odb().map_err(read)?;
        let (mut pointers, mut modules) = (Vec::new(), Vec::new());
        let walked = tree.walk(TreeWalkMode::PreOrder, |folder, entry| {
            let path = format!("{folder}{}", entry.name().unwrap_or_default());
            // What a partial clone does not have here is as good as read: git itself has put it into the folder.
            let is_small = || odb.read_header(entry.id()).is_ok_and(|(size, _)| size < LONGEST_POINTER);
            let is_pointer = || odb.read(entry.id()).is_ok_and(|blob| is_lfs_pointer(blob.data()));
            match entry.kind() {
                Some(ObjectType::Commit) => modules.push(path),
                Some(ObjectType::Blob) if is_small() && is_pointer() => pointers.push(path),
                _ => {}
            }
            TreeWalkResult::Ok
        });
        walked.map_err(read)?;
        pointers.retain(|path| !is_pointer_here(&self.folder.join(path)));
        for module in modules {
            let inner = Self::open(&self.folder.join(&module))?.map(|inner| inner.pointers()).transpose()?;
            pointers.extend(inner.unwrap_or_default().into_iter().map(|path| format!("{module}/{path}")));
        }
        Ok(pointers)
    }

    /// Copies the files that git knows of to a new folder, as they are here; with those of submodules.
    pub(in crate::workspace) fn copy_to(&self, folder: &Path) -> io::Result<()> {
        let read = |source: git2::Error| io::Error::other(source);
        fs::create_dir_all(folder)?;
        for entry in self.repository.index().map_err(read)?.iter() {
            let Ok(path) = std::str::from_utf8(&entry.path) else { continue };
            let (from, to) = (self.folder.join(path), folder.join(path));
            let Ok(kind) = fs::symlink_metadata(&from) else { continue };
            fs::create_dir_all(to.parent().unwrap_or(folder))?;
            if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
            } else if kind.is_file() {
                fs::copy(&from, &to)?;
            } else if let Ok(Some(submodule)) = Self::open(&from) {
                submodule.copy_to(&to)?;
            }
        }
        Ok(())
    }

    /// The files and whole folders that git is told to pass over.
    pub(in crate::workspace) fn passed_over(&self) -> Result<BTreeSet<String>, GitError> {
        let mut options = StatusOptions::new();
        options.include_ignored(true).recurse_ignored_dirs(false).include_untracked(false);
        let statuses = self.repository.statuses(Some(&mut options));
        let statuses = statuses.map_err(|source| fail("compare", &self.folder, source))?;
        let ignored = statuses.iter().filter(|entry| entry.status() == Status::IGNORED);
        let path = |entry: git2::StatusEntry<'_>| {
            String::from_utf8_lossy(entry.path_bytes()).trim_end_matches('/').to_owned()
        };
        Ok(ignored.map(path).collect())
    }
}

/// Whether a file is a pointer itself, as where git-lfs is not installed; one that is not there is told elsewhere.
fn is_pointer_here(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path) else { return true };
    let mut begin = Vec::new();
    file.take(LONGEST_POINTER as u64).read_to_end(&mut begin).is_ok() && is_lfs_pointer(&begin)
}

fn fail(attempt: &'static str, folder: &Path, source: git2::Error) -> GitError {
    GitError::Git { attempt, url: folder.display().to_string(), source }
}

/// An address over http or https without the user name and password that may stand in it.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| scheme.starts_with("http")) else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::Upstream;
    use super::*;

    #[test]
    fn clone_tells_its_upstream_commit_and_differences() {
        let upstream = Upstream::new();
        let pin = upstream.commit(&[("main.py", 0o100644, "one\n"), (".gitignore", 0o100644, "*.log\n")]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("clone");
        let clone = Repository::clone(pin.url.as_str(), &path).expect("cloned");
        let local = LocalRepository::open(&path).expect("opens").expect("is one");
        let addresses = |local: &LocalRepository| -> Vec<String> {
            local.remotes().into_iter().map(|remote| remote.url).collect()
        };
        assert_eq!(addresses(&local), [pin.url.as_str()]);
        assert_eq!(local.commit().expect("read"), Some(pin.commit));
        assert!(local.is_published() && local.has("main.py") && !local.has("other.py"));
        assert_eq!(local.differences().expect("compared"), []);

        for (name, text) in [("main.py", "two\n"), ("other.py", "x\n"), ("x.log", "x\n")] {
            fs::write(path.join(name), text).expect("own folder");
        }
        let differences = local.differences().expect("compared");
        let difference = |path: &str, is_new| Difference { path: path.to_owned(), is_new };
        assert_eq!(differences, [difference("main.py", false), difference("other.py", true)]);
        local.copy_to(&folder.path().join("copy")).expect("copied");
        let copied = |name: &str| fs::read_to_string(folder.path().join("copy").join(name)).ok();
        assert_eq!((copied("main.py"), copied("other.py")), (Some("two\n".to_owned()), None));
        fs::create_dir(path.join("logs.log")).expect("own folder");
        fs::write(path.join("logs.log/y"), "y\n").expect("own folder");
        let passed_over = ["logs.log", "x.log"].map(str::to_owned);
        assert_eq!(local.passed_over().expect("compared"), passed_over.into());

        let tree = clone.head().expect("a head").peel_to_tree().expect("a tree");
        let author = git2::Signature::new("a", "a@example.org", &git2::Time::new(0, 0)).expect("a name");
        let parent = clone.head().expect("a head").peel_to_commit().expect("a commit");
        clone.commit(Some("HEAD"), &author, &author, "own", &tree, &[&parent]).expect("committed");
        assert!(!local.is_published(), "nobody else has a commit that was never pushed");
        clone.remote_set_url("origin", "https://me:secret@example.org/x.git").expect("set");
        assert_eq!(addresses(&local), ["https://example.org/x.git"]);
    }

    #[test]
    fn folder_in_a_repository_is_none_itself_and_an_empty_repository_has_no_commit() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Repository::init(folder.path()).expect("made");
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).expect("own folder");
        assert!(LocalRepository::open(&inside).expect("looked at").is_none());
        let local = LocalRepository::open(folder.path()).expect("opens").expect("is one");
        assert_eq!((local.remotes(), local.commit().expect("read")), (Vec::new(), None));
    }
}
