//! What workspaces share and none needs any more.

use protocol::{EnvironmentHash, EnvironmentLock};

use super::*;

impl Kept {
    /// A wheel of 500 bytes that was built here, with what says so, and 300 bytes of a Python; and the environment of this
    /// number is made of them, if there is one.
    pub(super) fn lay_out_wheel(&self, number: u8) -> PathBuf {
        let sha256 = protocol::Sha256([number; 32]);
        let wheel = json!({ "file_name": "own-1-py3-none-any.whl", "sha256": sha256, "size": 500 });
        let source = json!({ "file_name": "own-1.tar.gz", "sha256": sha256, "size": 5 });
        let lock = json!({
            "format": 1,
            "environment": EnvironmentHash(BlobHash([number; 32])),
            "python": "3.11.7",
            "platform": crate::platform(),
            "accelerator": "cpu",
            "equivalent": false,
            "wheels": [],
            "built": [{ "name": "own", "version": "1", "source": source, "wheel": wheel }],
        });
        let lock = EnvironmentLock::parse(lock.to_string().as_bytes()).expect("a lock");
        let python = format!("uv/python/cpython-3.11.{number}/bin/python3.11");
        self.write(&python, &[0; 300]);
        let environment = format!("environments/{}", EnvironmentKey(BlobHash([number; 32])));
        if self.at(&environment).is_dir() {
            self.write(&format!("{environment}/environment.json"), &lock.to_canonical_json());
            fs::create_dir(self.at(&environment).join("bin")).expect("made");
            let link = self.at(&environment).join("bin/python");
            std::os::unix::fs::symlink(self.at(&python), link).expect("linked");
        }
        let wheel = format!("uv/wheels/{sha256}/own-1-py3-none-any.whl");
        self.write(&wheel, &[0; 500]);
        let note = json!({ "file_name": "own-1-py3-none-any.whl", "sha256": sha256, "size": 500 });
        self.write(&format!("uv/built/{number}.json"), note.to_string().as_bytes());
        self.at(&wheel)
    }

    /// The commit of an upstream, fetched into the store of repositories.
    fn fetch(&self, pin: &GitPin) -> GitStore {
        let git = GitStore::open(self.at("git")).expect("opens");
        let policy = Policy { private_origins: true, ..Policy::default() };
        let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &CancellationToken::new() };
        git.fetch(pin, &fetching).expect("fetched");
        git
    }
}

#[tokio::test]
async fn what_no_workspace_is_made_of_goes_with_the_last_that_was() {
    let (kept, upstream) = (Kept::new().await, Upstream::new());
    let (first, second) = (kept.lay_out("first", 1, 1), kept.lay_out("second", 2, 2));
    let [of_first, of_second, of_none] = [1, 2, 3].map(|number| kept.lay_out_wheel(number));
    let git = kept.fetch(&upstream.commit(&[("main.py", 0o100644, "run\n")]));
    let names = |folder: &str| fs::read_dir(kept.at(folder)).expect("a folder").count();
    let removed = kept.care.remove(Some(&first.to_string())).expect("removed");
    assert!(removed.bytes > 2 * (500 + 300) + 1000, "{removed:?}");
    assert!(!of_first.exists() && !of_none.exists() && of_second.exists());
    assert_eq!([names("uv/wheels"), names("uv/built"), names("uv/python"), names("git")], [1, 1, 1, 0]);
    drop(git);
    // One that was not installed yet goes on with what was made for it.
    let begun = kept.lay_out("begun", 3, 3);
    let ready = kept.shelf.folder_of(begun);
    let mut record = WorkspaceRecord::load(&ready).expect("read").expect("there");
    record.environment = None;
    record.save(&ready).expect("written");
    let early = kept.lay_out_wheel(4);
    kept.care.remove(Some(&second.to_string())).expect("removed");
    assert!(early.exists() && of_second.exists());
    kept.care.remove(Some(&begun.to_string())).expect("removed");
    assert_eq!([names("uv/wheels"), names("uv/built"), names("uv/python")], [0, 0, 0]);
}

#[tokio::test]
async fn process_keeps_what_it_runs_in_though_its_workspace_was_made_anew() {
    let kept = Kept::new().await;
    let (made_anew, other) = (kept.lay_out("anew", 1, 1), kept.lay_out("other", 2, 2));
    kept.want(&[made_anew]);
    let record = WorkspaceRecord::load(&kept.shelf.folder_of(made_anew)).expect("read").expect("there");
    let (code, environment) = (record.code(), record.environment.expect("it has one"));
    kept.put_with(made_anew, code, environment);
    let process = Arc::clone(&kept.shelf.usable(made_anew).expect("it is ready").workspace);
    // Made anew with another environment, as where its owner began to allow install scripts.
    kept.lay_out("anew", 1, 7);
    kept.put_with(made_anew, code, EnvironmentKey(BlobHash([7; 32])));
    let old = kept.at("environments").join(environment.to_string());
    let care = kept.running();
    assert_eq!(care.remove(Some(&other.to_string())).expect("removed").workspaces, [other]);
    assert!(old.exists(), "a process is in it");
    drop(process);
    let third = kept.lay_out("third", 3, 3);
    care.remove(Some(&third.to_string())).expect("removed");
    assert!(!old.exists(), "nobody is in it any more");
}

#[tokio::test]
async fn workspace_whose_record_cannot_be_read_is_listed_and_removed_and_costs_no_other_anything() {
    let kept = Kept::new().await;
    let (unread, good, gone) =
        (kept.lay_out("unread", 1, 1), kept.lay_out("good", 2, 2), kept.lay_out("gone", 3, 3));
    kept.write(&format!("ready/{unread}/workspace.json"), b"{ \"of a later release\": true }");
    let entries = kept.care.list().expect("listed");
    let entry = |lockfile| entries.iter().find(|entry| entry.lockfile == lockfile).expect("listed");
    let detail = entry(unread).detail.clone().expect("it says so");
    assert!(detail.contains(&format!("workspace rm {unread}")), "{detail}");
    assert_eq!((entry(unread).state.as_str(), entry(good).state.as_str()), ("incomplete", "whole"));
    let count = |folder: &str| fs::read_dir(kept.at(folder)).expect("a folder").count();
    kept.care.remove(Some(&gone.to_string())).expect("removed");
    assert_eq!((count("ready"), count("code")), (2, 3), "the unread one may need any of them");
    kept.care.remove(Some(&unread.to_string())).expect("removed");
    assert_eq!((count("ready"), count("code"), count("environments")), (1, 1, 1));
    assert!(kept.care.verify(None).await.is_ok());
}
