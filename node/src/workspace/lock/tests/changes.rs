//! Repositories whose files are not as their commits have them.

use super::*;

#[test]
fn changed_node_travels_whole_where_that_is_asked_and_changed_comfyui_never() {
    let (folder, nodes) = (Folder::new(), Upstream::new());
    let (name, _) = folder.clone_node(&nodes, "nodes.py");
    folder.write(&format!("custom_nodes/{name}/nodes.py"), "changed\n");
    assert!(folder.fault().contains("or take all its files along with `--dirty carry`"));
    let locked = folder.lock_carrying(&[], true).expect("recorded");
    let (init, changed) = (format!("{name}/__init__.py"), format!("{name}/nodes.py"));
    let files = [(init.as_str(), "\n"), (changed.as_str(), "changed\n")];
    assert_eq!(carried(&locked, &name), with_text(&files));
    folder.write("main.py", "changed\n");
    let refused = folder.lock_carrying(&[], true).expect_err("it cannot travel").to_string();
    assert!(
        refused.contains("ComfyUI is not as its commit has it") && !refused.contains("--dirty"),
        "{refused}"
    );
}

#[test]
fn new_files_that_are_no_code_are_named_and_travel_where_that_is_asked() {
    let (folder, nodes) = (Folder::new(), Upstream::new());
    let (name, _) = folder.clone_node(&nodes, "nodes.py");
    folder.write(&format!("custom_nodes/{name}/__pycache__/nodes.cpython-312.pyc"), "made\n");
    assert!(folder.lock_carrying(&[], true).expect("recorded").carried.is_empty(), "it is as it was cloned");
    folder.write(&format!("custom_nodes/{name}/styles.csv"), "own\n");
    folder.write(&format!("custom_nodes/{name}/wildcards/a.txt"), "own\n");
    folder.write("start.sh", "python main.py\n");
    folder.write("user/settings.json", "{}\n");
    let locked = folder.lock(bare());
    assert!(matches!(&locked.lockfile.custom_nodes[..], [CustomNode::Git { .. }]));
    let told: Vec<&String> = locked.notes.iter().filter(|note| note.contains("they stay here")).collect();
    let expected = [
        "ComfyUI has new files that are not in its commit, and they stay here: `start.sh`".to_owned(),
        format!(
            "custom node `{name}` has new files that are not in its commit, and they stay here: `styles.csv`, \
             `wildcards/a.txt`; `--carry {name}` or `--dirty carry` takes all its files along"
        ),
    ];
    assert_eq!(told, expected.iter().collect::<Vec<_>>());
    let locked = folder.lock_carrying(&[], true).expect("recorded");
    let files: Vec<String> = carried(&locked, &name).into_iter().map(|(path, _)| path).collect();
    let expected = ["__init__.py", "nodes.py", "styles.csv", "wildcards/a.txt"];
    assert_eq!(files, expected.map(|file| format!("{name}/{file}")));
    folder.write(&format!("custom_nodes/{name}/start.sh"), "call me\n");
    assert!(folder.fault().contains(&format!("custom node `{name}` is not as its commit has it")));
}

#[test]
fn files_that_git_lfs_keeps_apart_are_refused_and_travel_where_that_is_asked() {
    let (folder, nodes) = (Folder::new(), Upstream::new());
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n";
    let pin = nodes.commit(&[("__init__.py", 0o100644, "\n"), ("data/net.bin", 0o100644, pointer)]);
    let name = pin.url.folder();
    Repository::clone(pin.url.as_str(), folder.path().join("custom_nodes").join(name)).expect("cloned");
    let as_cloned = folder.lock(bare());
    assert!(
        matches!(&as_cloned.lockfile.custom_nodes[..], [CustomNode::Git { .. }]),
        "it runs with pointers"
    );

    folder.write(&format!("custom_nodes/{name}/data/net.bin"), "real weights");
    let fault = folder.fault();
    assert_eq!(fault.lines().count(), 2, "{fault}");
    let told =
        format!("custom node `{name}` has files that git-lfs keeps apart from its commit (`data/net.bin`)");
    assert!(fault.contains(&told) && fault.contains(&format!("`--carry {name}`")), "{fault}");
    let (init, net) = (format!("{name}/__init__.py"), format!("{name}/data/net.bin"));
    for (carry, carry_dirty) in [(&[name][..], false), (&[], true)] {
        let locked = folder.lock_carrying(carry, carry_dirty).expect("recorded");
        let files = [(init.as_str(), "\n"), (net.as_str(), "real weights")];
        assert_eq!(carried(&locked, name), with_text(&files));
    }
}
