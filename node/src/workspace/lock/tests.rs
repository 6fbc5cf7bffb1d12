//! Made-up ComfyUI folders of real repositories, with a real Python, recorded.

mod changes;
mod folders;

use std::fs;
use std::io::Seek;
use std::os::unix::fs::PermissionsExt;

use git2::Repository;
use protocol::{BlobHash, BlobRef, CustomNode, FileName, GitPin, Pin, RegistryPin, read_carried};
use serde_json::{Value, json};
use sha2::Digest;
use tempfile::TempDir;

use super::*;
use crate::workspace::git::tests::Upstream;

/// A ComfyUI folder that works, as far as its files tell.
struct Folder {
    folder: TempDir,
    commit: GitPin,
}

impl Folder {
    fn new() -> Self {
        let (folder, comfyui) = (tempfile::tempdir().expect("a temporary folder"), Upstream::new());
        let ignored = "/models/\n/input/\n/custom_nodes/\nvenv/\n";
        let commit = comfyui.commit(&[
            ("main.py", 0o100644, "run\n"),
            ("nodes.py", 0o100644, "\n"),
            (".gitignore", 0o100644, ignored),
            ("models/checkpoints/put_checkpoints_here", 0o100644, ""),
            ("custom_nodes/websocket_image_save.py", 0o100644, "\n"),
        ]);
        Repository::clone(commit.url.as_str(), folder.path().join("ComfyUI")).expect("cloned");
        let made = Self { folder, commit };
        made.write("input/picture.png", "a picture");
        let packages =
            [("torch", "2.6.0+cu124", None), ("nvidia-cublas-cu12", "12.4.5.8", None), ("pip", "24.0", None)];
        made.install_python(&packages);
        made
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("ComfyUI")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("own folder");
        fs::write(path, text).expect("own folder");
    }

    /// A custom node that was cloned, under its upstream's own name.
    fn clone_node(&self, upstream: &Upstream, file: &str) -> (String, GitPin) {
        let pin = upstream.commit(&[("__init__.py", 0o100644, "\n"), (file, 0o100644, "x\n")]);
        let name = pin.url.folder().to_owned();
        Repository::clone(pin.url.as_str(), self.path().join("custom_nodes").join(&name)).expect("cloned");
        (name, pin)
    }

    /// A real Python that finds these packages: name, version, `direct_url.json`.
    fn install_python(&self, packages: &[(&str, &str, Option<Value>)]) {
        let site = self.folder.path().join("site");
        for (name, version, origin) in packages {
            let folder = site.join(format!("{}-{version}.dist-info", name.replace('-', "_")));
            fs::create_dir_all(&folder).expect("own folder");
            let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
            fs::write(folder.join("METADATA"), metadata).expect("own folder");
            if let Some(origin) = origin {
                fs::write(folder.join("direct_url.json"), origin.to_string()).expect("own folder");
            }
        }
        self.write(
            "venv/bin/python",
            &format!("#!/bin/sh\nPYTHONPATH='{}' exec python3 -S \"$@\"\n", site.display()),
        );
        let program = self.path().join("venv/bin/python");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("own file");
    }

    fn lock_with(
        &self,
        ops: Value,
        models: &[PathBuf],
        sources: &[(Sha256, HttpsUrl)],
    ) -> Result<Locked, LockError> {
        let workflow = Workflow::parse(ops.to_string().as_bytes()).expect("a workflow");
        let comfyui = self.path();
        let known = KnownNames::default();
        let hub = hub::HUGGING_FACE.parse().expect("a URL");
        let bare = LockRequest::bare(&comfyui, &workflow, &hub, &known);
        let request = LockRequest { models, sources, ..bare };
        lock(&request, &|_| {})
    }

    /// With the files of some custom nodes, or of all that are changed.
    fn lock_carrying(&self, carry: &[&str], carry_dirty: bool) -> Result<Locked, LockError> {
        let workflow = Workflow::parse(bare().to_string().as_bytes()).expect("a workflow");
        let (comfyui, known) = (self.path(), KnownNames::default());
        let hub = hub::HUGGING_FACE.parse().expect("a URL");
        let carry: Vec<String> = carry.iter().map(|name| (*name).to_owned()).collect();
        let bare = LockRequest::bare(&comfyui, &workflow, &hub, &known);
        let request = LockRequest { carry: &carry, carry_dirty, ..bare };
        lock(&request, &|_| {})
    }

    fn lock(&self, ops: Value) -> Locked {
        self.lock_with(ops, &[], &[]).expect("recorded")
    }

    fn fault(&self) -> String {
        self.lock_with(bare(), &[], &[]).expect_err("refused").to_string()
    }
}

#[test]
fn every_remote_is_recorded_and_that_which_is_known_to_have_the_commit_goes_first() {
    let (folder, nodes, fork) = (Folder::new(), Upstream::new(), Upstream::new());
    let (name, pin) = folder.clone_node(&nodes, "nodes.py");
    let repository = Repository::open(folder.path().join("custom_nodes").join(&name)).expect("a clone");
    let fork = fork.commit(&[("__init__.py", 0o100644, "another\n")]).url;
    repository.remote_set_url("origin", fork.as_str()).expect("set");
    for mut known in repository.references_glob("refs/remotes/origin/*").expect("read").flatten() {
        known.delete().expect("own repository");
    }
    let others = [
        ("own", "https://me:secret@example.org/nodes.git"),
        ("again", "https://example.org/nodes/"),
        ("ssh", "git@github.com:a/nodes.git"),
        ("hidden", "ssh://git@forge.example/a/b"),
        ("upstream", pin.url.as_str()),
    ];
    for (remote, url) in others {
        repository.remote(remote, url).expect("set");
    }
    let head = repository.head().expect("a head").target().expect("a commit");
    repository.reference("refs/remotes/upstream/main", head, false, "fetched").expect("set");

    let locked = folder.lock(bare());
    let [CustomNode::Git { url, mirrors, .. }] = locked.lockfile.custom_nodes.as_slice() else {
        panic!("{:?}", locked.lockfile.custom_nodes)
    };
    assert_eq!(url, &pin.url, "a branch of it that is known here has the commit");
    let mirrors: Vec<&str> = mirrors.iter().map(|url| url.as_str()).collect();
    // In the order of their names, once each; what only its user reaches goes last.
    assert_eq!(mirrors, ["https://example.org/nodes/", "https://github.com/a/nodes.git", fork.as_str()]);
    let told = locked
        .notes
        .iter()
        .any(|note| note.contains("a remote is not recorded") && note.contains("forge.example"));
    assert!(told, "{:?}", locked.notes);
    assert!(locked.lacking.iter().all(|lacking| !lacking.starts_with("custom node")), "{:?}", locked.lacking);
    let counted = |note: &String| note.contains("not everybody reaches");
    assert!(!locked.notes.iter().any(counted), "a node may need them: {:?}", locked.notes);

    // Where a public one has the commit, nobody is told of the others.
    repository.reference("refs/remotes/own/main", head, false, "fetched").expect("set");
    let locked = folder.lock(bare());
    let [CustomNode::Git { url, mirrors, .. }] = locked.lockfile.custom_nodes.as_slice() else {
        panic!("{:?}", locked.lockfile.custom_nodes)
    };
    assert_eq!(url.as_str(), "https://example.org/nodes.git");
    assert_eq!(
        mirrors.iter().map(|url| url.as_str()).collect::<Vec<_>>(),
        ["https://github.com/a/nodes.git"]
    );
    let told = locked.notes.iter().find(|note| counted(note)).expect("told");
    assert!(told.contains(&format!("`{name}`: 2 of its remotes")) && told.contains(url.as_str()), "{told}");
}

/// A workflow that names no file.
fn bare() -> Value {
    json!({"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}})
}

fn load(model: &str) -> Value {
    json!({"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}}})
}

fn paths(locked: &Locked) -> Vec<&str> {
    locked.lockfile.models.iter().map(|model| model.path.as_str()).collect()
}

#[test]
fn folder_is_recorded_with_its_commits_packages_and_what_the_workflow_names() {
    let (folder, nodes, off) = (Folder::new(), Upstream::new(), Upstream::new());
    let (_, on) = folder.clone_node(&nodes, "nodes.py");
    let (name, off) = folder.clone_node(&off, "nodes.py");
    let custom_nodes = folder.path().join("custom_nodes");
    fs::rename(custom_nodes.join(&name), custom_nodes.join(format!("{name}.disabled"))).expect("renamed");
    folder.write("models/checkpoints/sub/used.safetensors", "used");
    folder.write("models/checkpoints/unused.safetensors", "unused");
    // What its user did with the folders that are his changes no code.
    fs::remove_file(folder.path().join("models/checkpoints/put_checkpoints_here")).expect("removed");

    let locked = folder.lock(json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub\\used.safetensors"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "picture.png [input]"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a picture of ../input", "clip": ["1", 1]}},
    }));
    let Lockfile { comfyui, custom_nodes, packages, models, python, .. } = &locked.lockfile;
    assert_eq!(comfyui.as_ref(), Some(&folder.commit));
    assert!(python.as_ref().is_some_and(|python| python.as_str().starts_with("3.")), "{python:?}");
    let git = |pin: &GitPin, disabled| CustomNode::Git {
        url: pin.url.clone(),
        commit: pin.commit.clone(),
        mirrors: Vec::new(),
        folder: None,
        disabled,
    };
    assert_eq!(custom_nodes.len(), 2, "{custom_nodes:?}");
    assert!(custom_nodes.contains(&git(&on, false)) && custom_nodes.contains(&git(&off, true)));
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, ["torch"], "neither what follows the build of torch nor the installer");
    assert_eq!(paths(&locked), ["models/checkpoints/sub/used.safetensors"]);
    let model = &models[0];
    assert_eq!((model.size, model.blob), (4, Some(BlobHash::of(b"used"))));
    assert_eq!(model.sha256, Some(Sha256(sha2::Sha256::digest(b"used").into())));
    assert_eq!(locked.inputs, [("picture.png".to_owned(), folder.path().join("input/picture.png"))].into());
}

#[test]
fn everything_that_has_no_place_in_a_lockfile_is_refused_by_name_and_together() {
    let (folder, nodes) = (Folder::new(), Upstream::new());
    let (name, _) = folder.clone_node(&nodes, "nodes.py");
    folder.write(&format!("custom_nodes/{name}/nodes.py"), "changed\n");
    folder.write(&format!("custom_nodes/{name}/more.py"), "new\n");
    folder.write(&format!("custom_nodes/{name}/settings.json"), "{}\n");
    folder.write("custom_nodes/bare/__init__.py", "\n");
    folder.write("custom_nodes/no-node/data.txt", "\n");
    folder.write("main.py", "changed\n");
    let own = Repository::init(folder.path().join("custom_nodes/own")).expect("made");
    let fault = folder.fault();
    let expected = [
        "ComfyUI is not as its commit has it, which a lockfile cannot carry (`main.py`)".to_owned(),
        "custom node `bare` is a folder that neither git nor the registry knows".to_owned(),
        "custom node `own` has no remote".to_owned(),
        "custom node `own` has no commit yet".to_owned(),
        format!(
            "custom node `{name}` is not as its commit has it, which a lockfile cannot carry (`more.py`, `nodes.py`)"
        ),
    ];
    assert_eq!(fault.lines().count(), 1 + expected.len(), "{fault}");
    for expected in expected {
        assert!(fault.contains(&expected), "{expected}: {fault}");
    }
    own.remote("origin", "git@git.example.org:me/own.git").expect("set");
    assert!(
        folder.fault().contains("custom node `own` cannot be recorded: `git@git.example.org:me/own.git`")
    );
    // Switched off, they are in nobody's way.
    let custom_nodes = folder.path().join("custom_nodes");
    for name in ["bare", "own", &name] {
        fs::rename(custom_nodes.join(name), custom_nodes.join(format!("{name}.disabled"))).expect("renamed");
    }
    folder.write("main.py", "run\n");
    let locked = folder.lock(bare());
    assert!(locked.notes.iter().any(|note| note == "custom node `bare` is switched off and left out"));
    assert_eq!(locked.lockfile.custom_nodes.len(), 1);
}

#[test]
fn folder_that_is_no_comfyui_or_no_repository_is_refused_with_what_to_do() {
    let folder = Folder::new();
    fs::remove_dir_all(folder.path().join(".git")).expect("own folder");
    assert!(folder.fault().contains("ComfyUI is no git repository"));
    fs::remove_file(folder.path().join("main.py")).expect("own file");
    assert!(folder.fault().contains("name the folder of ComfyUI itself"));
}

/// The files of a custom node that travels, by their paths.
fn carried(locked: &Locked, name: &str) -> Vec<(String, String)> {
    let node = locked.carried.iter().find(|node| node.name.as_str() == name).expect("it travels");
    let recorded = locked.lockfile.custom_nodes.iter().find_map(|node| match node {
        CustomNode::Carried { name: recorded, files, .. } if recorded.as_str() == name => Some(*files),
        _ => None,
    });
    let archive = || node.archive.try_clone().expect("open");
    assert_eq!(recorded, Some(BlobRef::of_reader(archive()).expect("read")));
    archive().rewind().expect("a file");
    let mut files = Vec::new();
    read_carried(archive(), &node.name, &mut |file, reader| {
        files.push((file.path.clone(), std::io::read_to_string(reader)?));
        Ok(())
    })
    .expect("an archive");
    files
}

fn with_text(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn nodes_of_the_registry_and_single_files_travel_with_their_own_files() {
    let folder = Folder::new();
    let project = "[project]\nname = \"ComfyUI-Some\"\nversion = \"1.0.8\"\n";
    folder.write("custom_nodes/some/pyproject.toml", project);
    folder.write("custom_nodes/some/__init__.py", "some\n");
    folder.write("custom_nodes/some/own.py", "added\n");
    folder.write("custom_nodes/some/weights.bin", "downloaded\n");
    folder.write("custom_nodes/some/__pycache__/x.pyc", "made\n");
    folder.write("custom_nodes/some/.tracking", "__init__.py\nweb/gone.js\n");
    folder.write("custom_nodes/single.py", "single\n");
    folder.write("custom_nodes/off.py.disabled", "\n");
    let locked = folder.lock(bare());
    assert_eq!(carried(&locked, "single.py"), with_text(&[("single.py", "single\n")]));
    let some = with_text(&[
        ("some/.tracking", "__init__.py\nweb/gone.js\n"),
        ("some/__init__.py", "some\n"),
        ("some/own.py", "added\n"),
    ]);
    assert_eq!(carried(&locked, "some"), some);
    let [off, single, some] = locked.lockfile.custom_nodes.as_slice() else {
        panic!("{:?}", locked.lockfile.custom_nodes)
    };
    let token = |text: &str| text.parse().expect("a name");
    assert_eq!(off, &CustomNode::File { name: token("off.py"), disabled: true });
    assert!(matches!(single, CustomNode::Carried { registry: None, .. }));
    let registry = RegistryPin { id: token("comfyui-some"), version: token("1.0.8") };
    assert!(matches!(some, CustomNode::Carried { registry: Some(pin), .. } if *pin == registry));
    let notes = locked.notes.join("\n");
    assert!(notes.contains("left out: `pyproject.toml`, `weights.bin`"), "{notes}");
    assert_eq!(folder.lock(bare()).lockfile, locked.lockfile, "the same files are the same blob");
}

#[test]
fn private_nodes_travel_only_where_that_is_asked() {
    let (folder, nodes, others) = (Folder::new(), Upstream::new(), Upstream::new());
    let (unpushed, _) = folder.clone_node(&nodes, "nodes.py");
    let (plain, pin) = folder.clone_node(&others, "nodes.py");
    let custom_nodes = folder.path().join("custom_nodes");
    let clone = Repository::open(custom_nodes.join(&unpushed)).expect("cloned");
    let author = git2::Signature::new("a", "a@example.org", &git2::Time::new(0, 0)).expect("a name");
    let parent = clone.head().expect("a head").peel_to_commit().expect("a commit");
    let tree = parent.tree().expect("a tree");
    clone.commit(Some("HEAD"), &author, &author, "own", &tree, &[&parent]).expect("committed");
    folder.write("custom_nodes/bare/__init__.py", "bare\n");
    folder.write("custom_nodes/bare/sub/x.txt", "x\n");
    folder.write("custom_nodes/own/__init__.py", "own\n");
    folder.write("custom_nodes/own/.gitignore", "secret.*\n");
    folder.write("custom_nodes/own/secret.json", "{}\n");
    Repository::init(custom_nodes.join("own")).expect("made");

    let fault = folder.fault();
    for (name, reason) in [
        ("bare", "neither git nor the registry knows"),
        ("own", "has no remote"),
        (unpushed.as_str(), "at a commit that no branch or tag"),
    ] {
        let told = |line: &str| line.contains(reason) && line.contains(&format!("`--carry {name}`"));
        assert!(fault.lines().any(told), "{name}: {fault}");
    }
    let locked = folder.lock_carrying(&["bare", "own", &unpushed], false).expect("recorded");
    let bare = [("bare/__init__.py", "bare\n"), ("bare/sub/x.txt", "x\n")];
    assert_eq!(carried(&locked, "bare"), with_text(&bare));
    let own = [("own/.gitignore", "secret.*\n"), ("own/__init__.py", "own\n")];
    assert_eq!(carried(&locked, "own"), with_text(&own), "what git passes over stays here");
    let files = [format!("{unpushed}/__init__.py"), format!("{unpushed}/nodes.py")];
    let paths: Vec<String> = carried(&locked, &unpushed).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, files);
    let GitPin { url, commit, mirrors } = pin;
    let git = CustomNode::Git { url, commit, mirrors, folder: None, disabled: false };
    assert!(locked.lockfile.custom_nodes.contains(&git), "{plain}: {:?}", locked.lockfile.custom_nodes);
    let typing_error = folder.lock_carrying(&["bare", "own", &unpushed, "onw"], false);
    assert!(typing_error.expect_err("there is none").to_string().contains("custom node `onw`"));

    std::os::unix::fs::symlink("/etc", custom_nodes.join("bare/etc")).expect("linked");
    let leads_out = folder.lock_carrying(&["bare", "own", &unpushed], false).expect_err("it leads outside");
    let expected =
        "custom node `bare` cannot travel with the bundle: `bare/etc` is a link that leads outside";
    assert!(leads_out.to_string().contains(expected), "{leads_out}");
}

#[test]
fn packages_are_pinned_as_they_were_installed() {
    let folder = Folder::new();
    let sha256 = Sha256([0xab; 32]);
    let archive = json!({"url": "https://example.org/a.whl?token=secret", "archive_info": {"hashes": {"sha256": sha256}}});
    let commit = "dcba3cb2e2827b402d2701e7e1c7d9fed8a20ef1";
    let git = json!({"url": "https://github.com/openai/CLIP.git", "vcs_info": {"vcs": "git", "commit_id": commit}, "subdirectory": "x"});
    let file = json!({"url": "file:///tmp/c.whl", "archive_info": {"hash": format!("sha256={sha256}")}});
    let editable = json!({"url": "file:///home/me/d", "dir_info": {"editable": true}});
    folder.install_python(&[
        ("Archive", "1", Some(archive)),
        ("clip", "1.0", Some(git)),
        ("downloaded", "3", Some(file)),
        ("editable", "4", Some(editable)),
        ("xformers", "0.0.29+cu124", None),
    ]);
    let locked = folder.lock(bare());
    let packages = &locked.lockfile.packages;
    let pinned = |name: &str| packages.iter().find(|package| package.name.as_str() == name).expect(name);
    assert_eq!(pinned("archive").hashes, [sha256]);
    assert_eq!(pinned("downloaded").hashes, [], "another platform has another file");
    assert_eq!(locked.package_files, BTreeMap::from([("downloaded".parse().expect("a name"), sha256)]));
    assert_eq!(pinned("archive").pin, Pin::Url("https://example.org/a.whl".parse().expect("an address")));
    let clip = format!("https://github.com/openai/CLIP.git@{commit}#subdirectory=x");
    assert_eq!(pinned("clip").pin, Pin::Git(clip.parse().expect("an address")));
    assert_eq!(pinned("downloaded").pin, Pin::Version("3".parse().expect("a version")));
    let index = pinned("xformers").index.as_ref().map(HttpsUrl::as_str);
    assert_eq!(index, Some("https://download.pytorch.org/whl/cu124"));
    assert_eq!(pinned("torch").index, None, "its index is always that of its build");
    assert!(!packages.iter().any(|package| package.name.as_str() == "editable"));
    assert!(
        locked.notes.iter().any(|note| note.ends_with("for the index has it: `downloaded` 3")),
        "{:?}",
        locked.notes
    );
    assert!(locked.lacking.join("\n").contains("package `editable`: left out"), "{:?}", locked.lacking);
}

#[test]
fn python_that_does_not_run_comfyui_is_refused() {
    let folder = Folder::new();
    let site = folder.folder.path().join("site/torch-2.6.0+cu124.dist-info");
    fs::remove_dir_all(site).expect("own folder");
    assert!(folder.fault().contains("has no torch, so ComfyUI does not run in it"));
    folder.write("venv/bin/python", "#!/bin/sh\necho no such thing >&2\nexit 1\n");
    assert!(folder.fault().contains("does not tell what is installed in it: no such thing"));
    let workflow = Workflow::parse(bare().to_string().as_bytes()).expect("a workflow");
    let (comfyui, python) = (folder.path(), folder.path().join("none"));
    let hub = hub::HUGGING_FACE.parse().expect("a URL");
    let known = KnownNames::default();
    let request =
        LockRequest { python: Some(&python), ..LockRequest::bare(&comfyui, &workflow, &hub, &known) };
    let error = lock(&request, &|_| {}).expect_err("there is none").to_string();
    assert!(
        error.contains("none` cannot be started: name the one that runs ComfyUI with `--python`"),
        "{error}"
    );
}

#[test]
fn models_are_found_wherever_comfyui_finds_them_and_missing_ones_are_told() {
    let folder = Folder::new();
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let at = |path: &str| elsewhere.path().join(path);
    for path in ["shelf/big/listed.safetensors", "models/loras/further.safetensors"] {
        fs::create_dir_all(at(path).parent().expect("a folder")).expect("own folder");
        fs::write(at(path), path).expect("own folder");
    }
    let list = format!("here:\n    base_path: {}\n    checkpoints: shelf/big\n", elsewhere.path().display());
    folder.write("extra_model_paths.yaml", &list);
    folder.write("models/some/deeper/nested.pth", "nested");
    folder.write("models/vae/both.safetensors", "vae");
    folder.write("models/unet/both.safetensors", "unet");
    std::os::unix::fs::symlink(
        at("models/loras/further.safetensors"),
        folder.path().join("models/vae/link.pt"),
    )
    .expect("linked");
    let check = |model: &str, expected: &[&str]| {
        let locked = folder.lock_with(load(model), &[at("models")], &[]).expect("recorded");
        assert_eq!(paths(&locked), expected, "{model}");
        let is_told = locked.lacking.iter().any(|lacking| lacking.contains("it is in no folder of models"));
        assert_eq!(is_told, expected.is_empty(), "{model}: {:?}", locked.lacking);
    };
    check("listed.safetensors", &["models/checkpoints/listed.safetensors"]);
    check("further.safetensors", &["models/loras/further.safetensors"]);
    check("nested.pth", &["models/some/deeper/nested.pth"]);
    check("both.safetensors", &["models/unet/both.safetensors", "models/vae/both.safetensors"]);
    check("link.pt", &["models/vae/link.pt"]);
    folder.write("models/vae/.comfy-farm-private", "both.safetensors\n");
    let shared = folder
        .lock(load("both.safetensors"))
        .lockfile
        .models
        .iter()
        .map(|model| model.share)
        .collect::<Vec<_>>();
    assert_eq!(shared, [true, false], "its owner gives that of `vae` to nobody");
    check("none.safetensors", &[]);
    check("../input/x.safetensors", &[]);
}

#[test]
fn sources_are_given_or_found_beside_the_model_and_an_unused_one_is_noticed() {
    let folder = Folder::new();
    folder.write("models/checkpoints/a.safetensors", "a model");
    let sha256 = Sha256(sha2::Sha256::digest(b"a model").into());
    let told = json!({"downloadUrl": "https://civitai.com/api/download/models/7"});
    folder.write("models/checkpoints/a.civitai.info", &told.to_string());
    let given: HttpsUrl = "https://example.org/a.safetensors".parse().expect("an address");
    let locked = folder.lock_with(load("a.safetensors"), &[], &[(sha256, given.clone())]).expect("recorded");
    let urls: Vec<&str> =
        locked.lockfile.models[0].sources.iter().map(|source| source.url.as_str()).collect();
    assert_eq!(urls, [given.as_str(), "https://civitai.com/api/download/models/7"]);
    assert!(check_sources(&locked.lockfile, &[(sha256, given.clone())]).is_ok());
    let wrong = check_sources(&locked.lockfile, &[(Sha256([1; 32]), given)]);
    assert!(wrong.expect_err("unused").to_string().contains("which no model of the workflow has"));
}
