//! What bad input gets: a message that names the step, what was tried and what to do. The node goes on.

use mesh::identity::Identity;
use protocol::{BlobHash, LockedFile, LockfileHash};

use super::*;

impl Node {
    /// Why a workspace of this lockfile does not come to be, and at which step.
    async fn fault(&self, lockfile: Lockfile, publisher: &Identity) -> (PrepareStep, String) {
        match self.failure(lockfile, publisher).await {
            (step, BuildError::Failed(reason) | BuildError::Refused(reason)) => (step, reason),
            (_, BuildError::Canceled) => panic!("nobody cancelled it"),
        }
    }

    async fn failure(&self, mut lockfile: Lockfile, publisher: &Identity) -> (PrepareStep, BuildError) {
        lockfile.sign(publisher.signing_key());
        let document = self.exchange.store().import_bytes(&lockfile.to_canonical_json()).await;
        let want = wanted(&lockfile, document.expect("there is room"), self);
        let steps = Steps::new(Shelf::new(self.assembler.root.join("ready")), want.lockfile);
        let farm = PublisherKey(publisher.peer().0);
        let assembled = self.assembler.assemble(&want, farm, &steps, &CancellationToken::new()).await;
        (steps.step(), assembled.map(|_| "nothing is wrong").expect_err("it is bad"))
    }
}

fn lockfile(of: serde_json::Value) -> Lockfile {
    Lockfile::parse(of.to_string().as_bytes()).expect("a lockfile")
}

fn check(found: (PrepareStep, String), step: PrepareStep, words: &[&str]) {
    assert_eq!(found.0, step, "{}", found.1);
    let lacking: Vec<_> = words.iter().filter(|word| !found.1.contains(**word)).collect();
    assert!(lacking.is_empty(), "{lacking:?} is not in: {}", found.1);
}

#[tokio::test]
async fn each_fault_has_its_step_its_source_and_a_hint_and_the_node_goes_on() {
    let comfyui = Upstream::new();
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let file = wheel("lib", "1.0", &[]);
    let good = file.sha256();
    let index = Index::serve(vec![file]).await;
    let farm = Farm::new();
    let Some(mut node) = Node::start(&farm, &index, None).await else { return };
    let (publisher, zeros, url) = (key(), "0".repeat(64), main.url.to_string());
    let plain = json!({ "format": 1, "python": "3.11", "comfyui": main });
    let with = |name: &str, value: serde_json::Value| {
        let mut changed = plain.clone();
        changed[name] = value;
        lockfile(changed)
    };

    let gone = json!({ "url": main.url, "commit": "1".repeat(40) });
    let found = node.fault(with("comfyui", gone.clone()), &publisher).await;
    let hint = "record a commit that is there";
    assert!(!found.1.contains("had it from there"), "{}", found.1);
    check(found, PrepareStep::Code, &["commit `111", &url, "the history was rewritten", hint]);

    // A node that has left had it.
    let pin: protocol::GitPin = serde_json::from_value(gone.clone()).expect("a commit");
    let mut rewritten = with("comfyui", gone);
    rewritten.sign(publisher.signing_key());
    let mut resolution = Resolution::new(rewritten.hash());
    resolution.git.push(protocol::GitPack { pin, pack: protocol::BlobRef::of(b"its pack") });
    resolution.sign(publisher.signing_key());
    let store = node.exchange.store();
    let document = store.import_bytes(&rewritten.to_canonical_json()).await.expect("there is room");
    let resolution = store.import_bytes(&resolution.to_canonical_json()).await.expect("there is room");
    let want = WantedWorkspace { resolution: Some(resolution), ..wanted(&rewritten, document, &node) };
    let reason =
        node.assemble(&want, PublisherKey(publisher.peer().0)).await.expect_err("it is gone").to_string();
    assert!(
        reason.contains("a node of this farm had it from there, so the history was rewritten"),
        "{reason}"
    );

    // To try again would bring the same commit.
    let outer = Upstream::new();
    let modules = "[submodule \"lib\"]\n\tpath = lib\n\turl = git@forge.example:a/lib\n";
    let files = [(".gitmodules", 0o100644, modules), ("lib", 0o160000, main.commit.as_str())];
    let pin = outer.commit(&files);
    let (step, failure) = node.failure(with("comfyui", json!(pin)), &publisher).await;
    let BuildError::Refused(reason) = failure else { panic!("{failure:?}") };
    let hint = "record a commit, or a fork, whose `.gitmodules` has an https address";
    let words = ["submodule `lib`", pin.url.as_str(), pin.commit.as_str(), "`git@forge.example:a/lib`", hint];
    check((step, reason), PrepareStep::Code, &words);

    let pin = json!([{ "name": "lib", "version": "1.0", "hashes": [zeros] }]);
    let found = node.fault(with("packages", pin), &publisher).await;
    let words = ["package `lib` 1.0", &index.url(), &good.to_string(), &zeros, "record the index"];
    check(found, PrepareStep::Python, &words);

    let found = node.fault(with("python", json!("3.2")), &publisher).await;
    let tried = ["no Python 3.2", "no 3.2 on the PATH", "downloading one is not allowed"];
    check(found, PrepareStep::Python, &[&tried[..], &["install it, or let uv download it"]].concat());

    let model =
        json!([{ "path": "models/vae/a.safetensors", "size": 3, "sha256": zeros, "disabled": false }]);
    let found = node.fault(with("models", model), &publisher).await;
    let words = ["model `models/vae/a.safetensors` did not come", &zeros, "`--models`"];
    check(found, PrepareStep::Models, &words);

    // A lock names another file than its address has.
    let cancel = CancellationToken::new();
    let steps = Steps::new(Shelf::new(node.assembler.root.join("ready")), LockfileHash(BlobHash([0; 32])));
    let files = Files::new(&node.assembler, &[], &steps, &cancel);
    let address = index.url().replace("/simple", "/files/lib-1.0-py3-none-any.whl");
    let exchanged = LockedFile {
        file_name: "lib-1.0-py3-none-any.whl".parse().expect("a name"),
        sha256: protocol::Sha256([0; 32]),
        size: reqwest::get(&address).await.expect("it answers").bytes().await.expect("whole").len() as u64,
        blob: None,
        urls: vec![address.parse().expect("an address")],
    };
    let found = crate::workspace::python::WheelSource::file(&files, &exchanged, None).await;
    let found = found.expect_err("another file").to_string();
    for word in ["`lib-1.0-py3-none-any.whl`", &good.to_string(), &zeros, &address, "was exchanged there"] {
        assert!(found.contains(word), "{word}: {found}");
    }

    for url in ["ssh://git@forge.example/a/b", "git://forge.example/a/b", "file:///a/../b"] {
        let refused = json!({ "format": 1, "comfyui": { "url": url, "commit": main.commit } }).to_string();
        let refused = Lockfile::parse(refused.as_bytes()).expect_err("nobody follows it");
        let refused = error_chain(&refused);
        assert!(
            refused.contains("record the https address") || refused.contains("without `..`"),
            "{refused}"
        );
    }
    node.assembler.policy.private_origins = false;
    // A commit that is here already needs nobody to be asked.
    let local = json!({ "url": "file:///srv/elsewhere", "commit": "2".repeat(40) });
    let found = node.fault(with("comfyui", local), &publisher).await;
    let words =
        ["`file:///srv/elsewhere`", "only https addresses of public hosts", "--allow-private-origins"];
    check(found, PrepareStep::Code, &words);

    node.assembler.policy.private_origins = true;
    let mut good = with("packages", json!([{ "name": "lib", "version": "1.0" }]));
    good.sign(publisher.signing_key());
    let document =
        node.exchange.store().import_bytes(&good.to_canonical_json()).await.expect("there is room");
    let made = node.assemble(&wanted(&good, document, &node), PublisherKey(publisher.peer().0)).await;
    assert!(made.expect("the node is sound").comfyui.join("main.py").is_file());
}

#[tokio::test]
async fn packages_from_hosts_that_the_owner_does_not_allow_are_refused_wherever_they_are_named() {
    let (comfyui, nodes) = (Upstream::new(), Upstream::new());
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let asking =
        nodes.commit(&[("requirements.txt", 0o100644, "lib\nodd @ https://evil.example/odd-1.whl\n")]);
    let index = Index::serve(vec![wheel("lib", "1.0", &[])]).await;
    let farm = Farm::new();
    let Some(mut node) = Node::start(&farm, &index, None).await else { return };
    // Where the repositories of this test are.
    node.assembler.policy.hosts = ["localhost".to_owned()].into();
    let publisher = key();
    let pinning = |packages: serde_json::Value, custom_nodes: serde_json::Value| {
        lockfile(json!({
            "format": 1, "python": "3.11", "comfyui": main, "packages": packages, "custom_nodes": custom_nodes,
        }))
    };
    let hint = ["`evil.example`", "from `localhost` only", "`--allow-code-host evil.example`"];

    let url = json!([{ "name": "odd", "url": "https://evil.example/odd-1.whl" }]);
    let found = node.fault(pinning(url, json!([])), &publisher).await;
    check(found, PrepareStep::Lockfile, &[&["package `odd` comes from"], &hint[..]].concat());

    let custom = json!([{ "from": "git", "url": asking.url, "commit": asking.commit, "disabled": false }]);
    let found = node.fault(pinning(json!([]), custom), &publisher).await;
    check(found, PrepareStep::Python, &[&["package `odd` of `ComfyUI/custom_nodes/"], &hint[..]].concat());

    // What another node of the farm found is judged as well.
    let mut good = pinning(json!([{ "name": "lib", "version": "1.0" }]), json!([]));
    good.sign(publisher.signing_key());
    let store = node.exchange.store();
    let document = store.import_bytes(&good.to_canonical_json()).await.expect("there is room");
    let mut want = wanted(&good, document, &node);
    let steps = Steps::new(Shelf::new(node.assembler.root.join("ready")), want.lockfile);
    let (farm, cancel) = (PublisherKey(publisher.peer().0), CancellationToken::new());
    let assemble = async |want: &WantedWorkspace| node.assembler.assemble(want, farm, &steps, &cancel).await;
    let whole = assemble(&want).await.expect("the index of the node is allowed");
    let resolution = whole.resolution.expect("it is the first");
    let resolution = store.read_all(resolution.hash, resolution.size).await.expect("it is here");
    let mut resolution = Resolution::parse(&resolution).expect("a resolution");
    resolution.environments[0].wheels[0].file.urls =
        vec!["https://evil.example/lib.whl".parse().expect("an address")];
    resolution.sign(publisher.signing_key());
    want.resolution = Some(store.import_bytes(&resolution.to_canonical_json()).await.expect("there is room"));
    let refused = assemble(&want).await.map(|_| ()).expect_err("it names another host");
    let BuildError::Refused(reason) = refused else { panic!("{refused:?}") };
    assert!(hint.iter().all(|word| reason.contains(word)), "{reason}");
}

/// A file system of 8 MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a file system of 8 MiB is mounted by root only");
            return None;
        }
        std::fs::create_dir_all(&at).expect("a folder");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
            .arg(&at)
            .status();
        assert!(mount.expect("there is a mount").success());
        Some(Self(at))
    }

    /// Leaves nothing free, until what is returned is dropped.
    fn fill(&self) -> tempfile::NamedTempFile {
        let mut filler = tempfile::NamedTempFile::new_in(&self.0).expect("a file");
        for size in [1 << 16, 1] {
            while std::io::Write::write_all(filler.as_file_mut(), &vec![1; size]).is_ok() {}
        }
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn full_disk_is_told_at_each_step_and_room_is_all_that_is_needed() {
    let (comfyui, nodes) = (Upstream::new(), Upstream::new());
    let main = comfyui.commit(&[("main.py", 0o100644, "run\n")]);
    let noise: String = (0..3_000_000_u32)
        .map(|number| char::from(32 + (number.wrapping_mul(2_654_435_761) >> 16) as u8 % 90))
        .collect();
    let large = nodes.commit(&[("__init__.py", 0o100644, "\n"), ("noise", 0o100644, &noise.repeat(4))]);
    let index = Index::serve(vec![wheel("lib", "1.0", &[])]).await;
    let farm = Farm::new();
    let Some(node) = Node::start(&farm, &index, None).await else { return };
    let Some(disk) = SmallDisk::mount(node.assembler.root.clone()) else { return };
    let publisher = key();
    let hint = ["the disk is full", "`comfy-farm workspace rm`", "tried again later"];

    // What is laid out is four times what came.
    let custom = json!([{ "from": "git", "url": large.url, "commit": large.commit, "disabled": false }]);
    let too_large =
        lockfile(json!({ "format": 1, "python": "3.11", "comfyui": main, "custom_nodes": custom }));
    check(node.fault(too_large, &publisher).await, PrepareStep::Code, &hint);
    let left = std::fs::read_dir(disk.0.join("code")).into_iter().flatten().count();
    assert_eq!(left, 0, "nothing half-made stays");

    let mut small = lockfile(json!({
        "format": 1, "python": "3.11", "comfyui": main, "packages": [{ "name": "lib", "version": "1.0" }],
    }));
    let filler = disk.fill();
    let (_, reason) = node.fault(small.clone(), &publisher).await;
    assert!(hint.iter().all(|word| reason.contains(word)), "{reason}");
    drop(filler);
    small.sign(publisher.signing_key());
    let document =
        node.exchange.store().import_bytes(&small.to_canonical_json()).await.expect("there is room");
    let made = node.assemble(&wanted(&small, document, &node), PublisherKey(publisher.peer().0)).await;
    assert!(made.expect("there is room now").python.is_file());
}
