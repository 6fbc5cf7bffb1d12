//! The farm's HTTP API, as the tools call it.
//!
//! Not here: what is printed. Answers stay JSON, so that `--json` shows what the farm said.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use crate::settings::ClientSettings;

/// How long without an event until a followed job that waits is asked why.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Why the farm gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nothing answers there.
    #[error("no farm answers at `{url}`")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The farm answered with an error.
    #[error("{text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The problem's title, detail and fields, in words.
        text: String,
        /// The whole answer.
        problem: Box<Value>,
    },
    /// The connection broke in the middle of an answer.
    #[error("the farm's answer broke off")]
    Broken(#[source] reqwest::Error),
    /// A file of this machine.
    #[error("`{}` cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A farm and a key.
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

/// How a job waits for a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// 0 to 100.
    pub(crate) priority: u8,
    /// After how many seconds it expires.
    pub(crate) ttl: Option<u64>,
}

/// One event of a job's stream.
#[derive(Debug)]
pub(crate) struct JobEvent {
    /// What happened: `started`, `progress`, `ended`, …
    pub(crate) name: String,
    /// Its data.
    pub(crate) data: Value,
}

impl JobEvent {
    /// Whether the job is at work since then; `None` where the event does not tell.
    fn is_at_work(&self) -> Option<bool> {
        match self.name.as_str() {
            "started" | "progress" => Some(true),
            "requeued" => Some(false),
            "snapshot" => Some(self.data["jobs"][0]["state"] == "running"),
            _ => None,
        }
    }
}

impl Client {
    pub(crate) fn new(settings: &ClientSettings) -> Self {
        Self { http: reqwest::Client::new(), url: settings.url.clone(), key: settings.key.clone() }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.json(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// Deploys a file; the farm tells a bundle from a workflow by the media type.
    pub(crate) async fn deploy(&self, file: &Path, query: &[(&str, String)]) -> Result<Value, ClientError> {
        let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let media_type =
            HeaderValue::from_static(if is_json { "application/json" } else { "application/zip" });
        let request =
            self.request(Method::POST, "/v1/workflows").query(query).header(CONTENT_TYPE, media_type);
        let (body, _) = file_body(file).await?;
        self.json(request.body(body)).await
    }

    /// Submits a job: texts as they were typed, files streamed.
    pub(crate) async fn submit(
        &self,
        workflow: &str,
        texts: &[(String, String)],
        files: &[(String, PathBuf)],
        terms: Terms,
    ) -> Result<Value, ClientError> {
        let mut form = Form::new().text("priority", terms.priority.to_string());
        if let Some(ttl) = terms.ttl {
            form = form.text("ttl_seconds", ttl.to_string());
        }
        for (name, text) in texts {
            form = form.text(name.clone(), text.clone());
        }
        for (name, path) in files {
            let (body, length) = file_body(path).await?;
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            form = form.part(name.clone(), Part::stream_with_length(body, length).file_name(file_name));
        }
        let path = format!("/v1/workflows/{workflow}/jobs");
        self.json(self.request(Method::POST, &path).multipart(form)).await
    }

    /// Follows a job until its end; `each` sees what happens, and as `waits` the job as long as it does. Reconnects
    /// where the stream breaks.
    pub(crate) async fn follow(
        &self,
        job: &str,
        mut each: impl FnMut(&JobEvent),
    ) -> Result<Value, ClientError> {
        loop {
            let response = self.send(self.request(Method::GET, &format!("/v1/jobs/{job}/events"))).await?;
            let mut chunks = response.bytes_stream();
            let mut parser = EventParser::default();
            let mut is_at_work = false;
            loop {
                // Why a job waits is no event: it changes with each node. All else is one.
                match timeout(ASK_AGAIN, chunks.next()).await {
                    Ok(Some(Ok(chunk))) => {
                        for event in parser.take(&chunk) {
                            is_at_work = event.is_at_work().unwrap_or(is_at_work);
                            each(&event);
                        }
                    }
                    Ok(_) => break,
                    Err(_) if is_at_work => {}
                    Err(_) => {
                        let data = self.get(&format!("/v1/jobs/{job}")).await?;
                        if data["state"] == "queued" {
                            each(&JobEvent { name: "waits".to_owned(), data });
                        }
                    }
                }
            }
            let now = self.get(&format!("/v1/jobs/{job}")).await?;
            if !matches!(now["state"].as_str(), Some("queued" | "running")) {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Saves an output; the file appears when it is whole.
    pub(crate) async fn save(&self, path: &str, destination: &Path) -> Result<(), ClientError> {
        let error = |source| ClientError::File { path: destination.to_owned(), source };
        let folder = destination.parent().unwrap_or(Path::new("."));
        tokio::fs::create_dir_all(folder).await.map_err(error)?;
        // As readable as a file that is simply created; the umask has the last word.
        let readable = Permissions::from_mode(0o666);
        let temporary = tempfile::Builder::new().permissions(readable).tempfile_in(folder).map_err(error)?;
        let mut file = File::from_std(temporary.reopen().map_err(error)?);
        let mut chunks = self.send(self.request(Method::GET, path)).await?.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            file.write_all(&chunk.map_err(ClientError::Broken)?).await.map_err(error)?;
        }
        file.flush().await.map_err(error)?;
        temporary.persist(destination).map_err(|cause| error(cause.error))?;
        Ok(())
    }

    /// The whole URL of a path on the farm.
    pub(crate) fn absolute(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.absolute(path));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        self.send(request).await?.json().await.map_err(ClientError::Broken)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let sent = request.send().await;
        let response = sent.map_err(|source| ClientError::Unreachable { url: self.url.clone(), source })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem = response.json().await.unwrap_or_else(|_| json!({ "title": status.to_string() }));
        let text = problem_text(&problem);
        Err(ClientError::Refused { status: status.as_u16(), text, problem: Box::new(problem) })
    }
}

/// An RFC 9457 body in words: its fields where it names some, else its detail or title.
fn problem_text(problem: &Value) -> String {
    let words = |key: &str| problem[key].as_str().filter(|text| !text.is_empty());
    let field = |error: &Value| {
        let part = |key: &str| error[key].as_str().unwrap_or_default();
        format!("{}: {}", part("field"), part("message"))
    };
    match problem["errors"].as_array().map(Vec::as_slice) {
        Some([error]) => field(error),
        Some(errors @ [_, _, ..]) => {
            let lines: Vec<_> = errors.iter().map(|error| format!("\n  {}", field(error))).collect();
            format!("{} inputs are wrong{}", errors.len(), lines.concat())
        }
        _ => words("detail").or(words("title")).unwrap_or("refused without a reason").to_owned(),
    }
}

async fn file_body(path: &Path) -> Result<(Body, u64), ClientError> {
    let error = |source| ClientError::File { path: path.to_owned(), source };
    let file = File::open(path).await.map_err(error)?;
    let metadata = file.metadata().await.map_err(error)?;
    if !metadata.is_file() {
        return Err(error(std::io::Error::other("it is no file")));
    }
    let length = metadata.len();
    Ok((Body::wrap_stream(ReaderStream::new(file)), length))
}

/// Server-sent events (WHATWG HTML, 9.2): fields by line, an event at each empty line.
#[derive(Default)]
struct EventParser {
    rest: Vec<u8>,
    name: String,
    data: String,
}

impl EventParser {
    fn take(&mut self, bytes: &[u8]) -> Vec<JobEvent> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(name) = line.strip_prefix("event:") {
                self.name = name.trim_start().to_owned();
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.trim_start());
            } else if line.is_empty() && !self.data.is_empty() {
                let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
                events.push(JobEvent { name, data: serde_json::from_str(&data).unwrap_or(Value::Null) });
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_wherever_the_stream_is_cut() {
        let stream = ": keepalive\n\nevent: progress\ndata: {\"fraction\":0.5}\n\nid: 7\nevent: ended\r\ndata: {}\r\n\r\n";
        for cut in 0..stream.len() {
            let mut parser = EventParser::default();
            let mut events = parser.take(&stream.as_bytes()[..cut]);
            events.extend(parser.take(&stream.as_bytes()[cut..]));
            let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
            assert_eq!(names, ["progress", "ended"], "cut at {cut}");
            assert_eq!((events[0].is_at_work(), events[1].is_at_work()), (Some(true), None));
            assert_eq!(events[0].data["fraction"], 0.5);
        }
    }

    #[test]
    fn problem_is_told_field_by_field() {
        let width = json!({ "field": "width", "rule": "maximum", "message": "9000 is above 2048" });
        let height = json!({ "field": "height", "rule": "type", "message": "a text and not a number" });
        let one = json!({ "detail": "width: 9000 is above 2048", "errors": [width] });
        assert_eq!(problem_text(&one), "width: 9000 is above 2048");
        let two = json!({ "detail": "…", "errors": [width, height] });
        let expected = "2 inputs are wrong\n  width: 9000 is above 2048\n  height: a text and not a number";
        assert_eq!(problem_text(&two), expected);
        assert_eq!(problem_text(&json!({ "title": "gone", "detail": "no job 7" })), "no job 7");
    }
}
