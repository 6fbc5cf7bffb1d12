//! The farm itself: started in three lines, called over HTTP.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::process::Process;
use crate::tools::example;

/// How long a test waits for a state.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a farm is started.
#[derive(Debug, Clone)]
pub struct FarmOptions {
    /// How many nodes with the built-in engine.
    pub nodes: usize,
    /// How long each op of the built-in engine takes at least, in milliseconds.
    pub pause: u64,
    /// How long a lease lives, in seconds.
    pub lease: u64,
}

impl Default for FarmOptions {
    fn default() -> Self {
        Self { nodes: 1, pause: 0, lease: 30 }
    }
}

/// A running farm; dropping it ends its processes.
pub struct Farm {
    /// The coordinator's process.
    pub coordinator: Process,
    /// The nodes, in the order of their start.
    pub nodes: Vec<NodeHandle>,
    /// Where the API is.
    pub url: String,
    /// The admin key.
    pub key: String,
    /// A ticket with uses left.
    pub ticket: String,
    /// All data of the farm.
    pub folder: tempfile::TempDir,
    options: FarmOptions,
    ports: [u16; 3],
    http: reqwest::Client,
}

/// A node of the farm.
pub struct NodeHandle {
    /// Its process.
    pub process: Process,
    /// Its peer id.
    pub peer: String,
    /// Its data folder.
    pub data: PathBuf,
}

impl Farm {
    /// Starts a coordinator and nodes, and waits until the nodes offer their slots.
    pub async fn start(options: FarmOptions) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = [free_port()?, free_port()?, free_port()?];
        let (coordinator, up) = start_coordinator(folder.path(), ports, options.lease).await?;
        let text = |key: &str| up[key].as_str().unwrap_or_default().to_owned();
        let (url, key, ticket) = (text("url"), text("key"), text("ticket"));
        let http = reqwest::Client::new();
        let nodes = Vec::new();
        let mut farm = Self { coordinator, nodes, url, key, ticket, folder, options, ports, http };
        for _ in 0..farm.options.nodes {
            let pause = farm.options.pause.to_string();
            farm.start_node(&["--engine", "builtin", "--builtin-pause", &pause]).await?;
        }
        Ok(farm)
    }

    /// A farm with the example workflow deployed as `pixelate`.
    pub async fn with_example(options: FarmOptions) -> anyhow::Result<Self> {
        let farm = Self::start(options).await?;
        farm.deploy(&example("pixelate.cpack.zip"), "pixelate", &[]).await?;
        Ok(farm)
    }

    /// Starts one more node and waits until it offers its slots.
    pub async fn start_node(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        self.start_node_with(arguments, &[]).await
    }

    /// Starts one more node with these variables in its environment, and waits until it offers its slots.
    pub async fn start_node_with(
        &mut self,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let name = format!("node-{}", self.nodes.len() + 1);
        let data = self.folder.path().join(&name);
        let process = self.node_process(&data, arguments, environment)?;
        let mut node = NodeHandle { process, peer: String::new(), data };
        let line = node.process.line().await?;
        node.peer = line.split_whitespace().nth(1).context("a node says who it is")?.to_owned();
        let peer = node.peer.clone();
        self.nodes.push(node);
        self.wait_for_node(&peer, |node| node["connected"] == true && !node["slots"][0].is_null()).await?;
        Ok(())
    }

    /// Starts a node again in its old data folder.
    pub async fn restart_node(&mut self, index: usize, arguments: &[&str]) -> anyhow::Result<()> {
        self.restart_node_with(index, arguments, &[]).await
    }

    /// Starts a node again in its old data folder, with these variables in its environment.
    pub async fn restart_node_with(
        &mut self,
        index: usize,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let process = self.node_process(&self.nodes[index].data, arguments, environment)?;
        self.nodes[index].process = process;
        self.nodes[index].process.line().await?;
        Ok(())
    }

    fn node_process(
        &self,
        data: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Process> {
        let mut command =
            Process::comfy_farm(self.folder.path(), &["node", "--yes", "--data-listen", "127.0.0.1:0"]);
        command.arg("--data").arg(data).args(["--join", &self.ticket]).args(arguments);
        command.envs(environment.iter().copied());
        Process::start(command, &data.with_extension("log"))
    }

    /// Starts the coordinator again, at the addresses that it had.
    pub async fn restart_coordinator(&mut self) -> anyhow::Result<()> {
        let (coordinator, _) = start_coordinator(self.folder.path(), self.ports, self.options.lease).await?;
        self.coordinator = coordinator;
        Ok(())
    }

    /// Freezes or thaws a node's process.
    pub fn freeze(&self, index: usize, frozen: bool) {
        self.nodes[index].process.signal(if frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    /// A request to the API with the admin key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    /// A GET that must succeed.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Self::json(self.request(Method::GET, path)).await
    }

    /// A POST that must succeed.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Self::json(self.request(Method::POST, path).json(body)).await
    }

    async fn json(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let response = request.send().await?;
        let (status, url) = (response.status(), response.url().clone());
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{url} answered {status}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("{url} answered `{text}`"))
    }

    /// Deploys a file under a name, with more query parameters.
    pub async fn deploy(&self, file: &Path, name: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let is_json = file.extension().is_some_and(|extension| extension == "json");
        let media_type = if is_json { "application/json" } else { "application/zip" };
        let request = self.request(Method::POST, "/v1/workflows").query(&[("name", name)]).query(query);
        Self::json(request.header("content-type", media_type).body(std::fs::read(file)?)).await
    }

    /// Submits a job with files and texts; gives it as it was accepted.
    pub async fn submit(
        &self,
        workflow: &str,
        files: &[(&str, &Path)],
        texts: &[(&str, &str)],
    ) -> anyhow::Result<Value> {
        let mut form = Form::new().text("priority", "50");
        for (name, path) in files {
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            form = form.part((*name).to_owned(), Part::bytes(std::fs::read(path)?).file_name(file_name));
        }
        for (name, text) in texts {
            form = form.text((*name).to_owned(), (*text).to_owned());
        }
        Self::json(self.request(Method::POST, &format!("/v1/workflows/{workflow}/jobs")).multipart(form))
            .await
    }

    /// Submits the example's job; gives its id.
    pub async fn submit_example(&self) -> anyhow::Result<String> {
        let picture = example("pixelate/input/landscape.png");
        let job = self.submit("pixelate", &[("picture", &picture)], &[]).await?;
        Ok(job["id"].as_str().context("a job has an id")?.to_owned())
    }

    /// Waits until a job is as wished.
    pub async fn wait_for_job(&self, id: &str, wish: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let path = format!("/v1/jobs/{id}");
        let waited = eventually(|| async {
            let job = self.get(&path).await?;
            Ok(wish(&job).then_some(job))
        });
        match waited.await {
            Ok(job) => Ok(job),
            Err(error) => bail!("{error}; the job is {}", self.get(&path).await?),
        }
    }

    /// Waits until a job has succeeded; another end is an error.
    pub async fn wait_for_success(&self, id: &str) -> anyhow::Result<Value> {
        let ended = |job: &Value| !matches!(job["state"].as_str(), Some("queued" | "running"));
        let job = self.wait_for_job(id, ended).await?;
        if job["state"] != "succeeded" {
            bail!("the job ended as {job}");
        }
        Ok(job)
    }

    /// Waits until a node is as wished.
    pub async fn wait_for_node(&self, peer: &str, wish: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let waited = eventually(|| async {
            let answer = self.get("/v1/nodes").await?;
            let nodes = answer["nodes"].as_array().cloned().unwrap_or_default();
            Ok(nodes.into_iter().find(|node| node["peer"] == peer && wish(node)))
        });
        waited
            .await
            .with_context(|| format!("node {peer}; the coordinator's log:\n{}", self.coordinator.log()))
    }

    /// The bytes of a job's only output.
    pub async fn output(&self, job: &Value) -> anyhow::Result<Vec<u8>> {
        let outputs = job["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let [output] = outputs else { bail!("{} outputs and not one", outputs.len()) };
        let url = output["url"].as_str().context("an output has a URL")?;
        let path = url.strip_prefix(&self.url).unwrap_or(url);
        Ok(self.request(Method::GET, path).send().await?.error_for_status()?.bytes().await?.to_vec())
    }
}

/// The body that submits a job with an asset as the example's picture.
pub fn job_input(asset: &str) -> Value {
    json!({ "input": { "picture": { "$asset": asset } } })
}

/// Asks again until there is an answer, or patience ends.
pub async fn eventually<T, F>(ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    eventually_within(PATIENCE, ask).await
}

/// Asks again until there is an answer, or for so long.
pub async fn eventually_within<T, F>(patience: Duration, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let deadline = Instant::now() + patience;
    let mut last = None;
    while Instant::now() < deadline {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => last = None,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    match last {
        Some(error) => Err(error.context(format!("not within {patience:?}"))),
        None => bail!("not within {patience:?}"),
    }
}

async fn start_coordinator(folder: &Path, ports: [u16; 3], lease: u64) -> anyhow::Result<(Process, Value)> {
    let [http, listen, data] = ports.map(|port| format!("127.0.0.1:{port}"));
    let lease = lease.to_string();
    let arguments = ["coordinator", "--json", "--http", &http, "--listen", &listen, "--data-listen", &data];
    let mut command = Process::comfy_farm(folder, &arguments);
    command.args(["--lease", &lease, "--data"]).arg(folder.join("coordinator"));
    let mut process = Process::start(command, &folder.join("coordinator.log"))?;
    let up = process.json().await?;
    Ok((process, up))
}

/// A port that is free for TCP and UDP now; it is kept over restarts, so the system cannot choose it.
fn free_port() -> anyhow::Result<u16> {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}
