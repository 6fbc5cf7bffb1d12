//! Custom nodes of the Comfy registry: from a server that answers as it does, and then from peers alone.

use std::io::Write;

use protocol::RegistryNode;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::workspace::python::tests::index::Answers;

/// Versions of the registry: the id, what it calls the state of the version, and the files.
type Versions<'a> = &'a [(&'a str, &'a str, &'a [(&'a str, &'a str)])];

const ACTIVE: &str = "NodeVersionStatusActive";

async fn registry(versions: Versions<'_>) -> Index {
    let answers = |url: &str| {
        let mut answers = Answers::new();
        for (id, status, files) in versions {
            let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
            for (path, text) in *files {
                zip.start_file(*path, SimpleFileOptions::default()).expect("a name");
                zip.write_all(text.as_bytes()).expect("memory");
            }
            let zip = zip.finish().expect("memory").into_inner();
            // One without files is one whose archive is not to be had.
            if !files.is_empty() {
                answers.insert(format!("/cdn/{id}/node.zip"), ("application/zip", zip));
            }
            let version = json!({
                "id": "a1e4d0ff-57c5-4c2b-9a43-a0d08b54e46e", "node_id": id, "version": "1.0.8",
                "status": status, "deprecated": false, "dependencies": [], "changelog": "",
                "downloadUrl": format!("{url}/cdn/{id}/node.zip"),
            });
            let path = format!("/nodes/{id}/install?version=1.0.8");
            answers.insert(path, ("application/json", version.to_string().into_bytes()));
        }
        answers
    };
    Index::answer("", answers).await
}

impl Node {
    fn ask_registry(&mut self, url: &str) {
        let url = url.parse().expect("an address");
        self.assembler.registry = Registry::new(&url, &self.assembler.policy).expect("a reader");
    }

    /// The lockfile of a bundle that comfy-pack wrote, with these versions of the registry, signed and in the store.
    async fn deployed(
        &self,
        comfyui: &protocol::GitPin,
        ids: &[&str],
        publisher: &mesh::identity::Identity,
    ) -> (Lockfile, protocol::BlobRef) {
        let node = |id: &&str| json!({ "from": "registry", "id": id, "version": "1.0.8" });
        let mut nodes: Vec<_> = ids.iter().map(node).collect();
        nodes.push(json!({ "from": "file", "name": "own.py", "disabled": false }));
        let lockfile =
            json!({ "format": 1, "python": "3.11", "comfyui": comfyui, "custom_nodes": nodes }).to_string();
        let mut lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
        lockfile.sign(publisher.signing_key());
        let document = self.exchange.store().import_bytes(&lockfile.to_canonical_json()).await;
        (lockfile, document.expect("there is room"))
    }

    async fn reason(&self, wanted: &WantedWorkspace, farm: PublisherKey) -> BuildError {
        self.assemble(wanted, farm).await.expect_err("it cannot be built")
    }
}

#[tokio::test]
async fn version_of_the_registry_comes_once_and_then_from_peers_and_what_is_not_there_is_left_out() {
    let comfyui = Upstream::new();
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let index = Index::serve(vec![wheel("lib", "1.0", &[])]).await;
    let files: &[(&str, &str)] =
        &[("__init__.py", "some\n"), ("requirements.txt", "lib\n"), ("web/a.js", "")];
    let evil: &[(&str, &str)] = &[("../evil.py", "evil\n")];
    let registry = registry(&[
        ("some-nodes", ACTIVE, files),
        ("banned", "NodeVersionStatusBanned", files),
        ("evil", ACTIVE, evil),
    ])
    .await;
    let farm = Farm::new();
    let Some(mut first) = Node::start(&farm, &index, None).await else { return };
    first.ask_registry(&registry.url());
    let publisher = key();
    let farm_key = PublisherKey(publisher.peer().0);
    let ids = ["some-nodes", "gone", "banned", "evil"];
    let (lockfile, document) = first.deployed(&main, &ids, &publisher).await;
    let mut want = wanted(&lockfile, document, &first);
    let shelf = Shelf::new(first.assembler.root.join("ready"));
    let steps = Steps::new(shelf, want.lockfile);
    let cancel = CancellationToken::new();
    let whole = first.assembler.assemble(&want, farm_key, &steps, &cancel).await.expect("assembled");
    let custom_nodes = |workspace: &Workspace| -> BTreeMap<String, String> {
        let folder = workspace.comfyui.join("custom_nodes");
        let entries = std::fs::read_dir(&folder).expect("there").flatten();
        let text = |path: PathBuf| std::fs::read_to_string(path.join("__init__.py")).expect("a node");
        entries.map(|entry| (entry.file_name().into_string().expect("a name"), text(entry.path()))).collect()
    };
    let only: BTreeMap<String, String> = [("some-nodes".to_owned(), "some\n".to_owned())].into();
    assert_eq!(custom_nodes(&whole.workspace), only);
    let left_out = whole.workspace.left_out.join("\n");
    for words in ["`own.py` is left out", "`gone 1.0.8`", "`banned 1.0.8`", "`evil 1.0.8`"] {
        assert!(left_out.contains(words), "{words}: {left_out}");
    }
    let log = first.assembler.root.join("logs").join(format!("{}.log", want.lockfile));
    let log = std::fs::read_to_string(log).expect("a log");
    for words in ["answered 404", "took it back", "has `..`, which leads outside"] {
        assert!(log.contains(words), "{words}: {log}");
    }

    // The coordinator signs what the first node found.
    let store = first.exchange.store();
    let found = whole.resolution.expect("it found something");
    let found = store.read_all(found.hash, found.size).await.expect("there");
    let mut resolution = Resolution::parse(&found).expect("a resolution");
    assert_eq!(resolution.registry.len(), 4);
    resolution.sign(publisher.signing_key());
    want.resolution = Some(store.import_bytes(&resolution.to_canonical_json()).await.expect("there is room"));
    let asked = registry.requests();
    let again = first.assembler.assemble(&want, farm_key, &steps, &cancel).await.expect("found");
    assert_eq!((&again.workspace, again.resolution), (&whole.workspace, None));
    let mut second = Node::start(&farm, &index, Some(&first)).await.expect("there is a uv");
    let same = second.assemble(&want, farm_key).await.expect("assembled with no way to the registry");
    assert_eq!((same.code, custom_nodes(&same)), (whole.workspace.code, only));
    assert_eq!(registry.requests(), asked);

    // Code of a host that its owner does not allow is taken from nobody.
    second.assembler.policy.hosts = ["localhost".to_owned()].into();
    let BuildError::Refused(reason) = second.reason(&want, farm_key).await else { panic!("not refused") };
    assert!(reason.contains("`127.0.0.1`") && reason.contains("`--allow-code-host`"), "{reason}");
}

#[tokio::test]
async fn registry_that_does_not_answer_or_gives_no_files_or_others_than_the_farm_knows_fails() {
    let comfyui = Upstream::new();
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let index = Index::serve(vec![]).await;
    let files: &[(&str, &str)] = &[("__init__.py", "new\n")];
    let registry = registry(&[("some-nodes", ACTIVE, files), ("late", ACTIVE, &[])]).await;
    let farm = Farm::new();
    let Some(mut node) = Node::start(&farm, &index, None).await else { return };
    let publisher = key();
    let farm_key = PublisherKey(publisher.peer().0);
    let (lockfile, document) = node.deployed(&main, &["some-nodes"], &publisher).await;
    let mut want = wanted(&lockfile, document, &node);
    let BuildError::Failed(reason) = node.reason(&want, farm_key).await else { panic!("not failed") };
    let words =
        "custom node `some-nodes 1.0.8` did not come from the Comfy registry: no connection to `127.0.0.1`";
    assert!(reason.contains(words), "{reason}");

    node.ask_registry(&registry.url());
    let (late, of_late) = node.deployed(&main, &["late"], &publisher).await;
    let BuildError::Failed(reason) = node.reason(&wanted(&late, of_late, &node), farm_key).await else {
        panic!("not failed")
    };
    assert!(reason.contains("`late 1.0.8`") && reason.contains("answered 404"), "{reason}");
    let other = RegistryNode {
        pin: lockfile.custom_nodes[0].registry().expect("it is one"),
        files: Some(protocol::BlobRef::of(b"what nobody has any more")),
    };
    let mut known = Resolution { registry: vec![other], ..Resolution::new(lockfile.hash()) };
    known.sign(publisher.signing_key());
    let document = node.exchange.store().import_bytes(&known.to_canonical_json()).await;
    want.resolution = Some(document.expect("there is room"));
    let BuildError::Failed(reason) = node.reason(&want, farm_key).await else { panic!("not failed") };
    assert!(reason.contains("no peer gives the files that the farm knows it by"), "{reason}");
    known.registry[0].files =
        known.registry[0].files.map(|files| protocol::BlobRef { size: 1 << 60, ..files });
    known.sign(publisher.signing_key());
    let known = node.exchange.store().import_bytes(&known.to_canonical_json()).await;
    want.resolution = Some(known.expect("there is room"));
    let workspace = node.assemble(&want, farm_key).await.expect("what has no sound size is not known");
    let init = workspace.comfyui.join("custom_nodes/some-nodes/__init__.py");
    assert_eq!(std::fs::read_to_string(init).expect("laid out"), "new\n");
}
