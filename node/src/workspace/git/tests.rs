//! Real repositories on this machine, made by git2.

mod served;
mod hostile;
mod hosts;
mod slow;
mod upkeep;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use git2::{IndexEntry, IndexTime, Oid, Repository, Signature};
use protocol::GitPin;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use self::served::Served;
use super::*;
use crate::policy::Policy;

/// A repository that stands for an upstream.
pub(crate) struct Upstream {
    folder: TempDir,
    repository: Repository,
}

impl Upstream {
    pub(crate) fn new() -> Self {
        // Its name becomes that of a custom node's folder.
        let folder = tempfile::Builder::new().prefix("upstream-").tempdir().expect("a temporary folder");
        let repository = Repository::init_bare(folder.path()).expect("made");
        Self { folder, repository }
    }

    fn url(&self) -> String {
        format!("file://{}", self.folder.path().display())
    }

    /// Commits these files on its branch: path, mode, contents; a submodule's contents are its commit.
    pub(crate) fn commit(&self, files: &[(&str, u32, &str)]) -> GitPin {
        let mut index = git2::Index::new().expect("an index");
        for (path, mode, contents) in files {
            let id = match *mode {
                0o160000 => Oid::from_str(contents).expect("a commit"),
                _ => self.repository.blob(contents.as_bytes()).expect("written"),
            };
            let time = IndexTime::new(0, 0);
            index
                .add(&IndexEntry {
                    ctime: time,
                    mtime: time,
                    dev: 0,
                    ino: 0,
                    mode: *mode,
                    uid: 0,
                    gid: 0,
                    file_size: 0,
                    id,
                    flags: 0,
                    flags_extended: 0,
                    path: path.as_bytes().to_vec(),
                })
                .expect("added");
        }
        let tree = index.write_tree_to(&self.repository).expect("written");
        let tree = self.repository.find_tree(tree).expect("is there");
        let author = Signature::new("a", "a@example.org", &git2::Time::new(0, 0)).expect("a name");
        let parent = self.repository.head().ok().and_then(|head| head.peel_to_commit().ok());
        let parents: Vec<_> = parent.iter().collect();
        let id = self.repository.commit(Some("HEAD"), &author, &author, "x", &tree, &parents);
        let commit = id.expect("committed").to_string().parse().expect("a commit");
        GitPin::new(self.url().parse().expect("an address"), commit)
    }
}

/// A node's stores, and what it fetched.
struct Stores {
    folder: TempDir,
    store: GitStore,
    bytes: AtomicU64,
    cancel: CancellationToken,
}

impl Stores {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = GitStore::open(folder.path().join("git")).expect("opens");
        Self { folder, store, bytes: AtomicU64::new(0), cancel: CancellationToken::new() }
    }

    fn fetch_by(&self, pin: &GitPin, policy: &Policy) -> Result<(), GitError> {
        let progress = |bytes| self.bytes.store(bytes, Ordering::Relaxed);
        self.store.fetch(pin, &Fetching { policy, progress: &progress, cancel: &self.cancel })
    }

    fn fetch(&self, pin: &GitPin) -> Result<(), GitError> {
        self.fetch_by(pin, &Policy { private_origins: true, ..Policy::default() })
    }

    fn checkout(&self, pin: &GitPin) -> Result<BTreeMap<String, String>, GitError> {
        let into = self.folder.path().join(format!("tree-{}", pin.commit));
        self.store.checkout(pin, &into, &self.cancel)?;
        assert_eq!(self.store.differences(pin, &into)?, Vec::<String>::new());
        Ok(files(&into))
    }
}

/// All files below a folder, with their contents.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let (mut files, mut open) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                files.insert(name, fs::read_to_string(&path).expect("text"));
            }
        }
    }
    files
}

#[test]
fn commit_is_laid_out_as_it_was_made_and_a_later_one_beside_it() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let first = upstream.commit(&[("main.py", 0o100644, "one\r\n"), ("run.sh", 0o100755, "#!/bin/sh\n")]);
    let second = upstream.commit(&[("main.py", 0o100644, "two\n"), ("a/b.txt", 0o120000, "../main.py")]);
    stores.fetch(&first).expect("fetched");
    assert!(stores.store.holds(&first) && !stores.store.holds(&second), "nothing but what was asked for");
    assert!(stores.bytes.load(Ordering::Relaxed) > 0);
    let laid_out = stores.checkout(&first).expect("laid out");
    assert_eq!(laid_out["main.py"], "one\r\n");
    let script = stores.folder.path().join(format!("tree-{}/run.sh", first.commit));
    assert_eq!(fs::metadata(script).expect("is there").permissions().mode() & 0o777, 0o555);
    stores.fetch(&second).expect("fetched");
    assert_eq!(stores.checkout(&second).expect("laid out")["a/b.txt"], "two\n");
}

#[test]
fn changed_and_missing_files_are_found() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let pin = upstream.commit(&[("a", 0o100644, "a"), ("b", 0o100644, "b"), ("c", 0o100644, "c")]);
    stores.fetch(&pin).expect("fetched");
    let into = stores.folder.path().join("tree");
    stores.store.checkout(&pin, &into, &stores.cancel).expect("laid out");
    fs::remove_file(into.join("a")).expect("removed");
    fs::remove_file(into.join("b")).expect("removed");
    fs::write(into.join("b"), "x").expect("written");
    assert_eq!(stores.store.differences(&pin, &into).expect("compared"), ["a", "b"]);
}

#[test]
fn submodules_are_in_place_and_travel_in_the_pack() {
    let (inner, outer, stores) = (Upstream::new(), Upstream::new(), Stores::new());
    let pinned = inner.commit(&[("lib.py", 0o100644, "inner\n")]);
    inner.commit(&[("lib.py", 0o100644, "later\n")]);
    let modules = format!("[submodule \"lib\"]\n\tpath = vendor/lib\n\turl = {}\n", inner.url());
    let pin = outer.commit(&[
        (".gitmodules", 0o100644, &modules),
        ("vendor/lib", 0o160000, pinned.commit.as_str()),
        ("main.py", 0o100644, "outer\n"),
    ]);
    stores.fetch(&pin).expect("fetched");
    let laid_out = stores.checkout(&pin).expect("laid out");
    assert_eq!(laid_out["vendor/lib/lib.py"], "inner\n");

    let mut packed = tempfile::tempfile().expect("a file");
    stores.store.pack(&pin, &mut packed).expect("packed");
    // Another node, and both upstreams are gone.
    drop((inner, outer));
    let other = Stores::new();
    assert!(other.fetch(&pin).is_err());
    rewind(&mut packed);
    other.store.unpack(&pin, &packed).expect("unpacked");
    assert_eq!(other.checkout(&pin).expect("laid out"), laid_out);
}

/// The system's folder is the process's own, so this is in one of its own: this test again.
#[test]
fn nothing_is_staged_in_the_systems_temporary_folder() {
    const NAME: &str = "nothing_is_staged_in_the_systems_temporary_folder";
    const AGAIN: &str = "FARM_TEST_STAGING";
    if let Ok(given) = std::env::var(AGAIN) {
        let (root, pin): (PathBuf, GitPin) = serde_json::from_str(&given).expect("a folder and a pin");
        assert!(tempfile::tempfile().is_err(), "there is no such folder");
        let (policy, cancel) =
            (Policy { private_origins: true, ..Policy::default() }, CancellationToken::new());
        let store = GitStore::open(root.join("git")).expect("opens");
        let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
        store.fetch(&pin, &fetching).expect("fetched");
        let mut packed = File::create_new(root.join("packed")).expect("made");
        store.pack(&pin, &mut packed).expect("packed");
        let other = GitStore::open(root.join("other")).expect("opens");
        let packed = File::open(root.join("packed")).expect("is there");
        other.unpack(&pin, &packed).expect("unpacked");
        other.checkout(&pin, &root.join("tree"), &CancellationToken::new()).expect("laid out");
        return;
    }
    let (inner, outer) = (Upstream::new(), Upstream::new());
    let pinned = inner.commit(&[("lib.py", 0o100644, "inner\n")]);
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {}\n", inner.url());
    let pin = outer.commit(&[(".gitmodules", 0o100644, &modules), ("lib", 0o160000, pinned.commit.as_str())]);
    let root = tempfile::tempdir().expect("a temporary folder");
    let test = format!("{}::{NAME}", module_path!().split_once("::").expect("in a crate").1);
    let mut again = Command::new(std::env::current_exe().expect("this test"));
    again.args(["--exact", &test, "--nocapture"]).env("TMPDIR", root.path().join("missing"));
    again.env(AGAIN, serde_json::to_string(&(root.path(), &pin)).expect("JSON"));
    let output = again.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(root.path().join("tree/lib/lib.py")).expect("laid out"), "inner\n");
    // Of what was staged nothing stays.
    for store in ["git", "other"] {
        let left = fs::read_dir(root.path().join(store)).expect("a folder");
        let left: Vec<_> = left.map(|entry| entry.expect("an entry").file_name()).collect();
        assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".git")), "{left:?}");
    }
}

fn rewind(file: &mut File) {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(0)).expect("rewound");
}

#[test]
fn damaged_cut_and_other_packs_are_refused() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let pin = upstream.commit(&[("main.py", 0o100644, &"text\n".repeat(1000))]);
    let other_pin = Upstream::new().commit(&[("x", 0o100644, "x")]);
    stores.fetch(&pin).expect("fetched");
    let mut packed = tempfile::tempfile().expect("a file");
    stores.store.pack(&pin, &mut packed).expect("packed");
    rewind(&mut packed);
    let mut bytes = Vec::new();
    packed.read_to_end(&mut bytes).expect("read");
    let unpack = |bytes: &[u8], pin: &GitPin| {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        rewind(&mut file);
        Stores::new().store.unpack(pin, &file)
    };
    assert!(unpack(&bytes, &pin).is_ok());
    let is_refused = |result: Result<(), GitError>| matches!(result, Err(GitError::Pack { .. }));
    assert!(is_refused(unpack(&bytes[..bytes.len() - 30], &pin)));
    assert!(is_refused(unpack(&bytes[..5], &pin)));
    assert!(is_refused(unpack(&bytes, &other_pin)));
    let mut damaged = bytes.clone();
    let middle = bytes.len() - 60;
    damaged[middle] ^= 1;
    assert!(is_refused(unpack(&damaged, &pin)));
    let mut long = bytes;
    long[11..15].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(is_refused(unpack(&long, &pin)));
}

#[test]
fn commit_that_is_not_there_and_one_that_was_rewritten_are_told() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let pin = upstream.commit(&[("a", 0o100644, "a")]);
    let missing = GitPin { commit: "1".repeat(40).parse().expect("a commit"), ..pin.clone() };
    let error = stores.fetch(&missing).expect_err("nobody has it");
    assert!(matches!(error, GitError::NoCommit { .. }) && error.to_string().contains("rewritten"), "{error}");
    // Another history takes the branch, and the server gives what its branches have.
    let again = Upstream::new();
    let earlier = again.commit(&[("a", 0o100644, "a")]);
    let served = Served::start(&again, false);
    let branch = again.repository.head().expect("a branch").name().expect("a name").to_owned();
    again.repository.find_reference(&branch).expect("is there").delete().expect("deleted");
    again.commit(&[("b", 0o100644, "b")]);
    let error = stores.fetch(&served.pin(&earlier)).expect_err("nobody has it any more").to_string();
    for word in [earlier.commit.as_str(), &served.url, "history was rewritten", "record a commit"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let into = stores.folder.path().join("x");
    let error = stores.store.checkout(&pin, &into, &stores.cancel).expect_err("not fetched");
    assert!(matches!(error, GitError::NotHere { .. }), "{error}");
    assert!(!stores.folder.path().join("x").exists(), "nothing half-made stays");
}

#[test]
fn what_leads_outside_is_refused() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let pin = upstream.commit(&[("a/link", 0o120000, "../../etc/passwd")]);
    stores.fetch(&pin).expect("fetched");
    let error = stores.checkout(&pin).expect_err("it leads outside");
    assert!(matches!(error, GitError::Entry { .. }), "{error}");
}

#[test]
fn link_that_leads_outside_by_way_of_another_is_refused() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let links = [("a/b/x", 0o120000, "../.."), ("a/b/y", 0o120000, "x/../foo"), ("c", 0o100644, "c")];
    let pin = upstream.commit(&links);
    stores.fetch(&pin).expect("fetched");
    let error = stores.checkout(&pin).expect_err("it leads outside");
    assert!(error.to_string().contains("through another link"), "{error}");
}

#[test]
fn refused_pack_leaves_nothing_that_looks_fetched() {
    use std::io::{Seek, SeekFrom};
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let pin = upstream.commit(&[("a/main.py", 0o100644, "text\n")]);
    // A pack with the commit alone, without its files.
    let mut pack = git2::Buf::new();
    let mut builder = upstream.repository.packbuilder().expect("a builder");
    let commit = Oid::from_str(pin.commit.as_str()).expect("a commit");
    builder.insert_object(commit, None).expect("inserted");
    let root = upstream.repository.find_commit(commit).expect("is there").tree_id();
    builder.insert_object(root, None).expect("inserted");
    builder.write_buf(&mut pack).expect("packed");
    let list = serde_json::json!([{"url": pin.url, "commit": pin.commit, "size": pack.len()}]).to_string();
    let mut file = tempfile::tempfile().expect("a file");
    let head = [&b"farm-git/1\n"[..], &(list.len() as u32).to_le_bytes(), list.as_bytes()].concat();
    file.write_all(&[&head, &pack[..]].concat()).expect("written");
    file.seek(SeekFrom::Start(0)).expect("rewound");
    let error = stores.store.unpack(&pin, &file).expect_err("it lacks a folder");
    assert!(matches!(error, GitError::Pack { .. }), "{error}");
    assert!(!stores.store.holds(&pin));
    stores.fetch(&pin).expect("its upstream is asked");
    assert_eq!(stores.checkout(&pin).expect("laid out")["a/main.py"], "text\n");
}

#[test]
fn only_what_the_owner_allows_is_asked() {
    let stores = Stores::new();
    let check = |url: &str, policy: &Policy, reason: &str| {
        let commit = "1".repeat(40).parse().expect("a commit");
        let pin = GitPin::new(url.parse().expect("an address"), commit);
        let error = stores.fetch_by(&pin, policy).expect_err("refused");
        assert!(matches!(&error, GitError::Refused { .. }), "{url}: {error}");
        assert!(error.to_string().contains(reason), "{error}");
    };
    for url in ["http://example.org/x", "https://127.0.0.1/x", "https://nas.local/x", "file:///srv/x"] {
        check(url, &Policy::default(), "--allow-private-origins");
    }
    let policy = Policy { hosts: ["git.example.org".to_owned()].into(), ..Policy::default() };
    check("https://github.com/x/y", &policy, "--allow-code-host");
    let made = fs::read_dir(stores.folder.path().join("git")).expect("a folder").count();
    assert_eq!(made, 0, "nothing is made for what is not asked");
}

#[test]
fn commit_comes_from_the_first_of_its_repositories_that_gives_it_and_is_one_under_all_names_where_no_host_is_named()
 {
    let (upstream, rewritten, lib) = (Upstream::new(), Upstream::new(), Upstream::new());
    let pinned = lib.commit(&[("lib.py", 0o100644, "lib\n")]);
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {}\n", lib.url());
    let files = [(".gitmodules", 0o100644, modules.as_str()), ("lib", 0o160000, pinned.commit.as_str())];
    let known = upstream.commit(&files);
    let other = rewritten.commit(&[("other", 0o100644, "other\n")]).url;
    let refused: GitUrl = "https://git.example.org/nodes".parse().expect("an address");
    let local = Policy { private_origins: true, hosts: ["localhost".to_owned()].into(), ..Policy::default() };
    let pin = GitPin {
        mirrors: vec![other.clone(), known.url.clone()],
        ..GitPin::new(refused.clone(), known.commit.clone())
    };
    let stores = Stores::new();
    stores.fetch_by(&pin, &local).expect("fetched from the last");
    assert_eq!(stores.checkout(&pin).expect("laid out")["lib/lib.py"], "lib\n");
    let mut file = tempfile::tempfile().expect("a file");
    stores.store.pack(&pin, &mut file).expect("packed");
    // Nobody is asked for what is here under another name.
    let renamed = GitPin::new(other.clone(), known.commit.clone());
    stores.fetch_by(&renamed, &Policy::default()).expect("is here");
    let elsewhere = Policy { hosts: [refused.host()].into(), ..Policy::default() };
    let error = stores.fetch_by(&renamed, &elsewhere).expect_err("what came from another host is not here");
    assert!(matches!(&error, GitError::Refused { .. }), "{error}");

    let by_pack = Stores::new();
    file.seek(SeekFrom::Start(0)).expect("own file");
    by_pack.store.unpack(&pin, &file).expect("the pack of another mirror is the same commit");
    assert!(by_pack.store.holds(&pin));

    let (stores, gone) = (Stores::new(), GitPin { mirrors: vec![other.clone()], ..pin });
    let error = stores.fetch_by(&gone, &local).expect_err("nobody gives it");
    assert!(!error.is_refusal(), "one of them may have it tomorrow");
    let said = protocol::error_chain(&error);
    let expected = [
        format!("commit `{}` comes from none of its 2 recorded repositories", known.commit),
        format!("`{refused}` is not asked: its host is not among those"),
        format!("is not in `{other}`: it does not exist there"),
    ];
    assert!(expected.iter().all(|words| said.contains(words)), "{said}");
    let error = stores.fetch_by(&gone, &Policy { private_origins: false, ..local });
    assert!(error.expect_err("none is allowed").is_refusal());
}

#[test]
fn store_that_a_killed_process_left_half_made_goes_on() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let pin = upstream.commit(&[("a", 0o100644, "a")]);
    let half = stores.store.repository(&pin.url, Came::Fetched).expect("made");
    fs::write(half.path().join("objects/pack/pack_abc.tmp"), "half").expect("written");
    half.config().expect("a config").remove(UPSTREAM).expect("removed");
    stores.fetch(&pin).expect("fetched");
    assert!(stores.store.holds(&pin));
    let renamed = GitPin { url: "https://example.org/x".parse().expect("an address"), ..pin };
    assert!(stores.store.holds(&renamed), "whose store it is was not known");
}

#[test]
fn broken_store_does_not_hide_a_good_one() {
    let (upstream, mirror, stores) = (Upstream::new(), Upstream::new(), Stores::new());
    let pin = upstream.commit(&[("a", 0o100644, "a")]);
    let same = mirror.commit(&[("a", 0o100644, "a")]);
    stores.fetch(&pin).expect("fetched");
    let broken = stores.store.repository(&pin.url, Came::Fetched).expect("is there");
    let move_pack = |from: &str, to: &str| {
        fs::rename(broken.path().join(from), broken.path().join(to)).expect("own folder");
    };
    move_pack("objects/pack", "objects/elsewhere");
    let error = stores.store.differences(&pin, stores.folder.path()).expect_err("it cannot be read");
    assert!(matches!(error, GitError::Damaged { .. }), "{error:?}");
    let pin = GitPin { mirrors: vec![same.url], ..pin };
    stores.fetch(&pin).expect("the mirror gives it");
    assert_eq!(stores.checkout(&pin).expect("laid out")["a"], "a");
}

#[test]
fn commit_alone_comes_over_http_and_from_a_server_that_gives_none_alone() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let first = upstream.commit(&[("main.py", 0o100644, &"first\n".repeat(10))]);
    let second = upstream.commit(&[("main.py", 0o100644, &"second\n".repeat(10))]);
    let served = Served::start(&upstream, true);
    let pin = served.pin(&first);
    stores.fetch(&pin).expect("fetched");
    assert_eq!(
        stores.checkout(&pin).expect("laid out"),
        [("main.py".to_owned(), "first\n".repeat(10))].into()
    );
    assert!(!stores.store.holds(&served.pin(&second)), "one commit, and nothing of another");
    let asked = served.requests.load(Ordering::Relaxed);
    stores.fetch(&pin).expect("is here");
    assert_eq!(served.requests.load(Ordering::Relaxed), asked, "nobody is asked for what is here");

    let stubborn = Served::start(&upstream, false);
    let other = Stores::new();
    let pin = stubborn.pin(&first);
    other.fetch(&pin).expect("fetched with the branch that it is on");
    assert_eq!(other.checkout(&pin).expect("laid out")["main.py"], "first\n".repeat(10));
    let missing = GitPin { commit: "1".repeat(40).parse().expect("a commit"), ..pin };
    let error = other.fetch(&missing).expect_err("nobody has it");
    assert!(matches!(error, GitError::NoCommit { .. }), "{error}");
}

#[test]
fn cancelled_fetch_ends_and_a_later_one_brings_the_commit() {
    let (upstream, stores) = (Upstream::new(), Stores::new());
    let made = upstream.commit(&[("main.py", 0o100644, "x\n")]);
    let pin = Served::start(&upstream, true).pin(&made);
    stores.cancel.cancel();
    assert!(matches!(stores.fetch(&pin), Err(GitError::Canceled)));
    assert!(!stores.store.holds(&pin));
    let later = Stores { cancel: CancellationToken::new(), ..stores };
    later.fetch(&pin).expect("fetched");
    assert!(later.store.holds(&pin));
}
