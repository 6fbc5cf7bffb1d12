//! The HTTP requests that the farm makes of one ComfyUI, with limits on what it may answer.
//!
//! Not here: the shapes of its answers (`answer.rs`), what they mean for a run (`failure.rs`,
//! `outputs.rs`), and the WebSocket (`socket.rs`).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Workflow;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::answer::{HistoryEntry, Position, ServedFile, Submitted};

/// The largest JSON answer that is read: `/object_info` of a large installation has some 10 MiB.
const MAX_ANSWER: u64 = 64 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long ComfyUI may be silent in the middle of an answer. It is while it loads a large model.
const SILENT_AT_MOST: Duration = Duration::from_secs(60);
/// How long between two looks at whether a stopped prompt is gone.
const STOP_POLL: Duration = Duration::from_millis(250);

/// One ComfyUI, by its address.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    /// The Unix socket that it is behind, if it is.
    socket: Option<PathBuf>,
}

/// A connection to ComfyUI.
pub(super) trait Link: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

/// An address that is not one of a ComfyUI.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of a ComfyUI: it looks like `http://127.0.0.1:8188`, and is no `https`")]
pub struct AddressError(pub String);

/// Why a request to ComfyUI did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody answers.
    #[error("no ComfyUI answers at `{url}`: start it there, or correct the address")]
    Unreachable {
        /// The address as the owner gave it.
        url: String,
        /// What the connection came to.
        #[source]
        source: reqwest::Error,
    },
    /// It broke off or took too long.
    #[error("ComfyUI at `{url}` broke off its answer to `{request}`")]
    BrokeOff {
        /// The address as the owner gave it.
        url: String,
        /// The request's path.
        request: String,
        /// What the connection came to.
        #[source]
        source: reqwest::Error,
    },
    /// It refused.
    #[error("ComfyUI at `{url}` answered `{request}` with status {status}: {text}")]
    Status {
        /// The address as the owner gave it.
        url: String,
        /// The request's path.
        request: String,
        /// The status.
        status: StatusCode,
        /// The beginning of the body.
        text: String,
    },
    /// It said what no ComfyUI says.
    #[error("what answered `{request}` at `{url}` is no ComfyUI, or one that is not understood")]
    Answer {
        /// The address as the owner gave it.
        url: String,
        /// The request's path.
        request: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It said too much.
    #[error("ComfyUI at `{url}` answered `{request}` with more than {limit} bytes")]
    TooLarge {
        /// The address as the owner gave it.
        url: String,
        /// The request's path.
        request: String,
        /// The most that is read.
        limit: u64,
    },
    /// A file on this machine could not be read or written.
    #[error("file `{}` could not be read or written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What runs and what waits; the second of each item is the prompt's id.
#[derive(Deserialize)]
struct Queue {
    queue_running: Vec<Vec<Value>>,
    queue_pending: Vec<Vec<Value>>,
}

impl Client {
    /// A client of the ComfyUI at that address. Nothing is sent yet.
    pub fn new(address: &str) -> Result<Self, AddressError> {
        let error = || AddressError(address.to_owned());
        let base = Url::parse(address).map_err(|_| error())?;
        if base.scheme() != "http" || base.host_str().is_none() || base.query().is_some() {
            return Err(error());
        }
        let http = http_client().build().expect("these options are valid");
        Ok(Self { http, base, socket: None })
    }

    /// A client of the ComfyUI behind that Unix socket. Nothing is sent yet.
    pub fn behind(socket: &Path) -> Self {
        let http = http_client().unix_socket(socket).build().expect("these options are valid");
        let base = Url::parse("http://localhost/").expect("that is an address");
        Self { http, base, socket: Some(socket.to_owned()) }
    }

    /// The address as the owner gave it.
    pub fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Where its WebSocket is, for a client of that id.
    pub(super) fn socket_address(&self, client_id: &str) -> String {
        let mut url = self.url("ws");
        url.set_scheme("ws").expect("an http address can become one of ws");
        url.query_pairs_mut().append_pair("clientId", client_id);
        url.into()
    }

    /// A fresh connection, for its WebSocket.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Link>> {
        if let Some(socket) = &self.socket {
            return Ok(Box::new(UnixStream::connect(socket).await?));
        }
        let host = self.base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.base.port_or_known_default().unwrap_or(80))).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    /// Its version, as `/system_stats` gives it.
    pub(super) async fn version(&self) -> Result<String, RequestError> {
        #[derive(Deserialize)]
        struct Stats {
            system: System,
        }
        #[derive(Deserialize)]
        struct System {
            #[serde(default)]
            comfyui_version: String,
        }
        let stats: Stats = self.get("system_stats").await?;
        Ok(stats.system.comfyui_version)
    }

    /// All classes of op with their inputs.
    pub(super) async fn object_info(&self) -> Result<Map<String, Value>, RequestError> {
        self.get("object_info").await
    }

    /// One class of op with its inputs; none if it is not there.
    pub(super) async fn class_info(&self, class: &str) -> Result<Option<Value>, RequestError> {
        let mut info: Map<String, Value> = self.get(&format!("object_info/{class}")).await?;
        Ok(info.remove(class))
    }

    /// Every model file that it lists, as `folder/name`.
    pub(super) async fn models(&self) -> Result<BTreeSet<String>, RequestError> {
        /// Folders of code and settings, which are listed among those of models.
        const NO_MODELS: [&str; 2] = ["custom_nodes", "configs"];
        let folders: Vec<String> = self.get("models").await?;
        let mut models = BTreeSet::new();
        for folder in folders.iter().filter(|folder| !NO_MODELS.contains(&folder.as_str())) {
            let names: Vec<String> = self.get(&format!("models/{folder}")).await?;
            models.extend(names.iter().map(|name| format!("{folder}/{}", name.replace('\\', "/"))));
        }
        Ok(models)
    }

    /// Puts a file among its inputs and returns the name under which ops find it.
    pub(super) async fn upload(&self, name: &str, path: &Path) -> Result<String, RequestError> {
        const SUBFOLDER: &str = "comfy-farm";
        #[derive(Deserialize)]
        struct Uploaded {
            name: String,
            subfolder: String,
        }
        let file = Part::file(path).await;
        let file = file.map_err(|source| RequestError::File { path: path.to_owned(), source })?;
        // The same name always stands for the same bytes, so overwriting changes nothing for others.
        let form = Form::new().part("image", file.file_name(name.to_owned()));
        let form = form.text("subfolder", SUBFOLDER).text("type", "input").text("overwrite", "true");
        let request = self.http.post(self.url("upload/image")).multipart(form);
        let uploaded: Uploaded = self.answer("upload/image", request).await?;
        Ok(match uploaded.subfolder.as_str() {
            "" => uploaded.name,
            subfolder => format!("{subfolder}/{}", uploaded.name),
        })
    }

    /// Queues a workflow under a prompt id of our own, for the outputs that are wanted.
    pub(super) async fn submit(
        &self,
        prompt: &str,
        workflow: &Workflow,
        outputs: &[String],
    ) -> Result<Submitted, RequestError> {
        let body = json!({
            "prompt": workflow.to_json(),
            "prompt_id": prompt,
            "client_id": prompt,
            "partial_execution_targets": outputs,
        });
        let response = self.send("prompt", self.http.post(self.url("prompt")).json(&body)).await?;
        let status = response.status();
        let bytes = self.body("prompt", response).await?;
        match status {
            StatusCode::OK => Ok(Submitted::Accepted(self.parse("prompt", &bytes)?)),
            StatusCode::BAD_REQUEST => Ok(Submitted::Rejected(self.parse("prompt", &bytes)?)),
            status => Err(self.refused("prompt", status, &bytes)),
        }
    }

    /// Where a prompt stands in the queue.
    pub(super) async fn position(&self, prompt: &str) -> Result<Position, RequestError> {
        let queue: Queue = self.get("queue").await?;
        let holds = |items: &[Vec<Value>]| {
            items.iter().any(|item| item.get(1).and_then(Value::as_str) == Some(prompt))
        };
        Ok(match (holds(&queue.queue_running), holds(&queue.queue_pending)) {
            (true, _) => Position::Running,
            (false, true) if queue.queue_running.is_empty() => Position::Unserved,
            (false, true) => Position::Pending,
            (false, false) => Position::Absent,
        })
    }

    /// How many prompts run or wait.
    pub(super) async fn queue_length(&self) -> Result<usize, RequestError> {
        let queue: Queue = self.get("queue").await?;
        Ok(queue.queue_running.len() + queue.queue_pending.len())
    }

    /// Has it unload its models and give back their memory before its next prompt.
    pub(super) async fn free(&self) -> Result<(), RequestError> {
        self.post("free", &json!({ "unload_models": true, "free_memory": true })).await
    }

    /// What it keeps of a prompt, once that ended.
    pub(super) async fn history(&self, prompt: &str) -> Result<Option<HistoryEntry>, RequestError> {
        let path = format!("history/{prompt}");
        let mut entries: Map<String, Value> = self.get(&path).await?;
        let Some(entry) = entries.remove(prompt) else { return Ok(None) };
        let wrong = |source| RequestError::Answer { url: self.address().to_owned(), request: path, source };
        serde_json::from_value(entry).map(Some).map_err(wrong)
    }

    /// Takes a prompt off the queue, or off the device if it is that one which runs, and returns when
    /// it is gone. Prompts of others are never touched.
    pub(super) async fn stop(&self, prompt: &str) -> Result<(), RequestError> {
        self.post("queue", &json!({ "delete": [prompt] })).await?;
        while self.position(prompt).await? == Position::Running {
            self.post("interrupt", &json!({ "prompt_id": prompt })).await?;
            tokio::time::sleep(STOP_POLL).await;
        }
        Ok(())
    }

    /// Writes a file of ComfyUI's to `path`, at most `limit` bytes. Returns its size and media type.
    pub(super) async fn download(
        &self,
        file: &ServedFile,
        path: &Path,
        limit: u64,
    ) -> Result<(u64, String), RequestError> {
        let query = [("filename", &file.filename), ("subfolder", &file.subfolder), ("type", &file.folder)];
        let mut response = self.send("view", self.http.get(self.url("view")).query(&query)).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(self.refused("view", status, file.filename.as_bytes()));
        }
        let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or("application/octet-stream").to_owned();
        let write_error = |source| RequestError::File { path: path.to_owned(), source };
        let mut writer = tokio::fs::File::create(path).await.map_err(write_error)?;
        let mut size = 0;
        while let Some(chunk) = response.chunk().await.map_err(|source| self.broke_off("view", source))? {
            size += chunk.len() as u64;
            if size > limit {
                return Err(self.too_large("view", limit));
            }
            writer.write_all(&chunk).await.map_err(write_error)?;
        }
        writer.flush().await.map_err(write_error)?;
        Ok((size, media_type))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http address has a path").pop_if_empty().extend(path.split('/'));
        url
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestError> {
        self.answer(path, self.http.get(self.url(path))).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(), RequestError> {
        let response = self.send(path, self.http.post(self.url(path)).json(body)).await?;
        let status = response.status();
        let bytes = self.body(path, response).await?;
        if status.is_success() { Ok(()) } else { Err(self.refused(path, status, &bytes)) }
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        path: &str,
        request: RequestBuilder,
    ) -> Result<T, RequestError> {
        let response = self.send(path, request).await?;
        let status = response.status();
        let bytes = self.body(path, response).await?;
        if status.is_success() { self.parse(path, &bytes) } else { Err(self.refused(path, status, &bytes)) }
    }

    async fn send(&self, path: &str, request: RequestBuilder) -> Result<Response, RequestError> {
        request.send().await.map_err(|source| match source.is_connect() {
            true => RequestError::Unreachable { url: self.address().to_owned(), source },
            false => self.broke_off(path, source),
        })
    }

    async fn body(&self, path: &str, mut response: Response) -> Result<Vec<u8>, RequestError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| self.broke_off(path, source))? {
            if (body.len() + chunk.len()) as u64 > MAX_ANSWER {
                return Err(self.too_large(path, MAX_ANSWER));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn parse<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, RequestError> {
        serde_json::from_slice(bytes).map_err(|source| RequestError::Answer {
            url: self.address().to_owned(),
            request: path.to_owned(),
            source,
        })
    }

    fn refused(&self, path: &str, status: StatusCode, body: &[u8]) -> RequestError {
        const LONGEST: usize = 300;
        let text: String = String::from_utf8_lossy(body).chars().take(LONGEST).collect();
        RequestError::Status { url: self.address().to_owned(), request: path.to_owned(), status, text }
    }

    fn broke_off(&self, path: &str, source: reqwest::Error) -> RequestError {
        RequestError::BrokeOff { url: self.address().to_owned(), request: path.to_owned(), source }
    }

    fn too_large(&self, path: &str, limit: u64) -> RequestError {
        RequestError::TooLarge { url: self.address().to_owned(), request: path.to_owned(), limit }
    }
}

fn http_client() -> reqwest::ClientBuilder {
    // A proxy of the environment is for the internet; this is a machine of the owner's.
    let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_WITHIN);
    http.read_timeout(SILENT_AT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_paths_go_below_them() {
        for bad in ["", "127.0.0.1:8188", "https://a", "ftp://a", "http://a/?x=1", "localhost"] {
            assert_eq!(Client::new(bad).unwrap_err(), AddressError(bad.to_owned()));
        }
        let check = |address: &str, path: &str, url: &str| {
            assert_eq!(Client::new(address).unwrap().url(path).as_str(), url);
        };
        check("http://127.0.0.1:8188", "history/1", "http://127.0.0.1:8188/history/1");
        check("http://gpu/comfy/", "object_info/Odd ?class", "http://gpu/comfy/object_info/Odd%20%3Fclass");
        let client = Client::new("http://127.0.0.1:8188/").unwrap();
        assert_eq!(client.address(), "http://127.0.0.1:8188");
        assert_eq!(client.socket_address("r-1"), "ws://127.0.0.1:8188/ws?clientId=r-1");
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_that_names_the_address() {
        // A port that was free a moment ago and that nobody listens on.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = Client::new(&format!("http://127.0.0.1:{port}")).unwrap();
        let error = client.version().await.unwrap_err();
        assert!(matches!(error, RequestError::Unreachable { .. }));
        assert!(error.to_string().contains(&format!("`http://127.0.0.1:{port}`")), "{error}");
    }
}
