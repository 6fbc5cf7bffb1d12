//! With the real uv and a package index of the test's own.

mod building;
pub(crate) mod index;
mod repositories;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use protocol::{Accelerator, EnvironmentLock, EnvironmentSpec, Lockfile, LockfileHash};
use tokio_util::sync::CancellationToken;

use self::index::{Downloads, Index, sdist, wheel};
use super::*;
use crate::os::sandbox::Sandbox;
use crate::workspace::care::clear_drafts;
use crate::workspace::log::PrepareLog;

/// A node's folders, with a real uv and an index.
struct Setting {
    folder: tempfile::TempDir,
    index: Index,
    uv: Uv,
    downloads: Arc<Downloads>,
    log: PrepareLog,
    cancel: CancellationToken,
}

impl Setting {
    /// None where there is no uv to test with.
    async fn new(files: Vec<index::File>) -> Option<Self> {
        let Some(program) = std::env::var_os("COMFY_FARM_TEST_UV").filter(|value| !value.is_empty()) else {
            eprintln!("skipped: COMFY_FARM_TEST_UV is not set; `tests/run` sets it");
            return None;
        };
        let index = Index::serve(files).await;
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = UvConfig::new(folder.path().join("uv"));
        config.program = Some(program.into());
        config.indexes = Indexes { packages: index.url(), torch: Some(format!("{}/torch", index.url())) };
        config.download_python = false;
        config.sandbox =
            Sandbox::find().await.inspect_err(|reason| eprintln!("without walls: {reason}")).ok();
        let (log, cancel) = (PrepareLog::in_memory(), CancellationToken::new());
        let uv = Uv::find(config, &log, &cancel).await.expect("a uv that works");
        let downloads = Arc::new(Downloads::new(folder.path().join("downloads")));
        Some(Self { folder, index, uv, downloads, log, cancel })
    }

    fn environments(&self) -> Environments {
        let folder = self.folder.path().join("environments");
        Environments { uv: self.uv.clone(), folder, limits: Limits::default(), build_sources: true }
    }

    async fn resolve(&self, packages: &str, asks: &str) -> Result<EnvironmentLock, PythonError> {
        let lockfile = format!(r#"{{"format":1,"python":"3.11","packages":{packages}}}"#);
        let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
        let spec = EnvironmentSpec::of(&lockfile, &crate::platform(), Accelerator::Cpu);
        let asks = [Ask { from: "ComfyUI/requirements.txt".to_owned(), text: asks.to_owned() }];
        let resolver = Resolver { uv: self.uv.clone(), limits: Limits::default(), build_sources: true };
        resolver.resolve(&spec, &asks, &*self.downloads, &self.log, &self.cancel).await
    }

    async fn build(&self, lock: &EnvironmentLock) -> Result<Environment, PythonError> {
        self.environments().build(lock, None, &*self.downloads, &self.log, &self.cancel).await
    }
}

/// What a Python program of an environment prints.
fn python(environment: &Environment, program: &str) -> String {
    let output = std::process::Command::new(&environment.python).args(["-c", program]).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The packages of a lock but pip, which every one has.
fn names(lock: &EnvironmentLock) -> Vec<String> {
    let names = lock.wheels.iter().map(|wheel| format!("{}=={}", wheel.name, wheel.version));
    let (pip, others): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with("pip=="));
    assert_eq!(pip.len(), 1, "{others:?}");
    others
}

/// What is in a folder, hidden names too.
fn listed(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[tokio::test]
async fn pins_are_completed_and_installed_and_a_second_node_needs_no_index() {
    let files = vec![
        wheel("app", "1.0", &["lib>=1"]),
        wheel("lib", "1.0", &["deep"]),
        wheel("lib", "2.0", &["deep"]),
        wheel("deep", "7", &[]),
        wheel("extra", "3", &[]),
    ];
    let Some(first) = Setting::new(files).await else { return };
    let pins = r#"[{"name":"App","version":"1.0"},{"name":"lib","version":"1.0"}]"#;
    let lock = first.resolve(pins, "lib\nextra>=2 # more\n").await.expect("it goes together");
    assert_eq!(names(&lock), ["app==1.0", "deep==7", "extra==3", "lib==1.0"]);
    assert!(lock.built.is_empty() && !lock.equivalent && lock.torch.is_none());
    assert!(lock.files().all(|file| file.size > 0 && file.urls.len() == 1), "{lock:?}");
    assert!(lock.python.as_str().starts_with("3.11."), "{}", lock.python);

    let environment = first.build(&lock).await.expect("it is built");
    assert_eq!(python(&environment, "import app, lib, deep, extra; print(lib.VERSION)"), "1.0");
    assert_eq!(verify(&environment.folder).expect("it is read"), []);
    let asked = first.downloads.count();
    assert_eq!(first.build(&lock).await.expect("it is found"), environment);
    assert_eq!(first.downloads.count(), asked, "nothing is fetched for what is there");

    // The other machine has the files and the lock, and an index that does not answer.
    let second = Setting::new(Vec::new()).await.expect("there is a uv");
    second.index.stop();
    let written = EnvironmentLock::parse(&lock.to_canonical_json()).expect("it is read again");
    let same = second.environments();
    let built = same.build(&written, None, &*first.downloads, &second.log, &second.cancel).await;
    let built = built.expect("no index is needed");
    assert_eq!(built.key, environment.key);
    assert_eq!(python(&built, "import app, lib; print(lib.VERSION)"), "1.0");
    assert_eq!(second.index.requests(), 0);
}

#[tokio::test]
async fn pins_stand_against_what_packages_ask_for_as_they_did_on_the_authors_machine() {
    let files = vec![wheel("lib", "1.0", &[]), wheel("lib", "2.0", &[]), wheel("user", "1", &["lib>=2"])];
    let Some(setting) = Setting::new(files).await else { return };
    let pins = r#"[{"name":"lib","version":"1.0"},{"name":"user","version":"1"}]"#;
    let lock = setting.resolve(pins, "lib>=2\n").await.expect("as recorded");
    assert_eq!(names(&lock), ["lib==1.0", "user==1"]);
    let recorded = r#"[{"name":"pip","version":"24.0"}]"#;
    let other = Setting::new(vec![wheel("pip", "24.0", &[])]).await.expect("there is a uv");
    let lock = other.resolve(recorded, "").await.expect("it is the recorded one");
    assert_eq!(lock.wheels[0].version.as_str(), "24.0");
}

#[tokio::test]
async fn conflict_names_the_pin_and_keeps_the_explanation() {
    let files = vec![wheel("lib", "1.0", &[]), wheel("one", "1", &["two==1"]), wheel("two", "2", &[])];
    let Some(setting) = Setting::new(files).await else { return };
    let error = setting.resolve(r#"[{"name":"one","version":"1"}]"#, "").await.expect_err("nobody has two 1");
    let PythonError::Conflict { pins, explanation } = &error else { panic!("{error:?}") };
    assert_eq!(pins, &["one==1"]);
    assert!(explanation.contains("two==1"), "{error}");
    let twice = r#"[{"name":"lib","version":"1.0"},{"name":"Lib","version":"2.0"}]"#;
    let error = setting.resolve(twice, "").await.expect_err("two versions");
    assert!(matches!(error, PythonError::TwoVersions { .. }), "{error}");
    let error = setting.resolve(r#"[{"name":"lib","version":"9"}]"#, "").await.expect_err("no such");
    assert!(matches!(&error, PythonError::Conflict { pins, .. } if pins == &["lib==9"]), "{error:?}");
}

#[tokio::test]
async fn recorded_hash_is_honoured() {
    let file = wheel("lib", "1.0", &[]);
    let good = file.sha256();
    let Some(setting) = Setting::new(vec![file]).await else { return };
    let pin = |hash: &str| format!(r#"[{{"name":"lib","version":"1.0","hashes":["{hash}"]}}]"#);
    setting.resolve(&pin(&good.to_string()), "").await.expect("its own hash");
    let other = "0".repeat(64);
    let error = setting.resolve(&pin(&other), "").await.expect_err("another hash").to_string();
    for part in ["`lib` 1.0", &good.to_string(), &other, &setting.index.url()] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn torch_comes_from_the_index_of_its_build_and_the_choice_is_recorded() {
    let files = vec![
        wheel("torch", "2.6.0+cpu", &[]).at("torch/cpu"),
        wheel("lib", "9", &[]).at("torch/cpu"),
        wheel("lib", "1.0", &[]),
    ];
    let Some(setting) = Setting::new(files).await else { return };
    let lock = setting.resolve(r#"[{"name":"torch","version":"2.6.0+cu124"}]"#, "torch\nlib\n").await;
    let lock = lock.expect("the build for the processor is there");
    assert_eq!(names(&lock), ["lib==1.0", "torch==2.6.0+cpu"], "nothing else is taken from that index");
    assert!(lock.equivalent);
    assert_eq!(lock.torch.as_ref().map(|torch| torch.as_str()), Some("2.6.0+cpu"));
    let environment = setting.build(&lock).await.expect("it is built");
    assert_eq!(python(&environment, "import torch; print(torch.VERSION)"), "2.6.0+cpu");
}

#[tokio::test]
async fn plain_build_of_torch_is_taken_where_there_is_none_for_processors() {
    let Some(setting) = Setting::new(vec![wheel("torch", "2.6.0", &[])]).await else { return };
    let lock = setting.resolve(r#"[{"name":"torch","version":"2.6.0"}]"#, "").await.expect("the plain one");
    assert_eq!(names(&lock), ["torch==2.6.0"]);
    assert!(!lock.equivalent, "it is the recorded one");
}

#[tokio::test]
async fn recorded_patch_of_python_is_downloaded_first_and_another_one_is_noted() {
    let Some(setting) = Setting::new(Vec::new()).await else { return };
    let wanted = "3.11.0".parse().expect("a version");
    let found = setting.uv.python(&wanted, &setting.log, &setting.cancel).await.expect("there is a 3.11");
    let note = format!("Python {} stands for 3.11.0, which is not here", found.version);
    assert!(setting.log.tail().contains(&note), "{:?}", setting.log.tail());

    // One that finds nothing and downloads nothing, and keeps what it is asked.
    let at = |name: &str| setting.folder.path().join(name);
    let script = format!(
        "#!/bin/sh\ntest \"$1\" = --version && echo 'uv {PINNED_UV}' && exit\n\
         test \"$2\" = install && echo \"$4\" >> {}\nexit 1\n",
        at("asked").display()
    );
    std::fs::write(at("uv.sh"), script).expect("written");
    std::fs::set_permissions(at("uv.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("made one");
    let mut config = UvConfig::new(at("empty"));
    config.program = Some(at("uv.sh"));
    let uv = Uv::find(config, &setting.log, &setting.cancel).await.expect("it says so");
    let error =
        uv.python(&wanted, &setting.log, &setting.cancel).await.map(|_| ()).expect_err("there is none");
    assert!(error.to_string().contains("downloading Python 3.11.0 did not succeed"), "{error}");
    assert_eq!(std::fs::read_to_string(at("asked")).expect("it was asked"), "3.11.0\n3.11\n");
}

#[tokio::test]
async fn absent_python_and_silent_index_have_errors_of_their_own() {
    let Some(setting) = Setting::new(Vec::new()).await else { return };
    let resolver = Resolver { uv: setting.uv.clone(), limits: Limits::default(), build_sources: true };
    let resolve = async |python: &str| {
        let lockfile =
            format!(r#"{{"format":1,"python":"{python}","packages":[{{"name":"lib","version":"1"}}]}}"#);
        let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
        let spec = EnvironmentSpec::of(&lockfile, &crate::platform(), Accelerator::Cpu);
        let files = &*setting.downloads;
        resolver.resolve(&spec, &[], files, &setting.log, &setting.cancel).await.expect_err("it fails")
    };
    let error = resolve("3.2").await;
    assert!(matches!(&error, PythonError::NoPython { wanted, .. } if wanted == "3.2"), "{error:?}");
    assert!(error.to_string().contains("downloading one is not allowed"), "{error}");
    setting.index.stop();
    let error = resolve("3.11").await;
    assert!(matches!(error, PythonError::Index { .. }), "{error:?}");
}

#[tokio::test]
async fn killed_build_leaves_no_environment_and_the_next_one_is_whole() {
    let files = vec![wheel("app", "1.0", &["lib"]), wheel("lib", "1.0", &[])];
    let Some(setting) = Setting::new(files).await else { return };
    let lock = setting.resolve(r#"[{"name":"app","version":"1.0"}]"#, "").await.expect("it goes together");
    let environments = setting.environments();
    // As a process that was killed leaves it.
    let half = environments.folder.join(format!(".{}-dead/environment/bin", lock.key(None)));
    std::fs::create_dir_all(&half).expect("a folder");
    assert_eq!(environments.find(&lock, None), None);
    clear_drafts(setting.folder.path());
    assert!(listed(&environments.folder).is_empty());

    let cancel = CancellationToken::new();
    cancel.cancel();
    let canceled = environments.build(&lock, None, &*setting.downloads, &setting.log, &cancel).await;
    assert!(matches!(canceled, Err(PythonError::Canceled)), "{canceled:?}");
    // Dropped at some point of its work, as when the task that builds is ended.
    for milliseconds in [5, 50, 150] {
        let building = environments.build(&lock, None, &*setting.downloads, &setting.log, &setting.cancel);
        let _ = tokio::time::timeout(Duration::from_millis(milliseconds), building).await;
        let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        assert!(!listed(&environments.folder).iter().any(hidden), "nothing half is left");
    }
    let environment = setting.build(&lock).await.expect("it is built");
    assert_eq!(python(&environment, "import app, lib; print(app.VERSION)"), "1.0");
}

#[tokio::test]
async fn damage_is_found_and_a_wheel_of_another_hash_is_refused() {
    let Some(setting) = Setting::new(vec![wheel("app", "1.0", &[]), wheel("lib", "1.0", &[])]).await else {
        return;
    };
    let lock = setting.resolve(r#"[{"name":"app","version":"1.0"}]"#, "lib").await.expect("two");
    let environment = setting.build(&lock).await.expect("it is built");
    let packages = environment.folder.join("lib/python3.11/site-packages");
    std::fs::write(packages.join("app/__init__.py"), "VERSION = 'evil'\n").expect("it is written");
    std::fs::remove_file(packages.join("lib/__init__.py")).expect("it is removed");
    let damage = verify(&environment.folder).expect("it is read");
    let found: Vec<_> = damage.iter().map(|damage| (damage.path.to_str(), damage.missing)).collect();
    let below = |name: &str| format!("lib/python3.11/site-packages/{name}/__init__.py");
    assert_eq!(found, [(Some(below("app").as_str()), false), (Some(below("lib").as_str()), true)]);
    // To open a pipe would wait for whoever writes to it.
    let pipe = packages.join("lib/__init__.py");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("it is made");
    assert!(verify(&environment.folder).expect("it is read").iter().all(|damage| !damage.missing));

    let mut other = lock.clone();
    other.wheels[0].file.sha256 = protocol::Sha256([7; 32]);
    let error = setting.build(&other).await.expect_err("another file");
    assert!(matches!(error, PythonError::File(WheelError::WrongHash { .. })), "{error:?}");
}

/// Gives other bytes of the file that is read first, as an address does whose file is exchanged meanwhile. Of that alone: uv
/// gives up on the first wrong one, at a moment when it may have asked for the others or not.
struct Liar<'a> {
    downloads: &'a Downloads,
    lied: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl WheelSource for Liar<'_> {
    async fn file(
        &self,
        file: &protocol::LockedFile,
        turn: Option<tokio::sync::SemaphorePermit<'_>>,
    ) -> Result<PathBuf, WheelError> {
        self.downloads.file(file, turn).await
    }

    fn read<'a>(
        &'a self,
        file: &'a protocol::LockedFile,
    ) -> futures::stream::BoxStream<'a, Result<Vec<u8>, WheelError>> {
        let lies = !self.lied.swap(true, std::sync::atomic::Ordering::Relaxed);
        let parts = self.downloads.read(file);
        parts.map(move |part| part.map(|bytes| if lies { vec![0; bytes.len()] } else { bytes })).boxed()
    }

    async fn repository(&self, pin: &protocol::GitPin, into: &Path) -> Result<(), WheelError> {
        self.downloads.repository(pin, into).await
    }

    async fn size(&self, urls: &[protocol::WebUrl]) -> Result<u64, WheelError> {
        self.downloads.size(urls).await
    }
}

#[tokio::test]
async fn wrong_bytes_that_come_ahead_of_the_proof_are_not_installed() {
    let Some(setting) = Setting::new(vec![wheel("app", "1.0", &["lib"]), wheel("lib", "1.0", &[])]).await
    else {
        return;
    };
    let lock = setting.resolve(r#"[{"name":"app","version":"1.0"}]"#, "").await.expect("two");
    let liar = Liar { downloads: &setting.downloads, lied: Default::default() };
    let environments = setting.environments();
    let built = environments.build(&lock, None, &liar, &setting.log, &setting.cancel).await;
    let built = built.expect("the proven files are as good");
    assert_eq!(python(&built, "import app, lib; print(lib.VERSION)"), "1.0");
    assert_eq!(verify(&built.folder).expect("it is read"), []);
    assert!(setting.log.tail().iter().any(|line| line.ends_with("once more")), "{:?}", setting.log.tail());
}

#[tokio::test]
async fn wheels_are_given_to_our_own_uv_alone() {
    let Some(setting) = Setting::new(vec![wheel("app", "1.0", &[])]).await else { return };
    let lock = setting.resolve(r#"[{"name":"app","version":"1.0"}]"#, "").await.expect("one");
    let wheels = [wheels::Wheel { locked: lock.wheels[0].clone(), path: None }];
    let counter = counter::Counter::open(&wheels, &*setting.downloads).await.expect("a port");
    let mut command = tokio::process::Command::new("true");
    counter.lead(&mut command);
    let proxy = command.as_std().get_envs().find(|(name, _)| *name == "http_proxy");
    let proxy = proxy.and_then(|(_, proxy)| proxy?.to_str()).expect("it is led").to_owned();
    let pylock = counter.pylock();
    let url = pylock.split('"').find(|part| part.starts_with("http")).expect("a file").to_owned();
    let status = async |proxy: &str| {
        let proxy = reqwest::Proxy::http(proxy).expect("an address");
        let client = reqwest::Client::builder().proxy(proxy).build().expect("a client");
        client.get(&url).send().await.expect("an answer").status().as_u16()
    };
    let stranger = format!("http://{}", proxy.rsplit('@').next().unwrap_or_default());
    let asking = async { (status(&proxy).await, status(&stranger).await) };
    let asked = tokio::select! {
        asked = asking => asked,
        never = counter.serve(&setting.log) => match never {},
    };
    assert_eq!(asked, (200, 404));
}

#[tokio::test]
async fn install_scripts_run_in_order_in_an_environment_of_their_lockfile() {
    let Some(setting) = Setting::new(vec![wheel("app", "1.0", &[])]).await else { return };
    let lock = setting.resolve(r#"[{"name":"app","version":"1.0"}]"#, "").await.expect("one");
    let secret = setting.folder.path().join("secret");
    std::fs::write(&secret, "of the owner").expect("written");
    let (mut scripts, comfyui) = (Vec::new(), setting.folder.path().join("ComfyUI"));
    for name in ["b", "a", "none"] {
        let node = comfyui.join("custom_nodes").join(name);
        std::fs::create_dir_all(&node).expect("a folder");
        let script = format!(
            "import os, sys, app\n\
            open(os.path.join(sys.prefix, 'ran'), 'a').write(os.path.basename(os.getcwd()))\n\
            open('made', 'w').write('by the script'); os.remove('README')\n\
            open(os.path.join(sys.prefix, 'saw'), 'w').write(str(os.path.exists('{}')))\n\
            assert 'HOME' in os.environ and 'CARGO_MANIFEST_DIR' not in os.environ\n",
            secret.display()
        );
        if name != "none" {
            std::fs::write(node.join("install.py"), script).expect("it is written");
            std::fs::write(node.join("README"), "as it was committed").expect("it is written");
        }
        scripts.push(node);
    }
    let private =
        Private { lockfile: LockfileHash(protocol::BlobHash([1; 32])), comfyui: comfyui.clone(), scripts };
    let environments = setting.environments();
    for _ in 0..2 {
        let files = &*setting.downloads;
        let built = environments.build(&lock, Some(&private), files, &setting.log, &setting.cancel).await;
        let built = built.expect("it is built");
        assert_ne!(built.key, lock.key(None));
        let ran = std::fs::read_to_string(built.folder.join("ran")).expect("they ran");
        assert_eq!(ran, "ba", "in order, once");
        let own = built.comfyui.expect("a code tree of its own").join("custom_nodes/a");
        assert!(own.join("made").is_file() && !own.join("README").exists());
        let shared = comfyui.join("custom_nodes/a");
        assert!(!shared.join("made").exists() && shared.join("README").is_file(), "others have it too");
        let saw = std::fs::read_to_string(built.folder.join("saw")).expect("they ran");
        let is_walled = setting.uv.config.sandbox.is_some();
        assert_eq!(saw, if is_walled { "False" } else { "True" }, "what the owner has is nobody's");
    }
    std::fs::write(comfyui.join("custom_nodes/a/install.py"), "raise SystemExit('no')").expect("written");
    let other = Private { lockfile: LockfileHash(protocol::BlobHash([2; 32])), ..private };
    let built = environments.build(&lock, Some(&other), &*setting.downloads, &setting.log, &setting.cancel);
    let error = built.await.expect_err("a script fails");
    assert!(matches!(&error, PythonError::Failed { step, .. } if step.contains("a/install.py")), "{error}");
    assert_eq!(listed(&environments.folder).len(), 1);
}

#[tokio::test]
async fn links_that_an_install_script_leaves_lead_to_nothing_of_the_owners() {
    let Some(setting) = Setting::new(vec![wheel("app", "1.0", &[])]).await else { return };
    let lock = setting.resolve(r#"[{"name":"app","version":"1.0"}]"#, "").await.expect("one");
    let at = |name: &str| setting.folder.path().join(name);
    std::fs::create_dir_all(at("owners/custom_nodes/b")).expect("a folder");
    std::fs::write(at("owners/custom_nodes/b/install.py"), "open('ran', 'w')").expect("written");
    let nodes = ["a", "b"].map(|name| at("ComfyUI/custom_nodes").join(name));
    for node in &nodes {
        std::fs::create_dir_all(node).expect("a folder");
        std::fs::write(node.join("install.py"), "").expect("written");
    }
    let check = async |number: u8, place: &str, target: &str, fault: Option<&str>| {
        let script = format!(
            "import os, sys\nplace = os.path.join(sys.prefix, '{place}')\n\
             if os.path.lexists(place): os.rename(place, os.path.join(sys.prefix, 'aside'))\n\
             os.symlink('{}', place)\n",
            at(target).display()
        );
        std::fs::write(nodes[0].join("install.py"), script).expect("written");
        let private = Private {
            lockfile: LockfileHash(protocol::BlobHash([number; 32])),
            comfyui: at("ComfyUI"),
            scripts: nodes.to_vec(),
        };
        let environments = setting.environments();
        let files = &*setting.downloads;
        let built = environments.build(&lock, Some(&private), files, &setting.log, &setting.cancel).await;
        match (built, fault) {
            (Ok(_), None) => {}
            (Err(PythonError::Io { source, .. }), Some(fault)) => {
                assert!(source.to_string().contains(fault), "{source}");
            }
            (built, _) => panic!("{place}: {built:?}"),
        }
    };
    check(1, "ComfyUI", "owners", Some("`ComfyUI`")).await;
    check(2, "ComfyUI/custom_nodes/b", "owners/custom_nodes/b", Some("`ComfyUI/custom_nodes/b`")).await;
    check(3, "bin/python", "owners/custom_nodes/b/install.py", Some("changed its Python")).await;
    check(4, "environment.json", "owners/made", None).await;
    assert!(!at("owners/made").exists() && !at("owners/custom_nodes/b/ran").exists());
    assert_eq!(listed(&at("environments")).len(), 1);
}

#[tokio::test]
async fn what_uv_keeps_is_as_it_was_after_code_of_strangers_ran() {
    let Some(setting) = Setting::new(vec![wheel("app", "1.0", &[]), wheel("lib", "1.0", &[])]).await else {
        return;
    };
    if setting.uv.config.sandbox.is_none() {
        eprintln!("skipped: nothing here makes walls");
        return;
    }
    // Something of each kind is kept: a cache with wheels, a Python, a wheel that was built, and uv itself.
    let kept = setting.uv.folder("");
    for name in ["python/cpython-3.11/bin/python3.11", "wheels/0/a.whl", "uv-1/bin/uv"] {
        std::fs::create_dir_all(kept.join(name).parent().expect("it has one")).expect("made");
        std::fs::write(kept.join(name), "as it was").expect("written");
    }
    let lock = setting.resolve(r#"[{"name":"app","version":"1.0"}]"#, "lib").await.expect("two");
    setting.build(&lock).await.expect("uv's cache has both now");
    let before = contents(&kept);
    assert!(before.keys().any(|path| path.starts_with("cache/") && path.ends_with("app/__init__.py")));

    // What it tries: to change all that is kept there, and what is named to it as the cache.
    let statement = format!(
        "import os; exec({:?})",
        format!(
            "for root in ['{}', os.environ['UV_CACHE_DIR'], os.environ['HOME']]:\n  \
             for folder, _, names in list(os.walk(root)) or [(root, [], [])]:\n    \
             for name in names + ['new']:\n      \
             try: open(os.path.join(folder, name), 'w').write('evil')\n      \
             except OSError: pass\n",
            kept.display()
        )
    );
    let node = setting.folder.path().join("ComfyUI/custom_nodes/a");
    std::fs::create_dir_all(&node).expect("a folder");
    std::fs::write(node.join("install.py"), format!("{statement}\nopen('ran', 'w')\n")).expect("written");
    let private = Private {
        lockfile: LockfileHash(protocol::BlobHash([1; 32])),
        comfyui: setting.folder.path().join("ComfyUI"),
        scripts: vec![node],
    };
    let files = &*setting.downloads;
    let environments = setting.environments();
    let built = environments.build(&lock, Some(&private), files, &setting.log, &setting.cancel).await;
    let built = built.expect("it is built");
    assert!(built.comfyui.expect("a code tree of its own").join("custom_nodes/a/ran").is_file());

    // The build of a source tries the same, and again as uv asks it what it needs.
    let source = Setting::new(vec![sdist("old", "0.6", &statement)]).await.expect("there is a uv");
    let mut uv = setting.uv.clone();
    uv.config.indexes = source.uv.config.indexes.clone();
    let building = Setting { uv, ..source };
    let lock = building.resolve(r#"[{"name":"old","version":"0.6"}]"#, "").await.expect("a source");
    building.build(&lock).await.expect("it is built");
    let after = contents(&kept);
    // The node's own calls may have added to it.
    let changed: Vec<_> = before.iter().filter(|(path, text)| after.get(*path) != Some(*text)).collect();
    assert!(changed.is_empty(), "{:?}", changed.iter().map(|(path, _)| path).collect::<Vec<_>>());
    assert!(!after.values().any(|text| text == b"evil"), "nothing of it came to what is kept");
}

/// The files below a folder, by their path.
fn contents(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let (mut files, mut open) = (std::collections::BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(path) = open.pop() {
        for path in listed(&path) {
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                files.insert(name, std::fs::read(&path).unwrap_or_default());
            }
        }
    }
    files
}
