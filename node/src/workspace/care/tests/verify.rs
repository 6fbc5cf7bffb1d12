//! Workspaces that are not what they are to be.

use super::*;

#[tokio::test]
async fn verification_finds_what_changed_in_each_part() {
    let (kept, upstream) = (Kept::new().await, Upstream::new());
    let main = upstream.commit(&[("main.py", 0o100644, "run\n")]);
    let model = kept.care.store.import_bytes(b"a tiny model").await.expect("there is room");
    let lockfile = json!({ "format": 1, "comfyui": main, "models": [
        { "path": "models/vae/tiny.safetensors", "size": model.size, "blob": model.hash, "disabled": false },
    ]});
    let lockfile = Lockfile::parse(lockfile.to_string().as_bytes()).expect("a lockfile");
    let trees = CodeTrees::new(kept.at("code"), GitStore::open(kept.at("git")).expect("opens"));
    let policy = Policy { private_origins: true, ..Policy::default() };
    let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &CancellationToken::new() };
    let tree = trees.build(&CodeSpec::of(&lockfile, &[]), &BTreeMap::new(), &fetching).expect("built");
    let key = EnvironmentKey(BlobHash([1; 32]));
    let library = format!("environments/{key}/lib/python3.11/site-packages/lib.py");
    kept.write(&library, b"VERSION = 1\n");
    let hash = BASE64URL_NOPAD.encode(&Sha256::digest(b"VERSION = 1\n"));
    let record = library.replace("lib.py", "lib-1.dist-info/RECORD");
    kept.write(&record, format!("lib.py,sha256={hash},12\n").as_bytes());
    let ready = kept.at("ready").join(lockfile.hash().to_string());
    let version = WorkflowVersion { name: "fox".parse().expect("a name"), version: 1 };
    let mut record = WorkspaceRecord::begin(&ready, &lockfile, &version).expect("written");
    record.environment = Some(key);
    record.save(&ready).expect("written");

    // A package of the lock, and the copy of the code in which an install script added a file.
    kept.lay_out_wheel(1);
    let own = library.replace("lib.py", "own-1.dist-info/RECORD");
    kept.write(&own, b"");
    kept.write(&format!("environments/{key}/ComfyUI/main.py"), b"run\n");
    kept.write(&format!("environments/{key}/ComfyUI/added.py"), b"added\n");
    let place = ready.join("files/models/vae/tiny.safetensors");
    let there = kept.care.store.path_of(model.hash).expect("there");
    crate::os::file::link(&there, &place).expect("linked");

    let verified = kept.care.verify(None).await.expect("verified");
    assert!(verified.len() == 1 && verified[0].is_good(), "{verified:?}");
    crate::os::file::link(&kept.at("elsewhere"), &place).expect("linked");
    let verified = kept.care.verify(None).await.expect("verified").remove(0);
    assert!(verified.models[0].contains("leads to"), "{verified:?}");
    fs::remove_file(&place).expect("own file");
    let verified = kept.care.verify(None).await.expect("verified").remove(0);
    assert_eq!(verified.models, ["models/vae/tiny.safetensors: it is not at its place in the workspace"]);
    fs::remove_file(tree.comfyui.join("main.py")).expect("own file");
    fs::remove_dir_all(kept.at(&own).parent().expect("it has one")).expect("own folder");
    kept.write(&format!("environments/{key}/ComfyUI/main.py"), b"ran\n");
    kept.write(&library, b"VERSION = 2\n");
    fs::write(kept.care.store.path_of(model.hash).expect("there"), b"another one!").expect("own file");
    let verified = kept.care.verify(Some(&lockfile.hash().to_string())).await.expect("verified").remove(0);
    assert_eq!(verified.code, ["main.py"]);
    let expected =
        ["lib/python3.11/site-packages/lib.py", "package `own`, which is missing", "ComfyUI/main.py"];
    assert_eq!(verified.python, expected);
    assert_eq!(verified.models, ["models/vae/tiny.safetensors: it was damaged, and is forgotten"]);
}

#[tokio::test]
async fn removal_of_a_damaged_workspace_cures_the_others_of_the_same_code() {
    let (kept, upstream) = (Kept::new().await, Upstream::new());
    let main = upstream.commit(&[("main.py", 0o100644, "run\n")]);
    let lockfiles = ["first", "second"].map(|workflow| {
        let package = json!({ "name": workflow, "version": "1" });
        let lockfile = json!({ "format": 1, "comfyui": main, "packages": [package] });
        let lockfile = Lockfile::parse(lockfile.to_string().as_bytes()).expect("a lockfile");
        let ready = kept.at("ready").join(lockfile.hash().to_string());
        let version = WorkflowVersion { name: workflow.parse().expect("a name"), version: 1 };
        let mut record = WorkspaceRecord::begin(&ready, &lockfile, &version).expect("written");
        record.environment = Some(EnvironmentKey(BlobHash([1; 32])));
        record.save(&ready).expect("written");
        lockfile
    });
    let build = || {
        let trees = CodeTrees::new(kept.at("code"), GitStore::open(kept.at("git")).expect("opens"));
        let policy = Policy { private_origins: true, ..Policy::default() };
        let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &CancellationToken::new() };
        trees.build(&CodeSpec::of(&lockfiles[1], &[]), &BTreeMap::new(), &fetching).expect("built")
    };
    let tree = build();
    let [first, second] = [0, 1].map(|index| lockfiles[index].hash());
    kept.want(&[first, second]);
    kept.put_with(second, tree.hash, EnvironmentKey(BlobHash([1; 32])));
    let care = kept.running();
    fs::remove_file(tree.comfyui.join("main.py")).expect("own file");
    // As long as nobody looked, and as long as somebody is in it, it stays.
    let verified = care.verify(Some(&first.to_string())).await.expect("verified");
    assert_eq!(verified[0].code, ["main.py"]);
    let process = kept.shelf.usable(second).expect("it is ready");
    let error = care.remove(Some(&first.to_string())).expect_err("a process is in it");
    assert!(matches!(error, CareError::AtWork(at_work) if at_work == second), "{error}");
    assert!(tree.comfyui.exists());
    drop(process);
    assert_eq!(care.remove(Some(&first.to_string())).expect("removed").workspaces, [first]);
    assert_eq!(kept.shelf.state(second), Some(WorkspaceState::Waiting), "it is made anew");
    assert_eq!(fs::read_to_string(build().comfyui.join("main.py")).expect("there"), "run\n");
    assert!(care.verify(Some(&second.to_string())).await.expect("verified")[0].code.is_empty());
}

#[tokio::test]
async fn files_that_git_lfs_keeps_elsewhere_are_told_as_left_out() {
    let (kept, upstream, nodes) = (Kept::new().await, Upstream::new(), Upstream::new());
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
    let main = upstream.commit(&[("main.py", 0o100644, "run\n")]);
    let node = nodes.commit(&[
        ("__init__.py", 0o100644, "nodes\n"),
        ("a.ttf", 0o100644, pointer),
        ("b.ttf", 0o100644, pointer),
        ("c.ttf", 0o100644, pointer),
        ("weights/d.bin", 0o100644, pointer),
    ]);
    let name = node.url.folder().to_owned();
    let lockfile = json!({ "format": 1, "comfyui": main, "custom_nodes": [
        { "from": "git", "url": node.url, "commit": node.commit, "disabled": false },
    ]});
    let lockfile = Lockfile::parse(lockfile.to_string().as_bytes()).expect("a lockfile");
    let trees = CodeTrees::new(kept.at("code"), GitStore::open(kept.at("git")).expect("opens"));
    let policy = Policy { private_origins: true, ..Policy::default() };
    let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &CancellationToken::new() };
    let tree = trees.build(&CodeSpec::of(&lockfile, &[]), &BTreeMap::new(), &fetching).expect("built");
    let ready = kept.at("ready").join(lockfile.hash().to_string());
    let version = WorkflowVersion { name: "fox".parse().expect("a name"), version: 1 };
    WorkspaceRecord::begin(&ready, &lockfile, &version).expect("written");
    let left_out = tree.left_out();
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    let listed = kept.care.list().expect("listed").remove(0).detail.expect("it says so");
    for words in [format!("`{name}`"), "`c.ttf` and 1 more".to_owned(), format!("pack --carry {name}")] {
        assert!(left_out[0].contains(&words) && listed.contains(&words), "{words}: {listed}");
    }
}
