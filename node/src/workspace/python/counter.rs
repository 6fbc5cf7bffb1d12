//! The wheels of one installation as uv asks for them: over HTTP on loopback, each from its beginning while it comes.
//!
//! So uv unpacks a wheel while the rest of it crosses the network. To uv it is a proxy, through which it sees one host
//! that nobody else has: the addresses of wheels stay the same, and uv knows again what it has unpacked before. uv
//! compares each wheel with its SHA-256 before it installs any. Not here: having the wheels come.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use data_encoding::BASE64;
use futures::stream::{FuturesUnordered, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::{LockedWheel, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::WheelSource;
use super::wheels::Wheel;
use crate::workspace::log::PrepareLog;

/// The host that uv sees. No name server knows it.
const HOST: &str = "http://wheels.invalid";
/// The longest question that is read, and how long it may take.
const MAX_QUESTION: usize = 16 << 10;
const QUESTION_TIME: Duration = Duration::from_secs(30);
/// How many questions may be open besides one for each wheel: anybody on this machine may ask.
const MAX_BESIDES: usize = 64;
/// How long nobody is heard after the system refused a connection.
const REFUSED_PAUSE: Duration = Duration::from_millis(200);

/// Where uv gets its wheels.
pub(super) struct Counter<'a> {
    listener: TcpListener,
    address: SocketAddr,
    /// Keeps other programs of this machine out.
    password: String,
    wheels: &'a [Wheel],
    source: &'a dyn WheelSource,
}

impl<'a> Counter<'a> {
    /// Ready to give these wheels.
    pub(super) async fn open(wheels: &'a [Wheel], source: &'a dyn WheelSource) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, password: Uuid::new_v4().simple().to_string(), wheels, source })
    }

    /// What uv installs, as it reads it: a `pylock.toml` (PEP 751).
    pub(super) fn pylock(&self) -> String {
        let mut text = "lock-version = \"1.0\"\ncreated-by = \"comfy-farm\"\n".to_owned();
        for Wheel { locked: LockedWheel { name, version, file }, .. } in self.wheels {
            let (sha256, size) = (file.sha256, file.size);
            let file_name = utf8_percent_encode(file.file_name.as_str(), NON_ALPHANUMERIC);
            let _ = write!(
                text,
                "[[packages]]\nname = \"{name}\"\nversion = \"{version}\"\nwheels = [{{ url = \"{HOST}/{sha256}/{file_name}\", \
                 size = {size}, hashes = {{ sha256 = \"{sha256}\" }} }}]\n"
            );
        }
        text
    }

    /// Lets a uv see this and nothing else.
    pub(super) fn lead(&self, command: &mut Command) {
        let proxy = format!("http://uv:{}@{}", self.password, self.address);
        for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env(name, &proxy);
        }
        command.env_remove("no_proxy").env_remove("NO_PROXY").env_remove("UV_DEFAULT_INDEX");
        // Those that do not come yet wait beside the one that does, for as long as that takes.
        command.env("UV_CONCURRENT_DOWNLOADS", self.wheels.len().to_string()).env("UV_HTTP_TIMEOUT", "86400");
    }

    /// Answers for as long as it is awaited.
    pub(super) async fn serve(&self, log: &PrepareLog) -> Infallible {
        let wheels = self.wheels.iter().map(|wheel| (wheel.locked.file.sha256, wheel)).collect();
        let mut answers = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if answers.len() < self.wheels.len() + MAX_BESIDES => {
                    match accepted {
                        Ok((stream, _)) => answers.push(self.answer(stream, &wheels)),
                        Err(error) => {
                            log.line(&format!("uv was not heard: {error}"));
                            sleep(REFUSED_PAUSE).await;
                        }
                    }
                }
                Some(answered) = answers.next() => {
                    // uv asks again, or fails and says why.
                    if let Err(error) = answered {
                        log.line(&format!("a wheel was not given to uv: {error}"));
                    }
                }
            }
        }
    }

    async fn answer(&self, mut stream: TcpStream, wheels: &BTreeMap<Sha256, &Wheel>) -> io::Result<()> {
        let question = timeout(QUESTION_TIME, question(&mut stream)).await??;
        let Some(wheel) = self.asked(&question).and_then(|sha256| wheels.get(&sha256)) else {
            return stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nCache-Control: max-age=31536000, immutable\r\nConnection: close\r\n\r\n",
            wheel.locked.file.size
        );
        stream.write_all(head.as_bytes()).await?;
        let mut parts = wheel.read(self.source);
        while let Some(part) = parts.next().await {
            stream.write_all(&part.map_err(io::Error::other)?).await?;
        }
        stream.shutdown().await
    }

    /// Which file a question is about, if it is one of our uv.
    fn asked(&self, question: &str) -> Option<Sha256> {
        let mut lines = question.lines();
        let path = lines.next()?.strip_prefix("GET ")?.strip_prefix(HOST)?.strip_prefix('/')?;
        let password = format!("Basic {}", BASE64.encode(format!("uv:{}", self.password).as_bytes()));
        let is_ours = |line: &str| {
            let header = line.split_once(": ");
            header.is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("proxy-authorization") && value == password
            })
        };
        lines.any(is_ours).then(|| path.split('/').next()?.parse().ok())?
    }
}

/// All that is said before the body, of which there is none.
async fn question(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if bytes.len() > MAX_QUESTION || stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
