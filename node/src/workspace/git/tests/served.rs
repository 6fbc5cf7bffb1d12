//! An upstream behind git's own server program, over plain HTTP.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::GitPin;

use super::Upstream;

/// Serves an upstream as git's own server program does.
pub(super) struct Served {
    pub(super) url: String,
    pub(super) requests: Arc<AtomicU64>,
    /// How long it waits after each byte of an answer, by the request's method.
    pub(super) drips: Arc<Mutex<BTreeMap<&'static str, Duration>>>,
}

impl Served {
    pub(super) fn start(upstream: &Upstream, allow_single_commits: bool) -> Self {
        let mut config = upstream.repository.config().expect("a config");
        config.set_bool("uploadpack.allowAnySHA1InWant", allow_single_commits).expect("set");
        config.set_bool("http.receivepack", false).expect("set");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/upstream", listener.local_addr().expect("bound"));
        let (folder, requests) = (upstream.folder.path().to_owned(), Arc::new(AtomicU64::new(0)));
        let drips = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let (counted, paused) = (Arc::clone(&requests), Arc::clone(&drips));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                // A client that goes away in the middle is one of the tests.
                let _ = serve(stream, &folder, &paused);
            }
        });
        Self { url, requests, drips }
    }

    pub(super) fn pin(&self, pin: &GitPin) -> GitPin {
        GitPin::new(self.url.parse().expect("an address"), pin.commit.clone())
    }
}

/// An upstream that answers whoever asked by this alone.
pub(super) fn answering(mut answer: impl FnMut(TcpStream) + Send + 'static) -> GitPin {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/upstream", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            answer(stream);
        }
    });
    GitPin::new(url.parse().expect("an address"), "1".repeat(40).parse().expect("a commit"))
}

fn redirect(mut stream: TcpStream, location: &str) -> io::Result<()> {
    let head = "HTTP/1.1 301 Moved Permanently\r\nConnection: close\r\nContent-Length: 0";
    write!(stream, "{head}\r\nLocation: {location}\r\n\r\n")
}

/// Answers one request by `git http-backend`, a CGI program (RFC 3875).
fn serve(
    stream: TcpStream,
    folder: &Path,
    drips: &Mutex<BTreeMap<&'static str, Duration>>,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // `/moved` has moved to the upstream, and `/round` to itself.
    let target = match target.strip_prefix("/moved") {
        Some(rest) => return redirect(stream, &format!("/upstream{rest}")),
        None if target.starts_with("/round") => return redirect(stream, target),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut command = Command::new("git");
    command.arg("http-backend").env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory");
    command.env("GIT_CONFIG_VALUE_0", "*").env("GIT_HTTP_EXPORT_ALL", "1").env("REQUEST_METHOD", method);
    command.env("PATH_TRANSLATED", format!("{}{}", folder.display(), path.trim_start_matches("/upstream")));
    command.env("PATH_INFO", path).env("QUERY_STRING", query);
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "content-type" => drop(command.env("CONTENT_TYPE", value)),
            "git-protocol" => drop(command.env("GIT_PROTOCOL", value)),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().expect("piped").write_all(&body)?;
    let output = child.wait_with_output()?;
    let mut stream = stream;
    let status = output.stdout.strip_prefix(b"Status: ").map_or("200 OK".to_owned(), |rest| {
        String::from_utf8_lossy(rest.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned()
    });
    let head = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
    let length = output.stdout.len() - head;
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n")?;
    let pause = drips.lock().expect("no panic").get(method).copied();
    let Some(pause) = pause else { return stream.write_all(&output.stdout) };
    stream.set_nodelay(true)?;
    stream.write_all(&output.stdout[..head])?;
    for byte in &output.stdout[head..] {
        stream.write_all(std::slice::from_ref(byte))?;
        std::thread::sleep(pause);
    }
    Ok(())
}
