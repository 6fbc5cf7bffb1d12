//! Stores that are damaged, and such of which a part is needed no more.

use super::*;

/// All files of the packs in the stores of a node.
fn packs(stores: &Stores) -> Vec<PathBuf> {
    let folders = fs::read_dir(stores.folder.path().join("git")).expect("a folder").flatten();
    let packs = folders.flat_map(|store| fs::read_dir(store.path().join("objects/pack")).expect("a folder"));
    packs.flatten().map(|pack| pack.path()).collect()
}

/// Overwrites the end of what is packed, but for the checksum behind it.
fn damage(path: &Path) {
    let mut permissions = fs::metadata(path).expect("there").permissions();
    permissions.set_mode(0o600);
    fs::set_permissions(path, permissions).expect("own file");
    let length = fs::metadata(path).expect("there").len();
    let file = fs::OpenOptions::new().write(true).open(path).expect("own file");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 60], length - 80).expect("written");
}

fn lay_out(stores: &Stores, pin: &GitPin, name: &str) -> Result<BTreeMap<String, String>, GitError> {
    let policy = Policy { private_origins: true, ..Policy::default() };
    let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &stores.cancel };
    let into = stores.folder.path().join(name);
    stores.store.lay_out(pin, &into, &fetching).map(|_| files(&into))
}

#[test]
fn store_that_was_damaged_is_filled_anew_and_keeps_what_can_be_read() {
    let (inner, outer, stores) = (Upstream::new(), Upstream::new(), Stores::new());
    let served = Served::start(&outer, true);
    let other = served.pin(&outer.commit(&[("other.py", 0o100644, "other\n")]));
    let pinned = inner.commit(&[("lib.py", 0o100644, &"inner\n".repeat(100))]);
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {}\n", inner.url());
    let text: String = (0..1000).map(|number| format!("{number} {:x}\n", number * 7919)).collect();
    let entries = [
        (".gitmodules", 0o100644, modules.as_str()),
        ("lib", 0o160000, pinned.commit.as_str()),
        ("a/main.py", 0o100644, text.as_str()),
    ];
    let pin = served.pin(&outer.commit(&entries));
    stores.fetch(&other).expect("fetched");
    let before = packs(&stores);
    stores.fetch(&pin).expect("fetched");
    let whole = lay_out(&stores, &pin, "whole").expect("laid out");
    // Of the commit and of its submodule: cut off, as in a power cut, or other bytes.
    for (round, cut_off) in [("damaged", false), ("cut off", true)] {
        let packs: Vec<_> = packs(&stores)
            .into_iter()
            .filter(|path| !before.contains(path) && path.extension().is_some_and(|it| it == "pack"))
            .collect();
        assert!(packs.len() >= 2, "{packs:?}");
        for pack in packs {
            if cut_off {
                fs::remove_file(&pack).expect("own file");
            } else {
                damage(&pack);
            }
        }
        let error = stores.checkout(&pin).expect_err(round);
        assert!(matches!(error, GitError::Damaged { .. }), "{round}: {error:?}");
        assert_eq!(lay_out(&stores, &pin, round).expect(round), whole, "{round}");
        if !cut_off {
            assert!(stores.store.holds(&other), "what was good stays");
        }
    }
    // It can be fetched into as before.
    let later = served.pin(&outer.commit(&[("later.py", 0o100644, "later\n")]));
    assert_eq!(lay_out(&stores, &later, "later").expect("fetched")["later.py"], "later\n");
    assert_eq!(fs::read_dir(stores.folder.path().join("git")).expect("a folder").count(), 2);
}

#[test]
fn commits_that_nobody_needs_go_and_those_of_submodules_stay() {
    let (inner, outer, stores) = (Upstream::new(), Upstream::new(), Stores::new());
    let (served, alone) = (Served::start(&outer, true), Upstream::new());
    let large = (0..20_000).map(|number| format!("{:x}\n", number * 7919)).collect::<String>();
    let unneeded = served.pin(&outer.commit(&[("large.py", 0o100644, large.as_str())]));
    let pinned = inner.commit(&[("lib.py", 0o100644, "inner\n")]);
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {}\n", inner.url());
    let entries = [(".gitmodules", 0o100644, modules.as_str()), ("lib", 0o160000, pinned.commit.as_str())];
    let needed = served.pin(&outer.commit(&entries));
    let gone = alone.commit(&[("a", 0o100644, "a")]);
    for pin in [&unneeded, &needed, &gone] {
        stores.fetch(pin).expect("fetched");
    }
    let bytes = || packs(&stores).iter().map(|pack| fs::metadata(pack).expect("there").len()).sum::<u64>();
    let before = bytes();
    stores.store.keep_only(std::slice::from_ref(&needed)).expect("kept");
    assert!(stores.store.holds(&needed) && !stores.store.holds(&unneeded) && !stores.store.holds(&gone));
    assert!(bytes() * 4 < before, "{} of {before}", bytes());
    assert_eq!(stores.checkout(&needed).expect("laid out")["lib/lib.py"], "inner\n");
    stores.fetch(&unneeded).expect("it is still there");
    assert_eq!(stores.checkout(&unneeded).expect("laid out")["large.py"], large);
    stores.store.keep_only(&[]).expect("kept");
    assert_eq!(fs::read_dir(stores.folder.path().join("git")).expect("a folder").count(), 0);
}
