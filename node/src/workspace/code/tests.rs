//! Trees made of real repositories and archives, and compared with them.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;

use protocol::{CarriedFile, write_carried};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::policy::Policy;
use crate::workspace::git::tests::Upstream;

fn node(pin: &GitPin) -> CustomNode {
    CustomNode::Git {
        url: pin.url.clone(),
        commit: pin.commit.clone(),
        mirrors: pin.mirrors.clone(),
        folder: None,
        disabled: false,
    }
}

/// The same in a folder of another name.
fn node_in(folder: &str, pin: &GitPin) -> CustomNode {
    let mut node = node(pin);
    if let CustomNode::Git { folder: own, .. } = &mut node {
        *own = Some(folder.parse().expect("a name"));
    }
    node
}

#[test]
fn tree_has_comfyui_and_each_node_and_is_made_once() {
    let (comfyui, nodes, folder) =
        (Upstream::new(), Upstream::new(), tempfile::tempdir().expect("a temporary folder"));
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n"), ("requirements.txt", 0o100644, "torch\n")]);
    let nice = nodes.commit(&[("__init__.py", 0o100644, "nodes\n")]);
    let name = nice.url.folder().to_owned();
    let git = GitStore::open(folder.path().join("git")).expect("opens");
    let trees = CodeTrees::new(folder.path().join("code"), git);
    let policy = Policy { private_origins: true, ..Policy::default() };
    let cancel = CancellationToken::new();
    let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
    let spec = CodeSpec { comfyui: Some(main), custom_nodes: vec![node(&nice)] };
    let tree = trees.build(&spec, &BTreeMap::new(), &fetching).expect("built");
    assert_eq!(fs::read_to_string(tree.comfyui.join("main.py")).expect("there"), "run\n");
    let init = tree.comfyui.join("custom_nodes").join(name).join("__init__.py");
    assert_eq!(fs::read_to_string(&init).expect("there"), "nodes\n");
    assert_eq!(tree.requirements(), [tree.comfyui.join("requirements.txt")]);
    // With its upstreams gone it is found.
    drop((comfyui, nodes));
    assert_eq!(trees.build(&spec, &BTreeMap::new(), &fetching).expect("found"), tree);
    assert_eq!(trees.differences(&spec).expect("compared"), Vec::<String>::new());
    fs::remove_file(&init).expect("removed");
    assert_eq!(trees.differences(&spec).expect("compared").len(), 1);
    // Wherever a tree that is here came from, its commits are to come from the hosts that the owner names.
    let by = |host: &str| {
        let policy = Policy { hosts: [host.to_owned()].into(), ..policy.clone() };
        trees.build(&spec, &BTreeMap::new(), &Fetching { policy: &policy, ..fetching })
    };
    by("localhost").expect("they were fetched from there");
    let error = by("example.org").expect_err("from another host");
    assert!(matches!(&error, CodeError::Git(GitError::Refused { .. })), "{error}");
    let left: Vec<_> = fs::read_dir(folder.path().join("code")).expect("there").flatten().collect();
    assert_eq!(left.len(), 1, "nothing half-made stays: {left:?}");
}

#[test]
fn repositories_of_one_name_are_laid_out_in_the_folders_that_they_had() {
    let (comfyui, nodes) = (Upstream::new(), Upstream::new());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n"), ("custom_nodes/own.py", 0o100644, "\n")]);
    let one = nodes.commit(&[("__init__.py", 0o100644, "one\n")]);
    let two = nodes.commit(&[("__init__.py", 0o100644, "two\n")]);
    let git = GitStore::open(folder.path().join("git")).expect("opens");
    let trees = CodeTrees::new(folder.path().join("code"), git);
    let policy = Policy { private_origins: true, ..Policy::default() };
    let cancel = CancellationToken::new();
    let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
    let custom_nodes = vec![node_in("theirs", &one), node(&two)];
    let spec = CodeSpec { comfyui: Some(main.clone()), custom_nodes };
    let tree = trees.build(&spec, &BTreeMap::new(), &fetching).expect("built");
    let init = |name: &str| tree.comfyui.join("custom_nodes").join(name).join("__init__.py");
    let read = |name: &str| fs::read_to_string(init(name)).expect("there");
    assert_eq!((read("theirs"), read(two.url.folder())), ("one\n".to_owned(), "two\n".to_owned()));
    fs::remove_file(init("theirs")).expect("removed");
    assert_eq!(trees.differences(&spec).expect("compared"), ["custom_nodes/theirs/__init__.py"]);
    let spec = CodeSpec { comfyui: Some(main), custom_nodes: vec![node_in("own.py", &one)] };
    let error = trees.build(&spec, &BTreeMap::new(), &fetching).expect_err("it is there already");
    assert!(error.to_string().contains("`custom_nodes/own.py`: ComfyUI itself has it"), "{error}");
}

#[test]
fn what_travelled_is_laid_out_beside_the_commits_and_compared_with_its_archive() {
    let (comfyui, folder) = (Upstream::new(), tempfile::tempdir().expect("a temporary folder"));
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let trees =
        CodeTrees::new(folder.path().join("code"), GitStore::open(folder.path().join("git")).expect("opens"));
    let (own, own_files) =
        archive(folder.path(), &[("own/__init__.py", false, "own\n"), ("own/b/run.sh", true, "run\n")]);
    let (single, single_files) = archive(folder.path(), &[("single.py", false, "single\n")]);
    let node = |name: &str, files| CustomNode::Carried {
        name: name.parse().expect("a name"),
        files,
        registry: None,
    };
    let nodes = vec![node("own", own_files), node("single.py", single_files)];
    let spec = CodeSpec { comfyui: Some(main.clone()), custom_nodes: nodes };
    assert_eq!(CodeTrees::archives(&spec), [own_files, single_files]);
    let archives = [(own_files.hash, own.clone()), (single_files.hash, single)].into();
    let policy = Policy { private_origins: true, ..Policy::default() };
    let cancel = CancellationToken::new();
    let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
    let tree = trees.build(&spec, &archives, &fetching).expect("built");
    let at = |path: &str| tree.comfyui.join("custom_nodes").join(path);
    assert_eq!(tree.custom_nodes, [at("own"), at("single.py")]);
    assert_eq!(fs::read_to_string(at("own/__init__.py")).expect("there"), "own\n");
    assert_eq!(fs::read_to_string(at("single.py")).expect("there"), "single\n");
    let mode = |path: &str| fs::metadata(at(path)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode("own/b/run.sh"), mode("single.py")), (0o555, 0o444));
    assert_eq!(trees.differences(&spec).expect("compared"), Vec::<String>::new());
    fs::remove_file(at("single.py")).expect("removed");
    fs::remove_file(at("own/__init__.py")).expect("removed");
    fs::write(at("own/__init__.py"), "owN\n").expect("own file");
    let differing = ["custom_nodes/own/__init__.py", "custom_nodes/single.py"];
    assert_eq!(trees.differences(&spec).expect("compared"), differing);

    let check = |node: CustomNode, archive: &Path, expected: &str| {
        let CustomNode::Carried { files, .. } = &node else { panic!("it travels") };
        let archives = [(files.hash, archive.to_owned())].into();
        let spec = CodeSpec { comfyui: Some(main.clone()), custom_nodes: vec![node] };
        let error = trees.build(&spec, &archives, &fetching).expect_err(expected);
        let error = protocol::error_chain(&error);
        assert!(error.contains(expected) && !trees.has(&spec), "{error}");
    };
    check(node("own", single_files), &own, "its archive is not the one that the lockfile names");
    check(node("other", own_files), &own, "which is not below its name");
    let (both, files) = archive(folder.path(), &[("own", false, ""), ("own/x.py", false, "")]);
    check(node("own", files), &both, "custom node `own`");
}

/// An archive of these files; its own name follows from what is in it.
fn archive(folder: &Path, files: &[(&str, bool, &str)]) -> (PathBuf, BlobRef) {
    let mut bytes = Vec::new();
    let listed = files
        .iter()
        .map(|(path, executable, _)| CarriedFile { path: (*path).to_owned(), executable: *executable });
    let open = |file: &CarriedFile| {
        let (.., text) = files.iter().find(|(path, ..)| *path == file.path).expect("one of them");
        Ok(text.as_bytes())
    };
    write_carried(Cursor::new(&mut bytes), listed, open).expect("written");
    let blob = BlobRef::of(&bytes);
    let path = folder.join(format!("{}.zip", blob.hash));
    fs::write(&path, bytes).expect("own folder");
    (path, blob)
}

#[test]
fn what_no_tree_can_be_made_of_is_told_before_anything_is_fetched() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let git = GitStore::open(folder.path().join("git")).expect("opens");
    let trees = CodeTrees::new(folder.path().join("code"), git);
    let pin =
        |url: &str| GitPin::new(url.parse().expect("an address"), "1".repeat(40).parse().expect("a commit"));
    let check = |comfyui: Option<GitPin>, custom_nodes: Vec<CustomNode>, expected: &str| {
        let (policy, cancel) = (Policy::default(), CancellationToken::new());
        let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
        let error = trees
            .build(&CodeSpec { comfyui, custom_nodes }, &BTreeMap::new(), &fetching)
            .expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    };
    let main = || Some(pin("https://example.org/ComfyUI"));
    check(None, vec![], "pins no commit of ComfyUI");
    let file = CustomNode::File { name: "single.py".parse().expect("a name"), disabled: false };
    check(main(), vec![file], "the files of custom node `single.py` are not known");
    let (one, two) = (pin("https://example.org/a/Nodes.git"), pin("https://example.org/b/nodes"));
    check(main(), vec![node(&one), node(&two)], "another custom node has it");
    check(main(), vec![node_in("own", &one), node_in("OWN", &two)], "another custom node has it");
    check(
        main(),
        vec![node(&one), node_in("nodes", &pin("https://example.org/x"))],
        "another custom node has it",
    );
    check(main(), vec![node(&pin("https://example.org/.."))], "no name for it");
}
