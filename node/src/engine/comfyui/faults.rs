//! Tests of what recordings of a healthy ComfyUI cannot show: it dies, forgets, hangs, or is busy with
//! its owner's work.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use protocol::{RunError, RunErrorKind, RunId, Workflow};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ComfyUi, ComfyUiOptions};
use crate::engine::{Engine, Execution, ProducedFile, ProgressSink};

const RUN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// How a made-up ComfyUI behaves.
#[derive(Clone, Copy)]
struct Behaviour {
    /// How many WebSockets it closes again at once.
    closes: usize,
    /// Which prompt it says it runs, until it is interrupted, and which one waits.
    running: Option<&'static str>,
    pending: Option<&'static str>,
    /// The status with which it answers a prompt.
    status: &'static str,
}

const ACCEPTS: Behaviour = Behaviour { closes: 0, running: None, pending: None, status: "200 OK" };

/// A made-up ComfyUI, and what was asked of it.
struct Fake {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Fake {
    async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = asked.clone();
        let serving = tokio::spawn(async move {
            let mut closes = behaviour.closes;
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let closed = closes > 0 && is_websocket(&stream).await;
                closes -= usize::from(closed);
                tokio::spawn(serve(stream, behaviour, closed, record.clone()));
            }
        });
        Self { address, asked, serving }
    }

    fn was_asked(&self, request: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked.starts_with(request))
    }
}

async fn is_websocket(stream: &TcpStream) -> bool {
    let mut head = [0; 8];
    while stream.peek(&mut head).await.unwrap() < head.len() {}
    &head == b"GET /ws?"
}

async fn serve(mut stream: TcpStream, behaviour: Behaviour, closed: bool, asked: Arc<Mutex<Vec<String>>>) {
    if is_websocket(&stream).await {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while !closed && socket.next().await.is_some() {}
        return;
    }
    let request = read_request(&mut stream).await;
    let queue = |id: Option<&str>| id.map(|id| json!([1, id])).into_iter().collect::<Vec<Value>>();
    let (status, body) = match request.split_whitespace().nth(1).unwrap_or_default() {
        "/prompt" => (behaviour.status, json!({"prompt_id": RUN, "node_errors": {}})),
        "/queue" if request.starts_with("GET") => {
            let interrupted = asked.lock().unwrap().iter().any(|asked| asked.starts_with("POST /interrupt"));
            let running = queue(behaviour.running.filter(|_| !interrupted));
            let pending = queue(behaviour.pending);
            ("200 OK", json!({"queue_running": running, "queue_pending": pending}))
        }
        _ => ("200 OK", json!({})),
    };
    asked.lock().unwrap().push(request);
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
}

/// Reads a request whole: the head, and the body that its length announces.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = String::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some((head, body)) = request.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return request;
            }
        }
        let size = stream.read(&mut buffer).await.unwrap();
        assert!(size > 0, "the request ends early: {request}");
        request.push_str(std::str::from_utf8(&buffer[..size]).unwrap());
    }
}

async fn execute(
    fake: &Fake,
    stall_after: Duration,
    cancel: &CancellationToken,
) -> Result<Vec<ProducedFile>, RunError> {
    let options = ComfyUiOptions { stall_after, unreachable_after: Duration::ZERO, ..Default::default() };
    let engine = ComfyUi::new(&fake.address, options).unwrap();
    let ops = br#"{"1": {"class_type": "PreviewImage", "inputs": {}}}"#;
    let scratch = tempfile::tempdir().unwrap();
    let execution = Execution {
        run: RUN.parse::<RunId>().unwrap(),
        slot: protocol::SlotId(0),
        workspace: None,
        workflow: Workflow::parse(ops).unwrap(),
        files: Vec::new(),
        outputs: vec!["1".to_owned()],
        named_files: Vec::new(),
        scratch: scratch.path().to_owned(),
    };
    engine.execute(execution, &ProgressSink::new().0, cancel).await
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn comfyui_of_an_owner_is_never_free_for_a_run_for_nobody() {
    let fake = Fake::start(ACCEPTS).await;
    let engine = ComfyUi::new(&fake.address, ComfyUiOptions::default()).unwrap();
    assert!(!engine.is_free_for(protocol::SlotId(0), None).await);
}

#[tokio::test]
async fn comfyui_that_lost_the_prompt_ends_the_run_at_once() {
    let fake = Fake::start(Behaviour { closes: 1, ..ACCEPTS }).await;
    let error = execute(&fake, LONG, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, RunErrorKind::EngineUnavailable);
    assert!(error.detail.contains("no longer knows the prompt"), "{error}");
}

#[tokio::test]
async fn comfyui_that_is_gone_is_named_by_its_address() {
    let fake = Fake::start(ACCEPTS).await;
    fake.serving.abort();
    while TcpStream::connect(fake.address.trim_start_matches("http://")).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let error = execute(&fake, LONG, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, RunErrorKind::EngineUnavailable);
    assert!(error.detail.contains(&fake.address), "{error}");
}

#[tokio::test]
async fn comfyui_that_is_up_and_dead_counts_as_stalled() {
    let fake = Fake::start(Behaviour { running: Some(RUN), ..ACCEPTS }).await;
    let error = execute(&fake, SHORT, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, RunErrorKind::Stalled);
    assert!(error.detail.contains("made no progress"), "{error}");
    let asked = fake.asked.lock().unwrap();
    let interrupt = asked.iter().find(|asked| asked.starts_with("POST /interrupt")).unwrap();
    assert!(interrupt.ends_with(&json!({"prompt_id": RUN}).to_string()), "{interrupt}");
}

#[tokio::test]
async fn comfyui_that_takes_nothing_up_counts_as_stalled_and_keeps_nothing_of_ours() {
    let fake = Fake::start(Behaviour { pending: Some(RUN), ..ACCEPTS }).await;
    let error = execute(&fake, SHORT, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, RunErrorKind::Stalled);
    assert!(fake.was_asked("POST /queue"), "it is taken off the queue");
}

#[tokio::test]
async fn waiting_behind_the_owner_is_no_stall_and_cancelling_leaves_his_prompt_alone() {
    let fake = Fake::start(Behaviour { running: Some("his"), pending: Some(RUN), ..ACCEPTS }).await;
    let cancel = CancellationToken::new();
    let run = execute(&fake, SHORT, &cancel);
    let waiting = async {
        let polled =
            || fake.asked.lock().unwrap().iter().filter(|asked| asked.starts_with("GET /queue")).count();
        while polled() < 5 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(run, waiting);
    assert_eq!(ended.unwrap_err().kind, RunErrorKind::Canceled);
    assert!(fake.was_asked("POST /queue"));
    assert!(!fake.was_asked("POST /interrupt"));
}

#[tokio::test]
async fn answer_that_is_none_is_reported_with_its_status() {
    let fake = Fake::start(Behaviour { status: "500 Internal Server Error", ..ACCEPTS }).await;
    let error = execute(&fake, LONG, &CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, RunErrorKind::EngineUnavailable);
    assert!(error.detail.contains("answered `prompt` with status 500"), "{error}");
}
