//! Two nodes of one farm, real git, real uv, and a package index of the test's own.

mod bad_input;
mod registry;

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use mesh::control::Reach;
use mesh::fetch::Exchange;
use mesh::finder::{FindError, Finder, Found};
use mesh::origin::{OriginConfig, OriginReader};
use protocol::message::{OriginLease, Provider};
use protocol::{
    Accelerator, BlobName, CarriedFile, FileRef, LockedModel, Lockfile, PieceRange, PublisherKey,
    WantedWorkspace, WorkflowVersion, write_carried,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::{Farm, key};
use crate::workspace::git::tests::Upstream;
use crate::workspace::python::Indexes;
use crate::workspace::python::tests::index::{Index, wheel};
use crate::workspace::shelf::Shelf;

/// Knows that this peer holds everything, under either name.
struct Everything {
    peer: Provider,
    exchange: Exchange,
}

#[async_trait::async_trait]
impl Finder for Everything {
    async fn locate(&self, name: &BlobName) -> Result<Found, FindError> {
        let blob = self.exchange.store().find_shared(name);
        Ok(Found { blob, providers: blob.map(|_| self.peer.clone()).into_iter().collect(), readers: vec![] })
    }

    async fn read_origin(
        &self,
        _file: &FileRef,
        _held: Vec<PieceRange>,
        _wanted: u64,
    ) -> Result<OriginLease, FindError> {
        Err(FindError::Offline)
    }
}

/// A node that assembles.
struct Node {
    assembler: Assembler,
    exchange: Exchange,
    provider: Provider,
    _folder: tempfile::TempDir,
}

impl Node {
    /// Beside another node that may hold everything. `None` where there is no uv to test with.
    async fn start(farm: &Farm, index: &Index, other: Option<&Node>) -> Option<Self> {
        let Some(program) = std::env::var_os("COMFY_FARM_TEST_UV").filter(|value| !value.is_empty()) else {
            eprintln!("skipped: COMFY_FARM_TEST_UV is not set; `tests/run` sets it");
            return None;
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (peer, exchange) = farm.exchange(&folder.path().join("blobs")).await;
        let origins = OriginConfig { allow_http: true, allow_private: true, ..OriginConfig::default() };
        exchange.set_origins(OriginReader::new(origins).expect("a reader"));
        let provider = Provider { peer, addresses: exchange.addresses() };
        let knows = other.map_or((&provider, &exchange), |other| (&other.provider, &other.exchange));
        let finder = Arc::new(Everything { peer: knows.0.clone(), exchange: knows.1.clone() });
        exchange.set_finder(finder.clone());
        let mut uv = UvConfig::new(folder.path().join("uv"));
        uv.program = Some(program.into());
        uv.indexes = Indexes { packages: index.url(), torch: Some(format!("{}/torch", index.url())) };
        uv.download_python = false;
        let policy = Policy { private_origins: true, ..Policy::default() };
        let nowhere = "http://127.0.0.1:9".parse().expect("an address");
        let assembler = Assembler {
            data: folder.path().to_owned(),
            root: folder.path().join("workspaces"),
            reach: Reach { exchange: exchange.clone(), finder },
            registry: Registry::new(&nowhere, &policy).expect("a reader"),
            policy,
            uv,
            accelerator: Accelerator::Cpu,
        };
        Some(Self { assembler, exchange, provider, _folder: folder })
    }

    async fn assemble(&self, wanted: &WantedWorkspace, farm: PublisherKey) -> Result<Workspace, BuildError> {
        let shelf = Shelf::new(self.assembler.root.join("ready"));
        let steps = Steps::new(shelf, wanted.lockfile);
        let assembled = self.assembler.assemble(wanted, farm, &steps, &CancellationToken::new()).await;
        assembled.map(|whole| Workspace::clone(&whole.workspace))
    }
}

fn wanted(lockfile: &Lockfile, document: protocol::BlobRef, holder: &Node) -> WantedWorkspace {
    WantedWorkspace {
        workflow: WorkflowVersion { name: "pixel-art".parse().expect("a name"), version: 1 },
        lockfile: lockfile.hash(),
        document,
        resolution: None,
        classes: ["KSampler".to_owned()].into(),
        models: ["vae/tiny.safetensors".to_owned()].into(),
        providers: vec![holder.provider.clone()],
    }
}

#[tokio::test]
async fn workspace_comes_from_its_origins_and_its_files_from_a_peer_once_there_is_one() {
    let (comfyui, nodes) = (Upstream::new(), Upstream::new());
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n"), ("requirements.txt", 0o100644, "lib\n")]);
    let node = nodes.commit(&[("__init__.py", 0o100644, "\n"), ("requirements.txt", 0o100644, "extra\n")]);
    let index =
        Index::serve(vec![wheel("lib", "1.0", &[]), wheel("lib", "2.0", &[]), wheel("extra", "3", &[])])
            .await;
    let farm = Farm::new();
    let Some(first) = Node::start(&farm, &index, None).await else { return };
    let model = first.exchange.store().import_bytes(b"a tiny model").await.expect("there is room");
    let mut archive = Vec::new();
    let init = CarriedFile { path: "own/__init__.py".to_owned(), executable: false };
    write_carried(Cursor::new(&mut archive), [init], |_| Ok(b"own\n".as_slice())).expect("written");
    let own = first.exchange.store().import_bytes(&archive).await.expect("there is room");
    let (publisher, stranger) = (key(), key());
    let mut lockfile = Lockfile::parse(
        json!({
            "format": 1, "python": "3.11", "comfyui": main,
            "custom_nodes": [
                { "from": "git", "url": node.url, "commit": node.commit, "disabled": false },
                { "from": "carried", "name": "own", "files": own },
            ],
            "packages": [{ "name": "lib", "version": "1.0" }],
            "models": [{ "path": "models/vae/tiny.safetensors", "size": model.size, "blob": model.hash, "disabled": false }],
        })
        .to_string()
        .as_bytes(),
    )
    .expect("a lockfile");
    lockfile.sign(publisher.signing_key());
    let document =
        first.exchange.store().import_bytes(&lockfile.to_canonical_json()).await.expect("there is room");
    let farm_key = PublisherKey(publisher.peer().0);
    let want = wanted(&lockfile, document, &first);

    let workspace = first.assemble(&want, farm_key).await.expect("assembled");
    assert!(workspace.comfyui.join("main.py").is_file());
    let travelled = |workspace: &Workspace| workspace.comfyui.join("custom_nodes/own/__init__.py");
    assert_eq!(std::fs::read(travelled(&workspace)).expect("laid out"), b"own\n");
    let imported = std::process::Command::new(&workspace.python)
        .args(["-c", "import lib, extra; print(lib.VERSION)"])
        .output()
        .expect("it starts");
    assert_eq!(String::from_utf8_lossy(&imported.stdout).trim(), "1.0", "{imported:?}");
    let place: PathBuf = workspace.files.join("models/vae/tiny.safetensors");
    assert_eq!(std::fs::read(&place).expect("linked"), b"a tiny model");
    let asked = index.requests();
    assert_eq!(first.assemble(&want, farm_key).await.expect("found"), workspace);
    assert_eq!(index.requests(), asked, "what is here is asked of nobody");

    // The other node has the model and the lockfile from the first alone.
    let second = Node::start(&farm, &index, Some(&first)).await.expect("there is a uv");
    let same = second.assemble(&want, farm_key).await.expect("assembled");
    assert_eq!(std::fs::read(travelled(&same)).expect("laid out"), b"own\n");
    assert_eq!((same.code, same.environment), (workspace.code, workspace.environment));
    assert_eq!(
        std::fs::read(same.files.join("models/vae/tiny.safetensors")).expect("linked"),
        b"a tiny model"
    );

    let refused = second.assemble(&want, PublisherKey(stranger.peer().0)).await.expect_err("another farm");
    let BuildError::Refused(reason) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("does not trust"), "{reason}");
}

#[tokio::test]
async fn model_that_nobody_gives_is_named_with_the_reason_and_a_private_one_stays_here() {
    let comfyui = Upstream::new();
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let index = Index::serve(vec![]).await;
    let farm = Farm::new();
    let Some(node) = Node::start(&farm, &index, None).await else { return };
    let publisher = key();
    let lockfile = |share: bool, names: serde_json::Value| {
        let mut lockfile =
            Lockfile::parse(json!({ "format": 1, "python": "3.11", "comfyui": main }).to_string().as_bytes())
                .expect("a lockfile");
        let mut model = json!({
            "path": "models/vae/gone.safetensors", "size": 3, "disabled": false, "share": share,
        });
        model.as_object_mut().expect("it is one").append(&mut names.as_object().expect("names").clone());
        lockfile.models.push(serde_json::from_value::<LockedModel>(model).expect("a model"));
        lockfile.sign(publisher.signing_key());
        lockfile
    };
    let store = node.exchange.store();
    let assemble = async |lockfile: &Lockfile| {
        let document = store.import_bytes(&lockfile.to_canonical_json()).await.expect("there is room");
        node.assemble(&wanted(lockfile, document, &node), PublisherKey(publisher.peer().0)).await
    };
    let blob = protocol::BlobRef::of(b"own");
    for (share, names, words) in [
        (true, json!({ "sha256": "1".repeat(64) }), "`models/vae/gone.safetensors` did not come"),
        (false, json!({ "sha256": "1".repeat(64) }), "marked not to be shared"),
        (false, json!({ "blob": blob.hash }), "marked not to be shared"),
    ] {
        let lockfile = lockfile(share, names);
        let failed = assemble(&lockfile).await.expect_err("nobody has it");
        let BuildError::Failed(reason) = failed else { panic!("{failed:?}") };
        assert!(reason.contains(words) && reason.contains("gone.safetensors"), "{reason}");
    }
    // All that are lacking are told at once, and none keeps another from coming.
    let mut lacking = lockfile(true, json!({ "sha256": "1".repeat(64) }));
    let other = |path: &str, names: serde_json::Value| -> LockedModel {
        let mut model = json!({ "path": path, "size": 3, "disabled": false });
        model.as_object_mut().expect("it is one").append(&mut names.as_object().expect("names").clone());
        serde_json::from_value(model).expect("a model")
    };
    let here = store.import_bytes(b"her").await.expect("there is room");
    lacking.models.push(other("models/vae/here.safetensors", json!({ "blob": here.hash })));
    lacking.models.push(other("models/vae/lost.safetensors", json!({ "sha256": "2".repeat(64) })));
    lacking.sign(publisher.signing_key());
    let BuildError::Failed(reason) = assemble(&lacking).await.expect_err("nobody has two of them") else {
        panic!("not failed")
    };
    let lines: Vec<&str> = reason.lines().collect();
    assert_eq!((lines[0], lines.len()), ("2 models are lacking:", 3), "{reason}");
    assert!(lines[1].contains("vae/gone.") && lines[2].contains("vae/lost."), "{reason}");
    let ready = node.assembler.root.join("ready").join(lacking.hash().to_string());
    assert!(ready.join("files/models/vae/here.safetensors").is_file());
    // Without any hash it is taken by its name and size where its owner has it.
    let nameless = lockfile(true, json!({}));
    let BuildError::Failed(reason) = assemble(&nameless).await.expect_err("nobody has it") else {
        panic!("not failed")
    };
    assert!(
        reason.contains("gone.safetensors`: it has no hash") && reason.contains("`--models`"),
        "{reason}"
    );
    let models = node.assembler.data.join("models");
    for (name, bytes) in [("vae/gone.safetensors", "lies"), ("loras/gone.safetensors", "own")] {
        std::fs::create_dir_all(models.join(name).parent().expect("a folder")).expect("made");
        std::fs::write(models.join(name), bytes).expect("written");
        store.import_in_place(models.join(name)).await.expect("there");
    }
    assemble(&nameless).await.expect_err("one has another size, the other another kind");
    std::fs::write(models.join("vae/gone.safetensors"), "it.").expect("written");
    store.import_in_place(models.join("vae/gone.safetensors")).await.expect("there");
    let workspace = assemble(&nameless).await.expect("it lies there");
    assert_eq!(std::fs::read(workspace.files.join("models/vae/gone.safetensors")).expect("linked"), b"it.");
    store.import_bytes(b"own").await.expect("there is room");
    assemble(&lockfile(false, json!({ "blob": blob.hash }))).await.expect("its owner put it here");
    assert_eq!(store.find_shared(&blob.hash.into()), None, "nobody else gets it");
}

/// Knows who holds a blob, and nothing of files by their SHA-256.
struct BlobsAlone(Arc<Everything>);

#[async_trait::async_trait]
impl Finder for BlobsAlone {
    async fn locate(&self, name: &BlobName) -> Result<Found, FindError> {
        match name {
            BlobName::Blake3(_) => self.0.locate(name).await,
            BlobName::Sha256(_) => Ok(Found::default()),
        }
    }

    async fn read_origin(
        &self,
        file: &FileRef,
        held: Vec<PieceRange>,
        wanted: u64,
    ) -> Result<OriginLease, FindError> {
        self.0.read_origin(file, held, wanted).await
    }
}

#[tokio::test]
async fn model_comes_as_the_blob_that_it_was_elsewhere_and_is_proven_by_its_own_hash() {
    let comfyui = Upstream::new();
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let index = Index::serve(vec![]).await;
    let farm = Farm::new();
    let Some(holder) = Node::start(&farm, &index, None).await else { return };
    let Some(mut node) = Node::start(&farm, &index, Some(&holder)).await else { return };
    let publisher = key();
    let farm_key = PublisherKey(publisher.peer().0);
    let store = holder.exchange.store();
    let model = store.import_bytes(b"a tiny model").await.expect("there is room");
    let other = store.import_bytes(b"another file").await.expect("there is room");
    let sha256 = store.prove_sha256(model).await.expect("it is here");
    let text = json!({
        "format": 1, "python": "3.11", "comfyui": main,
        "models": [{ "path": "models/vae/a.safetensors", "size": model.size, "sha256": sha256, "disabled": false }],
    });
    let mut lockfile = Lockfile::parse(text.to_string().as_bytes()).expect("a lockfile");
    lockfile.sign(publisher.signing_key());
    let document = store.import_bytes(&lockfile.to_canonical_json()).await.expect("there is room");
    let mut want = WantedWorkspace { providers: vec![], ..wanted(&lockfile, document, &holder) };
    let everything = Everything { peer: holder.provider.clone(), exchange: holder.exchange.clone() };
    let finder = Arc::new(BlobsAlone(Arc::new(everything)));
    node.exchange.set_finder(finder.clone());
    node.assembler.reach.finder = finder;
    node.assemble(&want, farm_key).await.expect_err("nobody is known to have it");
    let stranger = key();
    for (said, signer, comes) in
        [(other, &publisher, false), (model, &stranger, false), (model, &publisher, true)]
    {
        let mut resolution = Resolution::new(lockfile.hash());
        resolution.models.push(protocol::Alias { sha256, blob: said });
        resolution.sign(signer.signing_key());
        let resolution = store.import_bytes(&resolution.to_canonical_json()).await;
        want.resolution = Some(resolution.expect("there is room"));
        let made = node.assemble(&want, farm_key).await;
        assert_eq!(made.is_ok(), comes, "{made:?}");
        let is_told = made.is_err_and(|error| error.to_string().contains("what others found is not used"));
        assert_eq!(is_told, signer.peer() == stranger.peer());
    }
}
