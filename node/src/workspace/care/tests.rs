//! Workspaces that are laid out by hand, looked after.

mod sweep;
mod verify;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use protocol::{
    BlobHash, BlobRef, CodeHash, CodeSpec, EnvironmentKey, GitPin, Lockfile, PublisherKey, WantedWorkspace,
    WorkflowVersion, WorkspaceState,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::policy::Policy;
use crate::workspace::Workspace;
use crate::workspace::code::CodeTrees;
use crate::workspace::git::tests::Upstream;
use crate::workspace::git::{Fetching, GitStore};
use crate::workspace::record::WorkspaceRecord;
use crate::workspace::shelf::Whole;

/// A node's folder, and whoever looks after it.
struct Kept {
    folder: tempfile::TempDir,
    care: Caretaker,
    shelf: Shelf,
    wants: watch::Sender<Option<WantWorkspaces>>,
}

impl Kept {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = BlobStore::open(folder.path().join("blobs")).await.expect("a store");
        let root = folder.path().join("workspaces");
        let (shelf, wants) = (Shelf::new(root.join("ready")), watch::Sender::new(None));
        Self { folder, care: Caretaker::new(root, store), shelf, wants }
    }

    /// As a running node looks after it.
    fn running(&self) -> Caretaker {
        self.care.clone().with_node(self.shelf.clone(), self.wants.subscribe())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join("workspaces").join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        fs::write(path, bytes).expect("written");
    }

    /// A workspace of this workflow with 100 bytes of code of this commit and 1000 bytes of this environment.
    fn lay_out(&self, workflow: &str, commit: u8, environment: u8) -> LockfileHash {
        let pin = json!({ "url": "https://example.org/ComfyUI", "commit": format!("{commit:040}") });
        let package = json!({ "name": workflow, "version": "1" });
        let lockfile = json!({ "format": 1, "comfyui": pin, "packages": [package] });
        let lockfile = Lockfile::parse(lockfile.to_string().as_bytes()).expect("a lockfile");
        let ready = self.at("ready").join(lockfile.hash().to_string());
        let version = WorkflowVersion { name: workflow.parse().expect("a name"), version: 1 };
        let mut record = WorkspaceRecord::begin(&ready, &lockfile, &version).expect("written");
        let key = EnvironmentKey(BlobHash([environment; 32]));
        record.environment = Some(key);
        record.save(&ready).expect("written");
        self.write(&format!("code/{}/ComfyUI/main.py", record.code()), &[0; 100]);
        self.write(&format!("environments/{key}/lib.py"), &[0; 1000]);
        let byte_code = crate::workspace::program(record.code(), key);
        self.write(&format!("slots/byte-code/{byte_code}/lib.pyc"), &[0; 10]);
        self.write("uv/cache/lib.py", &[0; 1000]);
        lockfile.hash()
    }

    fn want(&self, lockfiles: &[LockfileHash]) {
        let wanted = |lockfile: &LockfileHash| WantedWorkspace {
            workflow: WorkflowVersion { name: "new".parse().expect("a name"), version: 3 },
            lockfile: *lockfile,
            document: BlobRef::of(b""),
            classes: BTreeSet::new(),
            models: BTreeSet::new(),
            providers: vec![],
            resolution: None,
        };
        let wanted = lockfiles.iter().map(wanted).collect();
        self.wants.send_replace(Some(WantWorkspaces { publisher: PublisherKey([0; 32]), wanted }));
        self.shelf.keep_only(&lockfiles.iter().copied().collect());
    }

    fn put(&self, lockfile: LockfileHash) {
        self.put_with(lockfile, CodeHash(BlobHash([0; 32])), EnvironmentKey(BlobHash([0; 32])));
    }

    fn put_with(&self, lockfile: LockfileHash, code: CodeHash, environment: EnvironmentKey) {
        let workspace = Workspace {
            lockfile,
            environment,
            code,
            python: PathBuf::new(),
            comfyui: PathBuf::new(),
            files: PathBuf::new(),
            classes: BTreeSet::new(),
            model_names: BTreeSet::new(),
            equivalent: false,
            left_out: vec![],
        };
        let whole = Whole { workspace: Arc::new(workspace), holds: vec![], resolution: None };
        self.shelf.put(lockfile, self.shelf.lend(lockfile, whole), WorkspaceState::Loaded);
    }
}

#[tokio::test]
async fn removal_takes_the_parts_that_no_other_workspace_uses() {
    let kept = Kept::new().await;
    let (first, second) = (kept.lay_out("first", 1, 1), kept.lay_out("second", 1, 2));
    let entries = kept.care.list().expect("listed");
    let entry = entries.iter().find(|entry| entry.lockfile == first).expect("it is there");
    assert_eq!((entry.code_bytes, entry.python_bytes, entry.state.as_str()), (100, 1000, "whole"));
    assert!(entry.own_bytes > 1000 && entry.own_bytes < 2000, "the code is not its own: {entry:?}");
    assert_eq!((entry.wanted, entry.workflows.first().map(String::as_str)), (None, Some("first@1")));

    let remove = |prefix: &str| kept.care.remove(Some(prefix));
    assert!(matches!(remove(""), Err(CareError::Ambiguous { count: 2, .. })));
    assert!(matches!(remove("nothing"), Err(CareError::Unknown(_))));
    assert!(matches!(kept.care.remove(None), Err(CareError::WantedUnknown)));
    let removed = remove(&first.to_string()[..20]).expect("removed");
    assert_eq!((removed.workspaces.as_slice(), removed.at_work.len()), (&[first][..], 0));
    assert_eq!(removed.bytes, entry.own_bytes + 10, "its byte code beside it");
    let count = |folder: &str| fs::read_dir(kept.at(folder)).expect("a folder").count();
    assert_eq!((count("ready"), count("code"), count("environments")), (1, 1, 1));
    assert_eq!(count("slots/byte-code"), 1, "that of the other one stays");
    assert!(!kept.at("uv/cache").exists(), "it would keep the files of the environment");
    remove(&second.to_string()).expect("removed");
    assert_eq!((count("ready"), count("code"), count("environments")), (0, 0, 0));
}

#[tokio::test]
async fn running_node_removes_nothing_that_is_at_work_or_while_it_builds() {
    let kept = Kept::new().await;
    let (wanted, used) = (kept.lay_out("wanted", 1, 1), kept.lay_out("used", 2, 2));
    let care = kept.running();
    assert!(matches!(care.remove(None), Err(CareError::WantedUnknown)), "no coordinator was heard");
    kept.want(&[wanted, used]);
    kept.put(used);
    let run = kept.shelf.usable(used).expect("it is ready");
    assert!(matches!(care.remove(Some(&used.to_string())), Err(CareError::AtWork(_))));
    kept.want(&[wanted]);
    let removed = care.remove(None).expect("done");
    assert_eq!((removed.workspaces.as_slice(), removed.at_work.as_slice()), (&[][..], &[used][..]));
    // A ComfyUI stays in it for a while after the run.
    let comfyui = Arc::clone(&run.workspace);
    drop(run);
    assert!(care.list().expect("listed").iter().any(|entry| entry.lockfile == used && entry.at_work));
    drop(comfyui);
    let building = kept.shelf.try_work().expect("nobody is at work");
    assert!(matches!(care.remove(None), Err(CareError::Building)));
    drop(building);
    assert_eq!(care.remove(None).expect("done").workspaces, [used]);
    // One that is wanted is built anew after that.
    kept.put(wanted);
    assert_eq!(care.remove(Some(&wanted.to_string())).expect("done").workspaces, [wanted]);
    assert_eq!(kept.shelf.state(wanted), Some(WorkspaceState::Waiting));
    let entry = care.list().expect("listed").pop().expect("it is to be");
    assert_eq!(
        (entry.state.as_str(), entry.workflows.first().map(String::as_str)),
        ("waiting", Some("new@3"))
    );
}

#[tokio::test]
async fn quota_costs_the_least_recently_used_that_nobody_wants() {
    let kept = Kept::new().await;
    let lockfiles: Vec<_> = (1..=4).map(|n| kept.lay_out(&format!("w{n}"), n, n)).collect();
    for (age, lockfile) in [4, 1, 3, 2].into_iter().zip(&lockfiles) {
        let record = kept.shelf.folder_of(*lockfile).join("workspace.json");
        let used = SystemTime::now() - Duration::from_secs(age * 3600);
        fs::File::open(record).expect("there").set_modified(used).expect("own file");
    }
    let care = kept.running();
    for number in 1..=4 {
        kept.lay_out_wheel(number);
    }
    let total = care.disk_bytes().expect("measured");
    // What no workspace needs costs none of them.
    let left = kept.lay_out_wheel(5);
    assert!(care.disk_bytes().expect("measured") > total);
    assert_eq!(care.evict(0).expect("done"), Removed::default(), "what is wanted is not known");
    // The oldest is wanted.
    kept.want(&lockfiles[..1]);
    assert_eq!(care.evict(total).expect("done").workspaces, []);
    assert!(!left.exists());
    // The second names of what is installed go before any workspace.
    assert_eq!(care.evict(total - 1).expect("done").workspaces, []);
    let total = care.disk_bytes().expect("measured");
    assert_eq!(care.evict(total - 1).expect("done").workspaces, [lockfiles[2]]);
    assert_eq!(care.evict(0).expect("done").workspaces, [lockfiles[3], lockfiles[1]]);
    assert!(kept.shelf.folder_of(lockfiles[0]).exists());
}

#[tokio::test]
async fn what_cannot_be_counted_is_listed_evicted_and_removed_all_the_same() {
    let kept = Kept::new().await;
    for (workflow, number) in [("evicted", 1), ("removed", 2)] {
        kept.lay_out(workflow, number, number);
        let deep = format!("slots/byte-code/{number}/{}file", "d/".repeat(300));
        kept.write(&deep, b"far below");
        kept.write(&deep.replace("slots/byte-code", "uv/cache"), b"far below");
    }
    assert_eq!(kept.care.list().expect("listed").len(), 2);
    kept.want(&[]);
    let care = kept.running();
    assert_eq!(care.evict(2500).expect("done").workspaces.len(), 1);
    for number in [1, 2] {
        assert!(!kept.at(&format!("slots/byte-code/{number}")).exists());
    }
    let left = kept.care.list().expect("listed")[0].lockfile;
    kept.write(&format!("ready/{left}/{}file", "d/".repeat(300)), b"far below");
    assert_eq!(kept.care.remove(Some(&left.to_string())).expect("removed").workspaces, [left]);
    assert!(kept.care.list().expect("listed").is_empty());
}

#[tokio::test]
async fn name_that_is_no_text_costs_no_folder() {
    use std::os::unix::ffi::OsStrExt;
    let kept = Kept::new().await;
    let (first, second) = (kept.lay_out("first", 1, 1), kept.lay_out("second", 2, 2));
    for folder in ["code", "environments", "ready"] {
        fs::create_dir(kept.at(folder).join(std::ffi::OsStr::from_bytes(b"\xff"))).expect("made");
    }
    kept.care.remove(Some(&first.to_string())).expect("removed");
    let entries = kept.care.list().expect("listed");
    assert_eq!(
        entries.iter().map(|entry| (entry.lockfile, entry.state.as_str())).collect::<Vec<_>>(),
        [(second, "whole")]
    );
}

#[tokio::test]
async fn drafts_of_a_killed_build_are_cleared_and_nothing_else() {
    let kept = Kept::new().await;
    let lockfile = kept.lay_out("kept", 1, 1);
    for path in
        ["code/.draft/tree/main.py", "environments/.x-1/environment/bin/python", "git/.y/z", "slots/.z/1/a"]
    {
        kept.write(path, b"half");
    }
    kept.write("uv/temporary/build/x", b"half");
    kept.write("git/a.git/objects/pack/pack_git2_q5dAcr", b"half");
    kept.write("git/a.git/objects/pack/pack-1.pack", b"whole");
    let place = format!("ready/{lockfile}/files/models/vae");
    kept.write(&format!("{place}/.hidden/a.safetensors"), b"a model");
    let link = format!("{place}/.farm-link-Ab3dEf");
    kept.write(&format!("{link}/link"), b"half");
    clear_drafts(&kept.at(""));
    let fetched = "git/a.git/objects/pack/pack_git2_q5dAcr";
    for path in
        ["code/.draft", "environments/.x-1", "git/.y", "slots/.z", "uv/temporary/build", fetched, &link]
    {
        assert!(!kept.at(path).exists(), "{path}");
    }
    assert!(kept.at(&format!("{place}/.hidden/a.safetensors")).exists());
    assert!(kept.at("git/a.git/objects/pack/pack-1.pack").exists());
    assert_eq!(kept.care.list().expect("listed")[0].state, "whole", "{lockfile}");
}
