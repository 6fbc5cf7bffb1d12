//! One ComfyUI process: how it is started, which workspaces it serves, that it has what they must have, and the runs
//! that it does.
//!
//! Not here: which slot it is for, and when it ends.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Device, Op, RunError, RunErrorKind, Workflow, lacking};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ManagedConfig;
use super::door::Door;
use super::download::{Blocked, blocked, blocked_end, undeclared};
use super::folders::Folders;
use super::log::ProcessLog;
use super::pulse::ProcessPulse;
use super::served::{Files, Served};
use crate::engine::comfyui::{ComfyUi, ComfyUiOptions};
use crate::engine::{Engine, Execution, ProducedFile, ProgressSink};
use crate::gpu::access;
use crate::os::program::{Program, leashed, lend};
use crate::os::sandbox::{Sandbox, Walls};
use crate::workspace::Workspace;

/// How often one that starts is asked whether it is up.
const POLL: Duration = Duration::from_millis(100);
/// How many bytes the runs of one process may leave in its folders before it starts anew.
const FULL: u64 = 8 << 30;
/// What a process has of this machine's environment.
const PASSED: [&str; 4] = ["HSA_OVERRIDE_GFX_VERSION", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Starts ComfyUI beside the relay, which alone gets the socket that is lent: PYTHON RELAY PORT ARGUMENTS…
const BEHIND_RELAY: &str =
    r#"python=$1; "$python" -I -S "$2" "$3" <&5 5<&- & shift 3; exec "$python" "$@" 5<&-"#;

/// What the processes of one slot are started with.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    folders: Folders,
    device: Option<Device>,
    /// How many threads it takes; `None` where it has the processor for itself, and takes what it likes.
    threads: Option<u32>,
    arguments: Vec<String>,
    environment: Vec<(String, OsString)>,
    start_within: Duration,
    options: ComfyUiOptions,
    byte_code: PathBuf,
    sandbox: Option<Sandbox>,
    keeps_folders: bool,
}

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Its folders cannot be made.
    #[error("the folders of ComfyUI in `{}` cannot be made", folder.display())]
    Folders {
        /// Where.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be started at all.
    #[error("`{}` cannot be started", python.display())]
    Spawn {
        /// The Python.
        python: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended before it answered.
    #[error("ComfyUI ended with {status} before it answered{}; the last that it said:\n{tail}", maybe(wanted.as_ref()))]
    Ended {
        /// How.
        status: String,
        /// What it says that it did not get, which may be the reason.
        wanted: Option<Blocked>,
        /// Its last lines.
        tail: String,
    },
    /// It ended because it wanted something from the network.
    #[error(
        "undeclared_file: ComfyUI ended as it started, because it wants to {wanted}, which the lockfile does not name, \
         {}; the last that it said:\n{tail}",
        wanted.hint()
    )]
    Undeclared {
        /// What.
        wanted: Blocked,
        /// Its last lines.
        tail: String,
    },
    /// It does not answer.
    #[error("ComfyUI did not answer within {limit:?}; the last that it said:\n{tail}")]
    Silent {
        /// How long it had.
        limit: Duration,
        /// Its last lines.
        tail: String,
    },
    /// It was broken off as asked.
    #[error("cancelled while ComfyUI started")]
    Canceled,
}

/// A ComfyUI that is up.
#[derive(Debug)]
pub(super) struct Process {
    served: Served,
    /// The files that its tree had at its start.
    first: Files,
    /// Those that its tree has now, of one workspace alone; `None` where an exchange of them broke off.
    in_place: Option<Files>,
    /// Those that its walls let in, if it has some.
    within: Option<BTreeSet<PathBuf>>,
    program: Program,
    comfyui: ComfyUi,
    log: ProcessLog,
    folders: Folders,
    /// How many bytes were in its folders as it started.
    bytes_at_start: u64,
    /// Kept as long as it is talked to.
    door: Door,
}

impl Launch {
    pub(super) fn new(config: &ManagedConfig, root: PathBuf, device: Option<&Device>) -> Self {
        let threads = match device {
            Some(Device::Cpu { threads, .. }) if config.devices.len() > 1 => Some(*threads),
            _ => None,
        };
        Self {
            threads,
            folders: Folders { root },
            device: device.cloned(),
            arguments: config.arguments.clone(),
            environment: config.environment.clone(),
            start_within: config.start_within,
            options: config.comfyui.clone(),
            byte_code: config.byte_code.clone(),
            sandbox: config.sandbox.clone(),
            keeps_folders: config.keeps_folders,
        }
    }

    /// Starts one for these workspaces, with the files of the last in place, and returns when it answers.
    pub(super) async fn start(
        &self,
        served: Served,
        cancel: &CancellationToken,
    ) -> Result<Process, StartError> {
        let begun = Instant::now();
        let (log, bytes_at_start) = self.make_folders(&served).await?;
        let spawned = |source| StartError::Spawn { python: served.any().python.clone(), source };
        let (door, mut command) = self.command(&served).map_err(spawned)?;
        let told = log.clone();
        let mut program = Program::start(&mut command, move |_, line| told.line(line)).map_err(spawned)?;
        // It alone has the socket now: nobody waits at that of one that ended.
        drop(command);
        let pulse = ProcessPulse { process: program.id(), log: log.clone() };
        let comfyui = door.comfyui(self.options.clone()).in_folder(self.folders.code());
        let comfyui = comfyui.counted_by(Arc::new(pulse));
        let tail = || log.tail();
        tokio::select! {
            () = cancel.cancelled() => {
                program.close().await;
                return Err(StartError::Canceled);
            }
            ended = program.ended() => {
                let status = how(ended);
                program.close().await;
                let (said, tail) = (log.all(), tail());
                return Err(match blocked_end(&said, door.has_network()) {
                    Some(wanted) => StartError::Undeclared { wanted, tail },
                    None => {
                        let wanted = blocked(&[&tail], &said, door.has_network());
                        StartError::Ended { status, wanted, tail }
                    }
                });
            }
            () = sleep(self.start_within) => {
                program.close().await;
                return Err(StartError::Silent { limit: self.start_within, tail: tail() });
            }
            () = until_up(&comfyui) => {}
        }
        info!(seconds = begun.elapsed().as_secs_f64(), "comfyui is up");
        let (first, folders) = (served.files().clone(), self.folders.clone());
        let in_place = Some(first.clone());
        let within = (!door.has_network()).then(|| served.sources().map(Path::to_owned).collect());
        Ok(Process { served, first, in_place, within, program, comfyui, log, folders, bytes_at_start, door })
    }

    /// Removes what a process left, all but its log, unless somebody looks at it afterwards. It has ended.
    pub(super) async fn clear(&self) {
        if self.keeps_folders {
            return;
        }
        let folders = self.folders.clone();
        if let Err(error) = blocking(move || folders.clear()).await {
            warn!(folder = %self.folders.root.display(), %error, "what a comfyui left stays until the next one starts");
        }
    }

    async fn make_folders(&self, served: &Served) -> Result<(ProcessLog, u64), StartError> {
        let (folders, served) = (self.folders.clone(), served.clone());
        let made = blocking(move || {
            folders.make(&served.any().comfyui, served.files())?;
            Ok((ProcessLog::create(&folders.log())?, folders.bytes()?))
        });
        made.await.map_err(|source| StartError::Folders { folder: self.folders.root.clone(), source })
    }

    /// The call of ComfyUI, with an environment that was built from nothing, and where it is talked to.
    fn command(&self, served: &Served) -> io::Result<(Door, Command)> {
        let workspace = served.any();
        let (code, home) = (self.folders.code(), self.folders.home());
        let known = std::fs::read_to_string(code.join("comfy/cli_args.py")).unwrap_or_default();
        let byte_code = self.byte_code.join(workspace.program());
        std::fs::create_dir_all(&byte_code)?;
        let access = access(self.device.as_ref(), self.sandbox.is_some());
        let (door, mut command) = match &self.sandbox {
            Some(sandbox) => {
                let (door, listener) = Door::socket(self.folders.socket())?;
                let walls = self.walls(served, &byte_code, access.devices)?;
                let mut command = sandbox.command(&walls, Path::new("/bin/sh"));
                lend(&mut command, listener.into())?;
                command.args(["-c", BEHIND_RELAY, "sh"]).arg(&workspace.python).arg(self.folders.relay());
                command.arg(door.inner_port().to_string());
                (door, command)
            }
            None => (Door::port()?, leashed(&workspace.python)),
        };
        command.arg("main.py").current_dir(&code).env_clear();
        command.args(arguments(&known, door.inner_port(), &self.folders.front(), self.device.as_ref()));
        command.args(&self.arguments);
        for name in PASSED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(threads) = self.threads {
            command.env("OMP_NUM_THREADS", threads.to_string());
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let programs = workspace.python.parent().unwrap_or(Path::new(""));
        command.env("PATH", search_path(programs, std::env::var_os("PATH"))?);
        command.env("HOME", &home).env("XDG_CACHE_HOME", home.join(".cache"));
        command.env("HF_HOME", home.join("huggingface")).env("TORCH_HOME", home.join("torch"));
        command.env("TMPDIR", self.folders.temporary()).env("LANG", "C.UTF-8");
        // The environment is shared with other processes, and the tree is thrown away.
        command.env("PYTHONPYCACHEPREFIX", &byte_code);
        // What calls pip to see that it has all that it needs is told so at once; nothing is installed at run time.
        command.env("PIP_NO_INDEX", "1").env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("UV_OFFLINE", "1");
        command.env("PYTHONUNBUFFERED", "1").env("PYTHONNOUSERSITE", "1");
        command.envs(access.variables);
        Ok((door, command))
    }

    /// What the process sees of this machine.
    fn walls(&self, served: &Served, byte_code: &Path, cards: Vec<PathBuf>) -> io::Result<Walls> {
        let mut walls = Walls::of_python(&served.any().python)?;
        // Of all: who comes back may have files that can come by no other way.
        walls.read.extend(served.sources().collect::<BTreeSet<_>>().into_iter().map(Path::to_owned));
        walls.read.push(self.folders.further());
        walls.write.extend([self.folders.root.clone(), byte_code.to_owned()]);
        Ok(Walls { cards, network: false, ..walls })
    }
}

impl Process {
    /// Whether it is up and can go on: one that has the files of no workspace in place can serve none.
    pub(super) fn is_sound(&mut self) -> bool {
        self.in_place.is_some() && !self.program.has_ended()
    }

    /// What it serves.
    pub(super) fn served(&self) -> &Served {
        &self.served
    }

    /// Has it serve this workspace, with the files of that in place and of no other one; `false` where it cannot, or has
    /// not all that the workspace must have: then only another process can tell.
    pub(super) async fn join(&mut self, workspace: &Arc<Workspace>) -> bool {
        let (served, wanted) = (self.served.clone(), Arc::clone(workspace));
        let Ok(Some(served)) = blocking(move || served.with(&wanted)).await else { return false };
        let Some(before) = self.in_place.take() else { return false };
        let (these, folders, within) = (served.files().clone(), self.folders.clone(), self.within.clone());
        match blocking(move || folders.exchange(&before, &these, within.as_ref())).await {
            Ok(true) => self.in_place = Some(served.files().clone()),
            Ok(false) => return false,
            Err(error) => {
                warn!(%error, "files of a workspace do not come to a comfyui that is up");
                return false;
            }
        }
        if !self.served.has(workspace) {
            if self.prove(workspace).await.is_err() {
                return false;
            }
            info!(lockfile = %workspace.lockfile.0.fmt_short(), "comfyui serves another workspace");
        }
        self.served = served;
        true
    }

    /// Whether an op that failed for want of a model may name one that came after the start, when it looked for models.
    pub(super) fn is_late_for(&self, failed: &RunError, workflow: &Workflow) -> bool {
        let op = failed.op.as_ref().and_then(|failed| workflow.get(&failed.id));
        let mut late =
            self.in_place.iter().flat_map(Files::keys).filter(|place| !self.first.contains_key(*place));
        late.any(|place| op.is_none_or(|op| may_name(op, place)))
    }

    /// The system's id of it.
    #[cfg(test)]
    pub(super) fn id(&self) -> Option<u32> {
        self.program.id()
    }

    /// Sees that it has each class and lists each model of a workspace.
    pub(super) async fn prove(&self, workspace: &Workspace) -> Result<(), String> {
        let described = self.comfyui.describe().await.map_err(|error| protocol::error_chain(&error))?;
        if let Some(names) = lacking(&workspace.classes, &described.classes) {
            let mut reason = format!("ComfyUI came up without class {names}");
            match self.log.failed_imports().as_slice() {
                [] if workspace.left_out.is_empty() => {
                    reason.push_str(": no custom node of the lockfile has it");
                }
                [] => reason.push_str(": no custom node that is here has it"),
                failed => {
                    reason.push_str(", because a custom node did not import:\n");
                    let told = failed.iter().map(|failed| {
                        failed.told(self.door.has_network(), workspace.skipped_install_script(&failed.node))
                    });
                    reason.push_str(&told.collect::<Vec<_>>().join("\n"));
                }
            }
            for left_out in &workspace.left_out {
                reason.push('\n');
                reason.push_str(left_out);
            }
            return Err(reason);
        }
        match lacking(&workspace.model_names, &described.models) {
            Some(names) => Err(format!("ComfyUI lists no model {names} in its models folder")),
            None => Ok(()),
        }
    }

    /// Does a run, and notices at once where the process ends in its middle.
    pub(super) async fn execute(
        &mut self,
        execution: Execution,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError> {
        self.log.set_run(Some(execution.run));
        let stop = cancel.child_token();
        let executing = self.comfyui.execute(execution, progress, &stop);
        tokio::pin!(executing);
        let executed = tokio::select! {
            executed = &mut executing => executed,
            ended = self.program.ended() => {
                stop.cancel();
                // A run that ended with the process has its end all the same.
                match executing.await {
                    Ok(produced) => Ok(produced),
                    Err(_) => Err(died(&how(ended), &self.log)),
                }
            }
        };
        let executed = match executed {
            Err(error) => {
                Err(undeclared(&error, &self.log.of_run(), self.door.has_network()).unwrap_or(error))
            }
            executed => executed,
        };
        let executed = executed.map_err(|error| match error.kind {
            RunErrorKind::Stalled => {
                let detail = format!("{}; the last that it said:\n{}", error.detail, self.log.tail());
                RunError { detail, ..error }
            }
            _ => error,
        });
        self.log.set_run(None);
        executed
    }

    /// Whether nothing is in its queue.
    pub(super) async fn is_idle(&self) -> bool {
        self.comfyui.is_idle().await
    }

    /// Gives the device's memory back.
    pub(super) async fn free(&self) {
        self.comfyui.free().await;
    }

    /// Whether its runs left so much that it should start anew, or what nobody can count.
    pub(super) async fn is_full(&self) -> bool {
        let folders = self.folders.clone();
        let most = self.bytes_at_start.saturating_add(FULL);
        !blocking(move || folders.bytes()).await.is_ok_and(|bytes| bytes <= most)
    }

    /// Where all is that it said.
    pub(super) fn log_file(&self) -> PathBuf {
        self.folders.log()
    }

    /// Ends it.
    pub(super) async fn stop(self) {
        self.program.close().await;
    }
}

/// Whether an input of an op may mean the file at this place.
fn may_name(op: &Op, place: &Path) -> bool {
    // Every path ends with the empty one.
    let mut names = op.inputs.values().filter_map(Value::as_str).filter(|name| !name.is_empty());
    names.any(|name| place.ends_with(name))
}

/// Does what blocks on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|broken| Err(io::Error::other(broken)))
}

fn died(status: &str, log: &ProcessLog) -> RunError {
    let tail = log.tail();
    let detail =
        format!("ComfyUI ended with {status} in the middle of the run; the last that it said:\n{tail}");
    RunError::new(RunErrorKind::EngineUnavailable, detail)
}

/// What may be the reason, in words.
fn maybe(wanted: Option<&Blocked>) -> String {
    let words = |wanted: &Blocked| {
        format!(", maybe because it wants to {wanted}, which the lockfile does not name: {}", wanted.hint())
    };
    wanted.map(words).unwrap_or_default()
}

async fn until_up(comfyui: &ComfyUi) {
    while !comfyui.is_up().await {
        sleep(POLL).await;
    }
}

fn how(ended: io::Result<ExitStatus>) -> String {
    ended.map_or_else(|error| format!("an unknown status ({error})"), |status| status.to_string())
}

/// The flags of a ComfyUI that knows those in `known`, the source of its arguments.
fn arguments(known: &str, port: u16, front: &Path, device: Option<&Device>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["--listen", "127.0.0.1", "--port"].into_iter().map(OsString::from).collect();
    arguments.push(port.to_string().into());
    let knows = |flag: &str| known.contains(&format!("\"{flag}\""));
    if knows("--front-end-root") {
        arguments.extend(["--front-end-root".into(), front.into()]);
    }
    if knows("--disable-api-nodes") {
        arguments.push("--disable-api-nodes".into());
    }
    if knows("--preview-method") {
        // By the model's own factors, which cost next to nothing and need no file.
        arguments.extend(["--preview-method".into(), "latent2rgb".into()]);
    }
    if !matches!(device, Some(Device::Gpu { .. })) {
        arguments.push("--cpu".into());
    }
    arguments
}

/// The programs of the environment before those of the machine.
fn search_path(programs: &Path, machine: Option<OsString>) -> io::Result<OsString> {
    let machine = machine.unwrap_or_default();
    let folders = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&machine));
    std::env::join_paths(folders).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_are_those_that_this_comfyui_knows() {
        let check = |known: &str, device: Option<&Device>, expected: &str| {
            let arguments = arguments(known, 8199, Path::new("/f"), device);
            let words: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
            assert_eq!(words.join(" "), expected);
        };
        let gpu = Device::Gpu { name: "RTX".to_owned(), uuid: "GPU-1".to_owned(), memory: 1 };
        check("", Some(&gpu), "--listen 127.0.0.1 --port 8199");
        check("", Some(&Device::Cpu { threads: 2, memory: 8 << 30 }), "--listen 127.0.0.1 --port 8199 --cpu");
        let known = r#"parser.add_argument("--front-end-root", parser.add_argument("--disable-api-nodes","#;
        let known = format!("{known} parser.add_argument(\"--preview-method\",");
        let newest = "--listen 127.0.0.1 --port 8199 --front-end-root /f --disable-api-nodes \
                      --preview-method latent2rgb --cpu";
        check(&known, None, newest);
    }

    #[test]
    fn op_names_a_file_by_the_end_of_its_path_and_by_no_empty_text() {
        let check = |name: &str, expected: bool| {
            let inputs = [("model_name", json!(name)), ("scale", json!(2)), ("image", json!(["1", 0]))];
            let inputs = inputs.into_iter().map(|(input, value)| (input.to_owned(), value)).collect();
            let op = Op { inputs, ..Op::default() };
            assert_eq!(may_name(&op, Path::new("models/vae/a.safetensors")), expected, "{name}");
        };
        check("a.safetensors", true);
        check("vae/a.safetensors", true);
        check("b.safetensors", false);
        check("safetensors", false);
        check("", false);
    }
}
