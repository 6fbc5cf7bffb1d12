//! The managed engine on a real ComfyUI, where `tests/run` installed one.

mod life;
mod outputs;
mod shared;

use std::path::{Path, PathBuf};

use protocol::{
    Argument, BlobHash, BlobRef, CodeHash, EnvironmentKey, Filling, Interface, LockfileHash, Making, RunId,
    Workflow,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::ends::NewOutput;
use crate::engine::InputFile;
use crate::run::outputs::name_outputs;
use crate::testing::PATIENCE;

/// How long a ComfyUI may take to start beside other work.
const START: Duration = Duration::from_secs(120);

/// A workspace of a real or made-up ComfyUI.
pub(super) fn workspace(comfyui: &Path, files: &Path, python: impl Into<PathBuf>) -> Workspace {
    Workspace {
        lockfile: LockfileHash(BlobHash([0; 32])),
        environment: EnvironmentKey(BlobHash([0; 32])),
        code: CodeHash(BlobHash([0; 32])),
        python: python.into(),
        comfyui: comfyui.to_owned(),
        files: files.to_owned(),
        classes: ["SaveImage".to_owned()].into(),
        model_names: Default::default(),
        equivalent: false,
        left_out: vec![],
    }
}

/// A managed engine, and a workspace of the real ComfyUI.
struct Machine {
    engine: Managed,
    workspace: Workspace,
    folder: tempfile::TempDir,
    runs: std::cell::Cell<u128>,
}

impl Machine {
    /// Within walls where this machine has some.
    async fn walled(change: impl FnOnce(&mut ManagedConfig)) -> Option<Self> {
        let sandbox = Sandbox::find().await.inspect_err(|reason| eprintln!("skipped: {reason}")).ok();
        Self::new(|config| {
            config.sandbox = sandbox;
            change(config);
        })
    }

    fn new(change: impl FnOnce(&mut ManagedConfig)) -> Option<Self> {
        let Some(real) = std::env::var_os("COMFY_FARM_TEST_COMFYUI").filter(|value| !value.is_empty()) else {
            eprintln!("skipped: COMFY_FARM_TEST_COMFYUI is not set; `tests/run` sets it");
            return None;
        };
        let (real, folder) = (PathBuf::from(real), tempfile::tempdir().expect("a temporary folder"));
        let workspace =
            workspace(&real.join("ComfyUI"), &folder.path().join("files"), real.join("venv/bin/python"));
        let mut config = ManagedConfig::new(
            folder.path().join("slots"),
            vec![Device::Cpu { threads: 2, memory: 8 << 30 }],
        );
        // Of the same programs each time: nobody compiles them again.
        config.byte_code = std::env::temp_dir().join("comfy-farm-test-byte-code");
        change(&mut config);
        Some(Self { engine: Managed::new(config), workspace, folder, runs: Default::default() })
    }

    /// Puts a file into the workspace.
    fn file(&self, path: &str, text: &str) {
        let path = self.workspace.files.join(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    async fn run(&self, graph: Value, cancel: &CancellationToken) -> Result<Vec<ProducedFile>, RunError> {
        let workflow = Workflow::parse(&serde_json::to_vec(&graph).expect("JSON")).expect("a workflow");
        self.execute(Execution { outputs: vec!["9".to_owned()], ..self.next(workflow) }, cancel).await
    }

    /// Does a job as a node does it: with the interface of the workflow and the files of its parameters.
    async fn job(&self, graph: &Value, files: &[(&str, &str, &[u8])]) -> Result<Vec<NewOutput>, RunError> {
        let workflow = Workflow::parse(&serde_json::to_vec(graph).expect("JSON")).expect("a workflow");
        let interface = Interface::of(&workflow).expect("an interface");
        let given = files
            .iter()
            .map(|(input, name, bytes)| ((*input).to_owned(), Argument::file(BlobRef::of(bytes), name)));
        let parameters = interface.check(given.collect()).expect("they fit");
        let mut execution = self.next(Workflow::default());
        let output_prefix = format!("comfy-farm/{}", execution.run);
        let filling = Filling { output_prefix, inputs: Default::default() };
        let filled = protocol::fill(&workflow, &interface, &parameters, &filling).expect("it is filled");
        for (name_in_graph, blob) in filled.files {
            let (_, _, bytes) = files.iter().find(|(.., bytes)| BlobRef::of(bytes) == blob).expect("given");
            let path = self.folder.path().join(&name_in_graph);
            std::fs::write(&path, bytes).expect("written");
            execution.files.push(InputFile { name_in_graph, path });
        }
        execution.workflow = filled.workflow;
        execution.outputs =
            filled.outputs.iter().flat_map(|output| output.ops()).map(str::to_owned).collect();
        let named = filled.outputs.iter().filter(|output| output.making == Making::NamedFile);
        execution.named_files = named.map(|output| output.op.clone()).collect();
        let scratch = execution.scratch.clone();
        let produced = self.execute(execution, &CancellationToken::new()).await?;
        name_outputs(&filled.outputs, &produced, &scratch)
    }

    /// The next run, of this workflow.
    fn next(&self, workflow: Workflow) -> Execution {
        self.runs.set(self.runs.get() + 1);
        let run = RunId(uuid::Uuid::from_u128(self.runs.get()));
        let scratch = self.folder.path().join(run.to_string());
        std::fs::create_dir_all(&scratch).expect("made");
        let workspace = Some(Arc::new(self.workspace.clone()));
        let (files, outputs, named_files) = Default::default();
        Execution { run, slot: SlotId(0), workspace, workflow, files, outputs, named_files, scratch }
    }

    async fn execute(
        &self,
        execution: Execution,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError> {
        let (progress, _watched) = ProgressSink::new();
        let running = self.engine.execute(execution, &progress, cancel);
        timeout(START * 3, running).await.expect("it ends in time")
    }

    /// The id of the first slot's process.
    async fn process(&self) -> Option<u32> {
        self.process_of(SlotId(0)).await
    }

    async fn process_of(&self, slot: SlotId) -> Option<u32> {
        let slot = self.engine.slot(slot);
        let place = slot.process.lock().await;
        place.process.as_ref().and_then(Process::id)
    }
}

/// Saves a picture of its own colour, after an op between the two.
fn saving(color: u32, class: &str, inputs: &Value) -> Value {
    let mut inputs = inputs.clone();
    inputs["image"] = json!(["1", 0]);
    json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 8, "height": 8, "batch_size": 1, "color": color } },
        "2": { "class_type": class, "inputs": inputs },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["2", 0], "filename_prefix": "x" } },
    })
}

fn inverted() -> Value {
    saving(0x33_66_99, "ImageInvert", &json!({}))
}

#[tokio::test]
async fn process_stays_warm_gives_the_same_files_again_and_ends_when_it_has_no_work() {
    let Some(machine) = Machine::walled(|config| config.idle = Duration::from_millis(500)).await else {
        return;
    };
    let cancel = CancellationToken::new();
    let first = machine.run(inverted(), &cancel).await.expect("a picture");
    let id = machine.process().await.expect("it is warm");
    let pixels = std::fs::read(&first[0].path).expect("the picture");
    // Nothing is left to execute, and the file comes all the same.
    let again = machine.run(inverted(), &cancel).await.expect("the picture again");
    assert_eq!(std::fs::read(&again[0].path).expect("the picture"), pixels);
    let idle = async {
        let same = machine.process().await;
        assert!(same.is_none_or(|same| same == id));
        while machine.process().await.is_some() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, idle).await.expect("it ends after its idle time");
    assert!(!PathBuf::from(format!("/proc/{id}")).exists());
}

#[tokio::test]
async fn closed_engine_has_waited_for_the_end_of_its_process() {
    let Some(machine) = Machine::new(|_| {}) else { return };
    machine.run(inverted(), &CancellationToken::new()).await.expect("a picture");
    let id = machine.process().await.expect("it is warm");
    machine.engine.close().await;
    assert!(!PathBuf::from(format!("/proc/{id}")).exists());
}

#[tokio::test]
async fn process_that_dies_is_started_anew_once_and_the_next_run_finds_a_sound_one() {
    let Some(machine) = Machine::new(|_| {}) else { return };
    let cancel = CancellationToken::new();
    // Its first process ends in the middle, its second does not.
    let mark = machine.folder.path().join("died");
    machine.file("custom_nodes/mortal/__init__.py", &MORTAL.replace("MARK", &mark.display().to_string()));
    machine.run(saving(1, "Mortal", &json!({})), &cancel).await.expect("a picture at the second attempt");
    assert!(mark.exists(), "the first attempt was made");
    let failed = machine.run(saving(2, "TestFail", &json!({ "kind": "exit" })), &cancel).await;
    let failed = failed.expect_err("it ends each process");
    assert_eq!(failed.kind, RunErrorKind::EngineUnavailable);
    assert!(failed.detail.contains("exit status: 3"), "{}", failed.detail);
    assert_eq!(machine.process().await, None);
    machine.run(inverted(), &cancel).await.expect("a picture");
}

const MORTAL: &str = r#"
import os
class Mortal:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}
    def execute(self, image):
        if not os.path.exists("MARK"):
            open("MARK", "w").close()
            os._exit(3)
        return (image,)
NODE_CLASS_MAPPINGS = {"Mortal": Mortal}
"#;

#[tokio::test]
async fn process_that_is_up_and_dead_is_ended_and_so_is_one_that_does_not_stop() {
    let Some(machine) = Machine::walled(|config| {
        config.comfyui.stall_after = Duration::from_secs(4);
        config.comfyui.stop_within = Duration::from_millis(500);
    })
    .await
    else {
        return;
    };
    let cancel = CancellationToken::new();
    let failed = machine.run(saving(1, "TestFail", &json!({ "kind": "unprintable" })), &cancel).await;
    assert_eq!(failed.expect_err("it never works again").kind, RunErrorKind::Stalled);
    assert_eq!(machine.process().await, None);
    machine.run(inverted(), &cancel).await.expect("a picture");
    let busy = json!({ "steps": 1, "seconds": 600.0, "interruptible": false });
    let slow = saving(2, "TestProgress", &busy);
    let running = machine.run(slow, &cancel);
    let (failed, ()) = tokio::join!(running, async {
        sleep(Duration::from_secs(1)).await;
        cancel.cancel();
    });
    assert_eq!(failed.expect_err("it is cancelled").kind, RunErrorKind::Canceled);
    assert_eq!(machine.process().await, None, "what does not stop is killed");
}

#[tokio::test]
async fn download_at_run_time_is_stopped_and_told_with_its_address() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    if machine.engine.config.sandbox.is_none() {
        return;
    }
    machine.file("custom_nodes/remote/__init__.py", REMOTE);
    let failed = machine.run(saving(1, "Remote", &json!({})), &CancellationToken::new()).await;
    let failed = failed.expect_err("it has no network");
    assert_eq!(failed.kind, RunErrorKind::UndeclaredFile, "{}", failed.detail);
    assert!(failed.detail.contains("`https://models.example.org/face.pth`"), "{}", failed.detail);
    assert_eq!(failed.url.as_deref(), Some("https://models.example.org/face.pth"));
    assert_eq!(failed.op.expect("the op is named").class, "Remote");
}

const REMOTE: &str = include_str!("../../../../tests/real/remote.py");

#[tokio::test]
async fn links_that_a_process_lays_lead_the_node_to_no_other_socket() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    if machine.engine.config.sandbox.is_none() {
        return;
    }
    let others = machine.folder.path().join("owners.sock");
    let listener = std::os::unix::net::UnixListener::bind(&others).expect("bound");
    listener.set_nonblocking(true).expect("set");
    let folder = machine.engine.config.folder.display().to_string();
    let script = SWAP.replace("SLOTS", &folder).replace("OTHERS", &others.display().to_string());
    machine.file("custom_nodes/swap/__init__.py", &script);
    let swapped = machine.run(saving(1, "Swap", &json!({})), &CancellationToken::new()).await;
    swapped.expect("a picture, from the process itself");
    let other = listener.accept().expect_err("nobody talks to the owner's socket");
    assert_eq!(other.kind(), std::io::ErrorKind::WouldBlock);
}

/// Puts a link into the place of every socket that it finds, and where the node has one.
const SWAP: &str = r#"
import os, stat
places = ["SLOTS/slot-0.sock", "SLOTS/slot-0/comfyui.sock"]
for folder, _, names in os.walk("SLOTS"):
    paths = [os.path.join(folder, name) for name in names]
    places += [path for path in paths if stat.S_ISSOCK(os.lstat(path).st_mode)]
for place in places:
    try:
        if os.path.lexists(place):
            os.remove(place)
        os.symlink("OTHERS", place)
    except OSError:
        pass
class Swap:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}
    def execute(self, image):
        return (image,)
NODE_CLASS_MAPPINGS = {"Swap": Swap}
"#;

#[tokio::test]
async fn out_of_memory_is_told_apart_frees_what_models_hold_and_leaves_the_process() {
    let Some(machine) = Machine::new(|_| {}) else { return };
    machine.file("custom_nodes/freed/__init__.py", FREED);
    let freed = machine.folder.path().join("slots/slot-0/ComfyUI/output/freed");
    let cancel = CancellationToken::new();
    machine.run(inverted(), &cancel).await.expect("a picture");
    let id = machine.process().await.expect("it is warm");
    assert!(!freed.exists(), "a run that succeeds leaves its models where they are");
    let failed = machine.run(saving(1, "TestFail", &json!({ "kind": "cuda_oom" })), &cancel).await;
    assert_eq!(failed.expect_err("no memory").kind, RunErrorKind::OutOfMemory);
    let freed = std::fs::read_to_string(freed).expect("it was told to free its memory");
    assert_eq!(freed, "unload_models True\nfree_memory True\n");
    machine.run(inverted(), &cancel).await.expect("a picture");
    assert_eq!(machine.process().await, Some(id));
}

/// Writes down what `/free` asks of ComfyUI's queue.
const FREED: &str = r#"
import os, folder_paths
from server import PromptServer
queue = PromptServer.instance.prompt_queue
set_flag = queue.set_flag
def told(name, data):
    with open(os.path.join(folder_paths.get_output_directory(), "freed"), "a") as file:
        file.write(f"{name} {data}\n")
    set_flag(name, data)
queue.set_flag = told
NODE_CLASS_MAPPINGS = {}
"#;

#[tokio::test]
async fn workspace_is_proven_by_what_comfyui_has_and_refused_with_the_traceback() {
    let Some(mut machine) = Machine::walled(|_| {}).await else { return };
    let cancel = CancellationToken::new();
    machine.file("models/upscale_models/tiny.safetensors", "weights");
    machine.workspace.model_names = ["upscale_models/tiny.safetensors".to_owned()].into();
    assert_eq!(machine.engine.prove(&Arc::new(machine.workspace.clone()), &cancel).await, Ok(()));
    let id = machine.process().await.expect("it stays for the first run");
    machine.run(inverted(), &cancel).await.expect("a picture");
    assert_eq!(machine.process().await, Some(id));
    machine.workspace.model_names.insert("vae/absent.safetensors".to_owned());
    let reason = machine
        .engine
        .prove(&Arc::new(machine.workspace.clone()), &cancel)
        .await
        .expect_err("a model is missing");
    assert!(reason.contains("`vae/absent.safetensors`"), "{reason}");
    machine.workspace.classes.insert("Broken".to_owned());
    machine.file("custom_nodes/broken/__init__.py", "import nowhere_to_be_found\n");
    let reason = machine
        .engine
        .prove(&Arc::new(machine.workspace.clone()), &cancel)
        .await
        .expect_err("a class is missing");
    for words in ["`Broken`", "Traceback", "No module named 'nowhere_to_be_found'"] {
        assert!(reason.contains(words), "{reason}");
    }
}

#[tokio::test]
async fn import_that_wants_the_network_is_told_as_an_undeclared_file() {
    let Some(mut machine) = Machine::walled(|_| {}).await else { return };
    machine.workspace.classes.extend(["Remote".to_owned(), "Installing".to_owned()]);
    let download = "import urllib.request\nurllib.request.urlopen('https://models.example.org/face.pth')\n";
    machine.file("custom_nodes/remote/__init__.py", download);
    let install = |package: &str| {
        format!(
            "import subprocess, sys\nsubprocess.check_call([sys.executable, '-m', 'pip', 'install', '{package}'])\n"
        )
    };
    machine.file("custom_nodes/installing/__init__.py", &install("nowhere"));
    machine.file(
        "custom_nodes/content/__init__.py",
        &format!("{}NODE_CLASS_MAPPINGS = {{}}\n", install("numpy")),
    );
    let workspace = Arc::new(machine.workspace.clone());
    let proven = machine.engine.prove(&workspace, &CancellationToken::new()).await;
    let reason = proven.expect_err("neither imports");
    for words in [
        "undeclared_file: custom node `remote` wants to download `https://models.example.org/face.pth`",
        "undeclared_file: custom node `installing` wants to install package `nowhere`",
        "`comfy-farm pack --trace`",
    ] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    assert!(!reason.contains("custom_nodes/content"), "what is there is no reason to fail: {reason}");
}

#[test]
fn install_script_counts_as_skipped_unless_it_ran_in_the_environment() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |path: &str| folder.path().join(path);
    for tree in ["code/ComfyUI", "environment/ComfyUI"] {
        std::fs::create_dir_all(at(tree).join("custom_nodes/scripted")).expect("made");
        std::fs::write(at(tree).join("custom_nodes/scripted/install.py"), "").expect("written");
    }
    let skipped = |tree: &str, node: &str| {
        let files = at("files");
        workspace(&at(tree), &files, at("environment/bin/python")).skipped_install_script(node)
    };
    assert!(skipped("code/ComfyUI", "scripted"));
    assert!(!skipped("code/ComfyUI", "plain") && !skipped("environment/ComfyUI", "scripted"));
}

#[tokio::test]
async fn comfyui_that_does_not_come_up_is_told_with_its_last_words() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(&tree).expect("made");
    std::fs::write(tree.join("main.py"), "print('no such thing'); raise SystemExit(7)\n").expect("written");
    let mut config = ManagedConfig::new(folder.path().join("slots"), vec![crate::gpu::cpu()]);
    let cancel = CancellationToken::new();
    let of = workspace(&tree, &folder.path().join("files"), "/usr/bin/env");
    // `env main.py` is no Python: it ends at once.
    let reason =
        Managed::new(config.clone()).prove(&Arc::new(of), &cancel).await.expect_err("that is no Python");
    assert!(reason.contains("ended with exit status: 127"), "{reason}");
    std::fs::write(tree.join("main.py"), "#!/bin/sh\necho waiting for ever\nsleep 1000\n").expect("written");
    config.start_within = Duration::from_secs(1);
    let of = workspace(&tree, &folder.path().join("files"), "/bin/sh");
    let reason = Managed::new(config).prove(&Arc::new(of), &cancel).await.expect_err("it does not answer");
    assert!(reason.contains("did not answer within 1s") && reason.contains("waiting for ever"), "{reason}");
}
